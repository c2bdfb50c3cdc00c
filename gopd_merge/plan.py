"""What a run will use, read and checked from configs and headers alone: no model, no torch, about a second."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gopd_merge.config import REFERENCES, TEACHER_BASE, VLLM, MergeConfig
from gopd_merge.consistency import AUTO
from gopd_merge.errors import InputError
from gopd_merge.eval_config import OWN, STATIC_RIVALS
from gopd_merge.evaluate.sandbox import check_sandbox
from gopd_merge.evaluate.suites import Benchmark, load_benchmarks, read_suite
from gopd_merge.evaluate.validation import load_validation
from gopd_merge.experts.base import Base, is_model, linear_kinds, resolve_base
from gopd_merge.experts.fingerprint import check_same_tokenizer, has_chat_template
from gopd_merge.experts.hub import is_hub_id
from gopd_merge.experts.intake import CONFIG, Expert, check_mixable, read_expert, read_experts
from gopd_merge.gathering import gather, prompt_notes
from gopd_merge.parallel import Processes
from gopd_merge.prompts.sources import PromptSet
from gopd_merge.server import is_remote, split_location
from gopd_merge.tracking import check_tracker

MANIFEST = "merge.json"


REMOTE_RANK = 16  # of the student where no expert is here to go by


@dataclass(frozen=True)
class Inputs:
    """Everything that a merge reads, checked. Experts and prompts in order of domain."""

    experts: tuple[Expert, ...]  # those that are on this machine
    base: Base  # the student's
    prompts: tuple[PromptSet, ...]
    test: tuple[Benchmark, ...]  # the experts' own questions, of those that have some
    lora_rank: int
    targets: tuple[str, ...]  # what the student adapts: every kind of module that an expert adapts
    teacher_base: Base | None = None  # the experts', where it is another than the student's
    references: Mapping[str, Expert | Base] = field(default_factory=dict)  # named in --reference and --kl-reference, by folder
    validation: tuple[Benchmark, ...] = ()  # the questions on which --alpha auto chooses
    start: Expert | None = None  # the adapter that the student begins at
    remote: Mapping[str, str] = field(default_factory=dict)  # by domain: http://host:8000/v1#name of an expert behind a server

    @property
    def on_one_base(self) -> bool:
        """Whether all experts are here and on the student's base, so that they have an average."""
        return self.teacher_base is None and not self.remote

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about them, a line each."""
        found = [*(f"{e.name}: {text}" for e in self.experts for text in e.warnings), *self.base.warnings]
        if not has_chat_template(Path(self.base.location)):
            found.append(f"{self.base.name}: has no chat template, so prompts are asked as plain text")
        return (*found, *prompt_notes(self.prompts))

    @property
    def is_synthetic(self) -> bool:
        """Whether an expert writes its own prompts."""
        return any(source.is_synthetic for source in self.prompts)

    @property
    def other_models(self) -> dict[str, tuple[Base, tuple[Expert, ...]]]:
        """The models besides the student's base by name, each with the experts on it."""
        teachers = {TEACHER_BASE: (self.teacher_base, self.experts)} if self.teacher_base else {}
        return teachers | {name: (one, ()) for name, one in self.references.items() if isinstance(one, Base)}


