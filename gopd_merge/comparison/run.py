"""`gopd-merge eval` and `gopd-merge compare`, read from top to bottom: check, load one base, tune the rivals, ask everybody, conclude."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gopd_merge import artefacts
from gopd_merge.casting import load_roles
from gopd_merge.comparison.concluding import Evaluation, conclude
from gopd_merge.comparison.contenders import BASE, Contender, Entry, Field, of_experts, read_entry, read_field
from gopd_merge.comparison.judging import JUDGED, judge_all
from gopd_merge.comparison.lineup import line_up
from gopd_merge.comparison.measuring import ANSWERS, TUNING, Setup, check_context, measure_all
from gopd_merge.comparison.training import train_on
from gopd_merge.comparison.tuning import Tuned, tune
from gopd_merge.config import METHOD_OPTIONS, MergeConfig
from gopd_merge.disk import alone, write_json
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distillation import Listener
from gopd_merge.errors import InputError
from gopd_merge.eval_config import OPD, CompareConfig, EvalConfig
from gopd_merge.evaluate.judge import Judge
from gopd_merge.evaluate.sandbox import check_sandbox
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark, Suite, load_benchmarks, read_suite, tuning_suite
from gopd_merge.experts.base import context_length, load_tokenizer
from gopd_merge.plan import MANIFEST, Inputs, read_inputs
from gopd_merge.report.document import EVALUATION, RESULTS
from gopd_merge.report.progress import Silent
from gopd_merge.report.scale import scale_in
from gopd_merge.settings import identity
from gopd_merge.usage import Clock


def compare(config: EvalConfig, command: str, listener: Listener | None = None) -> Evaluation:
    """Measure adapters; with a CompareConfig also their experts and rivals. What is answered already is not asked again.

    Raises InputError for whatever is refused before anything is loaded, GopdError where the run fails.
    """
    listener = listener or Silent()
    suites = [_with_options(read_suite(name), config) for name in config.suite]
    found = read_field(config, needs_experts=any(suite.domain is None for suite in suites))
    if found.merge_config and config.max_new_tokens is None:  # the experts' own prompts are asked as in the merge
        longest = {"max_new_tokens": found.merge_config.max_new_tokens}
        suites = [s.model_copy(update=longest) if s.domain is None else s for s in suites]
    test = [benchmark for suite in suites for benchmark in _load(suite, "test", config, found, config.limit)]
    validation = _validation(config, suites, found) if isinstance(config, CompareConfig) else []
    if any(benchmark.metric == "code_tests" for benchmark in (*test, *validation)):
        check_sandbox(config.unsafe_exec)
    check_context(load_tokenizer(found.base), context_length(found.base), [*test, *validation])
    for entry in found.entries:
        scale_in(entry.adapter.path)  # a damaged one is refused here, and not when everything is measured
    given = [entry.contender(isinstance(config, CompareConfig)) for entry in found.entries]
    _check_different(given)
    judge = _judge(config, test)
    setup = _setup(config, found)
    opd = _opd_training(config, found, setup.folder)
    with alone(setup.folder, (ANSWERS, TUNING, JUDGED, RESULTS) if config.overwrite else ()):
        return _measure(config, command, found, given, opd, test, validation, judge, setup, listener)


def _measure(
    config: EvalConfig,
    command: str,
    found: Field,
    given: Sequence[Contender],
    opd: tuple[MergeConfig, Inputs] | None,
    test: Sequence[Benchmark],
    validation: Sequence[Benchmark],
    judge: Judge | None,
    setup: Setup,
    listener: Listener,
) -> Evaluation:
    """What `compare` does once everything is read: load, tune, ask, judge, conclude."""
    clock = Clock()
    listener.phase("loading the base")
    with clock.measure("load"):
        experts = found.scorers  # an open-ended domain is scored by its own
        targets = sorted({target for one in experts for target in one.targets})
        backbone = load_roles(found.base, experts, found.quantize, config.device, max(one.rank for one in experts), targets, setup.seed)
    contenders, tuned = [BASE], list[Tuned]()
    if isinstance(config, CompareConfig):
        contenders += of_experts(found.experts)
        with clock.measure("tune"):
            tuned = tune(config.rivals, found.experts, backbone, validation, setup, listener)
        contenders += [one.contender for one in tuned]
        if opd:
            with clock.measure("train"):
                contenders.append(_opd(*opd, backbone, listener))
    contenders += given
    with clock.measure("answer"):
        lineup = line_up(measure_all(backbone, contenders, test, setup, listener), tuned, validation)
    with clock.measure("judge"):
        judged = judge_all(judge, lineup, test, setup, listener) if judge else None
    described = {
        "command": command,
        "inputs": found.described_inputs(),
        "base": found.described_base(),
        "config": found.merge_config.model_dump(mode="json") if found.merge_config else None,
        "seconds": clock.rounded(),
        "environment": artefacts.environment(backbone.device),
    }
    evaluation = conclude(lineup, test, validation, setup, described, judged)
    write_json(setup.folder / RESULTS, evaluation.document)
    return evaluation


def _with_options(suite: Suite, config: EvalConfig) -> Suite:
    """The suite with the sampling that the command line asks for. Greedy answers are all the same, so one is enough."""
    update: dict[str, Any] = {
        name: value for name in ("temperature", "samples", "max_new_tokens") if (value := getattr(config, name)) is not None
    }
    if update.get("temperature", suite.temperature) == 0:
        if (config.samples or 1) > 1:
            raise InputError(f"--samples {config.samples}: greedy answers are all the same; leave it out, or give a --temperature above 0")
        update["samples"] = 1
    return suite.model_copy(update=update)


def _load(suite: Suite, split: Any, config: EvalConfig, found: Field, limit: int) -> list[Benchmark]:
    file = config.data.get(suite.name)
    return load_benchmarks(suite, split, {e.domain: e.path for e in found.asked}, Path(file) if file else None, limit)


def _judge(config: EvalConfig, test: Sequence[Benchmark]) -> Judge | None:
    """The judge, if there is something for it to do. Raises InputError."""
    for benchmark in test:
        if benchmark.metric == EXPERT_REWARD and len(benchmark.items) < 2:
            raise InputError(f"{benchmark.suite.name}: one question in {benchmark.domain}, from which no interval follows; give more")
    if config.judge is None:
        return None
    if not any(benchmark.metric == EXPERT_REWARD for benchmark in test):
        raise InputError(f"--judge {config.judge}: no suite here is open-ended; add one, such as --suite open, or leave the judge out")
    return Judge(config.judge, config.judge_model)


def _validation(config: CompareConfig, suites: Sequence[Suite], found: Field) -> list[Benchmark]:
    """What coefficients are chosen on: one answer to each validation question, of each suite once."""
    if not any(rival not in (OPD, "average") for rival in config.rivals):
        return []
    tuning: dict[str, Suite] = {}
    for suite in suites:
        chosen = tuning_suite(suite)
        if chosen is None:
            raise InputError(
                f"{suite.name}: has no validation questions to choose the rivals' coefficients on; "
                "give --rivals average or none, or name a suite for it with tune_on"
            )
        tuning[chosen.name] = _with_options(chosen, config).model_copy(update={"samples": 1, "max_new_tokens": suite.max_new_tokens})
    return [benchmark for suite in tuning.values() for benchmark in _load(suite, "validation", config, found, config.tune_limit)]


def _setup(config: EvalConfig, found: Field) -> Setup:
    """As the merge was measured, where the command line says nothing else: then what was answered there counts here."""
    merge = found.merge_config
    seed = config.seed if config.seed is not None else merge.seed if merge else 0
    batch_size = config.batch_size or (merge.batch_size if merge else 64)
    made_of = identity(found.base, found.experts or found.elsewhere, found.quantize)
    return Setup(_folder(config, found), made_of, seed, batch_size, config.unsafe_exec)


def _folder(config: EvalConfig, found: Field) -> Path:
    """Where answers and results go: beside the first merge, if it is a folder here."""
    first = found.entries[0]
    is_ours = first.manifest is not None and first.adapter.commit is None
    return config.output or (first.adapter.path if is_ours else Path()) / EVALUATION


def _opd_training(config: EvalConfig, found: Field, folder: Path) -> tuple[MergeConfig, Inputs] | None:
    """The first merge's own training with α = 1, if that is asked for and not among what was given. Raises InputError."""
    merges = [entry for entry in found.entries if entry.manifest is not None]
    if not isinstance(config, CompareConfig) or OPD not in config.rivals or any(m.contender(True).method == OPD for m in merges):
        return None
    if not merges:
        name = found.entries[0].adapter.name
        raise InputError(f"{name}: has no {MANIFEST} with the options to train α = 1 with; leave opd out of --rivals")
    experts = {e.domain: str(e.path) for e in found.experts}
    merge = merges[0].config
    changed = {"output": folder / "opd.lora", "experts": experts, "base": config.base or merge.base, "eval": False}
    training = merge.model_copy(update=changed | as_opd(merge))
    return training, read_inputs(training)


