"""What a run will use, read and checked from configs and headers alone: no model, no torch, about a second."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gopd_merge.config import MergeConfig
from gopd_merge.errors import InputError
from gopd_merge.eval_config import OWN
from gopd_merge.evaluate.sandbox import check_sandbox
from gopd_merge.evaluate.suites import Benchmark, load_benchmarks, read_suite
from gopd_merge.experts.base import Base, resolve_base
from gopd_merge.experts.intake import Expert, read_experts
from gopd_merge.prompts.sources import PromptSet, training_prompts

MANIFEST = "merge.json"


@dataclass(frozen=True)
class Inputs:
    """Everything that a merge reads, checked. Experts and prompts in order of domain."""

    experts: tuple[Expert, ...]
    base: Base
    prompts: tuple[PromptSet, ...]
    test: tuple[Benchmark, ...]  # the experts' own questions, of those that have some
    lora_rank: int
    targets: tuple[str, ...]  # what the student adapts: every kind of module that an expert adapts


def read_inputs(config: MergeConfig, weights: bool = True) -> Inputs:
    """Raises InputError for whatever the merge would refuse. Without `weights` those of a base on the Hub are not fetched."""
    experts = read_experts(config.experts, config.allow_noop)
    base = resolve_base(experts, config.base, "all" if weights else "headers", config.quantize)
    prompts = [training_prompts(e.domain, e.path, config.prompts.get(e.domain)) for e in experts]
    test = own_questions(experts, config) if config.eval else []
    if any(benchmark.metric == "code_tests" for benchmark in test):
        check_sandbox(config.unsafe_exec)
    return Inputs(
        experts=tuple(experts),
        base=base,
        prompts=tuple(prompts),
        test=tuple(test),
        lora_rank=config.lora_rank or max(e.rank for e in experts),
        targets=tuple(sorted({target for e in experts for target in e.targets})),
    )


def own_questions(experts: Sequence[Expert], config: MergeConfig) -> list[Benchmark]:
    """The test prompts that come with the experts, as the suite `own` asks them, with this run's length limit. Raises InputError."""
    suite = read_suite(OWN).model_copy(update={"max_new_tokens": config.max_new_tokens})
    have = {e.domain: e.path for e in experts if (e.path / (suite.data.expert or "").format(split="test")).is_file()}
    return load_benchmarks(suite, "test", have, None, config.eval_prompts)


def pin(config: MergeConfig, inputs: Inputs) -> MergeConfig:
    """The config with the commits that were found for its Hub ids, so that it means the same tomorrow."""
    experts = {e.domain: f"{e.name}@{e.commit}" if e.commit else config.experts[e.domain] for e in inputs.experts}
    base = f"{inputs.base.name}@{inputs.base.commit}" if inputs.base.commit else config.base
    return config.model_copy(update={"experts": experts, "base": base})


def check_output(output: Path, overwrite: bool) -> None:
    """Raises InputError unless a folder of that name can be made, or replaced where that was asked for."""
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise InputError(f"{output} exists; add --overwrite to replace it, or choose another --output")
        is_ours = output.is_dir() and not output.is_symlink() and ((output / MANIFEST).is_file() or not any(output.iterdir()))
        if not is_ours:
            raise InputError(f"{output} was not written by gopd-merge, so --overwrite will not delete it; choose another --output")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{parent}: no such folder to write {output.name} in; make it, or choose another --output")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{parent}: no permission to write {output.name} there; choose another --output")