def read_inputs(config: MergeConfig, weights: bool = True) -> Inputs:
    """Raises InputError for whatever the merge would refuse. Without `weights` those of a base on the Hub are not fetched."""
    fetched: Literal["all", "headers"] = "all" if weights else "headers"
    check_tracker(config.track)
    remote = {domain: path for domain, path in config.experts.items() if is_remote(path)}
    for location in remote.values():
        split_location(location)
    experts = read_experts({domain: path for domain, path in config.experts.items() if domain not in remote}, config.allow_noop)
    references = _read_references(config)
    adapters = [one for one in references.values() if isinstance(one, Expert)]
    start = read_expert("start", config.start, config.allow_noop) if config.start not in ("none", *STATIC_RIVALS) else None
    own = [start] if start else []
    teacher_base = None
    if config.teacher_base:
        teacher_base = resolve_base([*experts, *adapters], config.teacher_base, fetched, config.quantize)
        base = resolve_base(own, config.base, fetched, config.quantize)
        check_same_tokenizer(base.name, Path(base.location), teacher_base.name, Path(teacher_base.location))
    else:
        base = resolve_base([*experts, *adapters, *own], config.base, fetched, config.quantize)
    for one in references.values():
        if isinstance(one, Base):
            if config.estimator == "hidden":
                raise InputError(f"{one.name}: is another model, but --estimator hidden needs roles on one base; use --estimator full")
            check_same_tokenizer(base.name, Path(base.location), one.name, Path(one.location))
    _check_start(config, experts, start)
    paths = {e.domain: e.path for e in experts}
    test = own_questions(experts, config) if config.eval else []
    if config.alpha == AUTO:
        check_mixable(experts)
    validation = load_validation(paths, limit=config.probe_prompts, max_new_tokens=config.max_new_tokens) if config.alpha == AUTO else []
    if any(benchmark.metric == "code_tests" for benchmark in (*test, *validation)):
        check_sandbox(config.unsafe_exec)
    prompts = gather(config, paths, base)
    if config.method == "sft":
        _check_responses(prompts)
    return Inputs(
        experts=tuple(experts),
        base=base,
        prompts=prompts,
        test=tuple(test),
        lora_rank=config.lora_rank or _rank(config, experts, start),
        targets=tuple(sorted({t for e in [*experts, *own] for t in e.targets})) or linear_kinds(base),
        teacher_base=teacher_base,
        validation=tuple(validation),
        references=references,
        start=start,
        remote=remote,
    )


def _read_references(config: MergeConfig) -> dict[str, Expert | Base]:
    """The adapters and models that --reference and --kl-reference name by folder. Raises InputError."""
    found: dict[str, Expert | Base] = {}
    for number, name in enumerate(sorted({r for r in (config.reference, config.kl_reference) if r and r not in REFERENCES})):
        if is_model(name):
            found[name] = resolve_base([], name, "all", config.quantize)
        elif (Path(name) / CONFIG).is_file() or is_hub_id(name):
            found[name] = read_expert(f"reference{number}", name, config.allow_noop)
        else:
            raise InputError(f"--reference {name}: no adapter's or model's folder; name one, or one of {', '.join(REFERENCES)}")
    return found


def _rank(config: MergeConfig, experts: Sequence[Expert], start: Expert | None) -> int:
    """The largest among the experts; all of theirs together where the student begins at a merge of them: an average fits whole into it."""
    ranks = [e.rank for e in experts] or [REMOTE_RANK]
    if start:
        return max(*ranks, start.rank)
    return max(ranks) if config.start == "none" else sum(ranks)


def _check_start(config: MergeConfig, experts: Sequence[Expert], start: Expert | None) -> None:
    """Raises InputError for a start that no student can have, or that would be gone afterwards."""
    if start and not start.commit and config.output.resolve() == start.path.resolve():
        raise InputError(f"{config.output}: is what the merge begins at, and would be replaced by it; choose another --output")
    if start and not start.is_plain:
        raise InputError(
            f"--start {config.start}: is no plain LoRA (B · A and nothing else), so a student cannot go on from it; start at none"
        )
    if start and config.lora_rank and config.lora_rank < start.rank:
        raise InputError(
            f"--lora-rank {config.lora_rank} is below the rank {start.rank} of --start {config.start}; leave it out, or take more"
        )
    if config.start in STATIC_RIVALS and not (len(experts) == len(config.experts) and all(e.is_plain for e in experts)):
        raise InputError(f"--start {config.start}: static merges are defined for plain LoRAs on this machine only; start at none")


def _check_responses(prompts: Sequence[PromptSet]) -> None:
    for source in prompts:
        if missing := sum(prompt.response is None for prompt in source.prompts):
            raise InputError(
                f'{source.name}: {missing:,} of {len(source.prompts):,} prompts have no "response" to learn; '
                "add them, or use another --method"
            )