def as_opd(merge: MergeConfig) -> dict[str, Any]:
    """The options with which this merge would have copied each expert on its own prompts, all else as it was."""
    plain = ("reference", "kl_reference", "alpha_from", "adaptive", "bound", "deterministic", "weights")
    reset = {name: MergeConfig.model_fields[name].default for name in plain}
    return {"method": OPD, "alpha": 1.0, "rotate": "prompt" if merge.rotate == "all" else merge.rotate} | reset


def _opd(training: MergeConfig, inputs: Inputs, backbone: Backbone, listener: Listener) -> Contender:
    """Trained on the base that is loaded; one that is there already is taken. Raises InputError where that is another training."""
    output = training.output
    if not (output / MANIFEST).is_file():
        listener.phase("training with α = 1")
        train_on(backbone, training, inputs, listener)
    entry = read_entry(str(output))
    _check_same_training(training, entry)
    return entry.contender(True)


def _check_same_training(config: MergeConfig, opd: Entry) -> None:
    """Raises InputError where the one that was there is not the same training with α = 1."""
    same = ("steps", "batch_size", "max_new_tokens", "learning_rate", "lora_rank", "seed", "quantize", *METHOD_OPTIONS)
    for name in same:
        if getattr(config, name) != getattr(opd.config, name):
            raise InputError(
                f"{opd.adapter.name}: was trained with {name} {getattr(opd.config, name)}, the merge with {getattr(config, name)}; "
                "remove it to train it again"
            )


def _check_different(given: Sequence[Contender]) -> None:
    """Raises InputError for two adapters that would be one row."""
    seen: dict[str, Contender] = {}
    for one in given:
        other = seen.setdefault(one.slug, one)
        if other is not one:
            raise InputError(f"{other.name} and {one.name} are both {one.slug}; give adapters that differ in method, α or seed, each once")