def own_questions(experts: Sequence[Expert], config: MergeConfig) -> list[Benchmark]:
    """The test prompts that come with the experts, as the suite `own` asks them, with this run's length limit. Raises InputError."""
    suite = read_suite(OWN).model_copy(update={"max_new_tokens": config.max_new_tokens})
    have = {e.domain: e.path for e in experts if (e.path / (suite.data.expert or "").format(split="test")).is_file()}
    return load_benchmarks(suite, "test", have, None, config.eval_prompts)


def pin(config: MergeConfig, inputs: Inputs) -> MergeConfig:
    """The config with the commits that were found for its Hub ids, so that it means the same tomorrow."""
    experts = {e.domain: pinned(config.experts[e.domain], e) for e in inputs.experts}
    update: dict[str, Any] = {"experts": {**config.experts, **experts}, "base": pinned(config.base, inputs.base)}
    update["prompts"] = _pinned_prompts(config, inputs)
    if inputs.teacher_base:
        update["teacher_base"] = pinned(config.teacher_base, inputs.teacher_base)
    if inputs.start:
        update["start"] = pinned(config.start, inputs.start)
    for name in ("reference", "kl_reference"):
        if (given := getattr(config, name)) in inputs.references:
            update[name] = pinned(given, inputs.references[given])
    return config.model_copy(update=update)


def _pinned_prompts(config: MergeConfig, inputs: Inputs) -> dict[str, str]:
    """Each domain's source with the commit of its data set."""
    return {s.domain: s.origin.source for s in inputs.prompts if config.prompts_of(s.domain) is not None}


def pinned(given: str | None, found: Expert | Base) -> str | None:
    """A Hub id with the commit that was found there; what is no Hub id as it was given."""
    return f"{found.name}@{found.commit}" if found.commit else given


def check_processes(config: MergeConfig, processes: Processes) -> None:
    """Raises InputError for what several processes cannot do together, or one alone."""
    if processes.count == 1:
        if config.shard_base:
            raise InputError(
                "--shard-base shares the base out among processes, and there is one; start several with accelerate launch, "
                "or plan with --processes 8"
            )
        return
    if "synth" in config.prompts.values():
        raise InputError(
            f"--prompts synth in {processes.count} processes: experts write in one; run gopd-merge prompts first, without accelerate "
            "launch, and name the files that it writes"
        )
    if config.alpha == AUTO:
        raise InputError(
            f"--alpha auto in {processes.count} processes: the target is measured in one; run gopd-merge probe first, without "
            "accelerate launch, and give the number"
        )
    if config.rollout == VLLM:
        raise InputError(
            f"--rollout vllm in {processes.count} processes: each would start a vLLM of its own, which is not supported; start vllm serve, "
            "and give its address: --rollout http://HOST:8000/v1"
        )
    if config.shard_base and (share := config.prompts_per_step // len(config.experts)) % processes.count:
        raise InputError(
            f"--shard-base: {share} prompts of each domain a step do not divide by {processes.count} processes, and all must run the base "
            f"equally often; give --batch-size {len(config.experts) * processes.count * max(1, share // processes.count)}"
        )


def check_output(output: Path, overwrite: bool, manifest: str = MANIFEST) -> None:
    """Raises InputError unless a folder of that name can be made, or replaced where that was asked for.

    `manifest` is the file in it by which it is known to be the output of the same command.
    """
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise InputError(f"{output} exists; add --overwrite to replace it, or choose another --output")
        is_ours = output.is_dir() and not output.is_symlink() and ((output / manifest).is_file() or not any(output.iterdir()))
        if not is_ours:
            raise InputError(f"{output} was not written by gopd-merge, so --overwrite will not delete it; choose another --output")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{parent}: no such folder to write {output.name} in; make it, or choose another --output")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{parent}: no permission to write {output.name} there; choose another --output")
