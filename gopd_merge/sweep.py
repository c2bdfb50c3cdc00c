"""`gopd-merge sweep`, read from top to bottom: check, load one base, thin the candidates out by short runs, train the winner in full."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gopd_merge import artefacts
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.contenders import trained
from gopd_merge.comparison.measuring import TUNING, Measured, Setup, check_context, key_of, measure, result, scores
from gopd_merge.comparison.training import renew_student, train_on
from gopd_merge.comparison.tuning import best_row
from gopd_merge.config import MergeConfig
from gopd_merge.disk import alone, write_json
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.update import default_learning_rate
from gopd_merge.distillation import Listener
from gopd_merge.errors import InputError
from gopd_merge.evaluate.sandbox import check_sandbox
from gopd_merge.evaluate.statistics import paired
from gopd_merge.evaluate.suites import Benchmark
from gopd_merge.evaluate.validation import load_validation
from gopd_merge.experts.base import context_length, load_tokenizer
from gopd_merge.experts.intake import WEIGHTS
from gopd_merge.experts.tensor_file import file_sha256
from gopd_merge.halving import Candidate, champion
from gopd_merge.machine import resolve_device
from gopd_merge.pipeline import MergeResult, look_ahead, merge
from gopd_merge.plan import MANIFEST, Inputs, check_output, read_inputs
from gopd_merge.report.document import EVALUATION, ScalePoint
from gopd_merge.report.lines import difference_text
from gopd_merge.report.progress import Silent
from gopd_merge.report.sweep import candidate_text, schedule_text
from gopd_merge.run_folder import is_same
from gopd_merge.scaling.document import scale_document
from gopd_merge.settings import differences, identity, settings_of
from gopd_merge.sweep_config import SWEPT, SweepConfig
from gopd_merge.writing import with_written

FOLDER = ".sweep"  # what follows the output's name
SETTINGS = "sweep.json"
SCHEMA = 1


@dataclass(frozen=True)
class Sweep:
    """What a sweep found, and the winner's merge. `scale` is the document that lies beside the adapter as scale.json."""

    scale: Mapping[str, Any]
    merge: MergeResult


@dataclass(frozen=True)
class Run:
    """A short run that was trained and measured."""

    rung: int
    candidate: Candidate
    manifest: Mapping[str, Any]  # its merge.json
    config: MergeConfig  # that was used, with everything settled
    measured: Measured

    def scores(self) -> list[float]:
        """Mean score on each benchmark."""
        return [sum(answer.score for answer in found) / len(found) for found in self.measured.answers.values()]


def sweep(config: SweepConfig, command: str, listener: Listener | None = None, inputs: Inputs | None = None) -> Sweep:
    """Choose among the candidates and merge with the options of the best at `config.output`. What is complete is not made again.

    Raises InputError for whatever is refused before anything is loaded, GopdError where the run fails.
    """
    listener = listener or Silent()
    check_output(config.output, config.overwrite)
    longest = config.full_run(max(config.candidates, key=lambda one: one.steps))
    inputs = inputs or read_inputs(longest)
    validation = validation_questions(config, inputs)
    folder = config.output.with_name(config.output.name + FOLDER)
    settings = sweep_settings(config, inputs, validation)
    with alone(folder):
        begin(folder, settings, config.overwrite)
        listener.phase(schedule_text(config.halving, [one.steps for one in config.candidates]))
        look_ahead(longest, inputs, listener)
        listener.phase("loading the base")
        backbone = load_backbone(longest, inputs)
        inputs = with_written(backbone, longest, inputs, folder, listener)
        trials = Trials(config, inputs, validation, folder, backbone, listener)
        best = champion(config.candidates, config.halving, trials.rank)
        scale = findings(trials, best, command)
        listener.phase(f"the winner in full: {candidate_text(best.alpha, best.learning_rate)}, {best.steps} steps")
        renew_student(trials.backbone, inputs, config.seed)
        full = config.full_run(best)
        return Sweep(scale, merge(full, listener, inputs, trials.backbone, scale, resume=is_same(full, inputs)))


@dataclass
class Trials:
    """The short runs on the one base, each in a folder of its own with its answers."""

    config: SweepConfig
    inputs: Inputs
    validation: Sequence[Benchmark]
    folder: Path
    backbone: Backbone
    listener: Listener
    runs: list[Run] = field(default_factory=list)

    def rate_of(self, candidate: Candidate) -> float:
        """The learning rate of its full run, the default at the base's width where none is given."""
        return candidate.learning_rate or self.config.learning_rate or default_learning_rate(self.backbone.hidden_size)

    def rank(self, rung: int, candidates: Sequence[tuple[Candidate, int]]) -> list[int]:
        """Train and measure the candidates of a rung, each for its steps; their indices, best first."""
        runs = []
        for number, (candidate, steps) in enumerate(candidates, start=1):
            of_all = f"rung {rung} of {len(self.config.halving.sizes)}, run {number} of {len(candidates)}"
            text = f"{of_all}: {candidate_text(candidate.alpha, candidate.learning_rate)}, {steps} of {candidate.steps} steps"
            runs.append(self._run(rung, candidate, steps, text))
        self.runs += runs
        return ranking([run.scores() for run in runs], [benchmark.metric for benchmark in self.validation])

    def _run(self, rung: int, candidate: Candidate, steps: int, text: str) -> Run:
        """One short run; what is complete of it is taken from its folder."""
        output = self.folder / f"rung-{rung}" / f"{candidate.slug}.lora"
        if (output / MANIFEST).is_file():
            self.listener.phase(f"{text}: is there")
        else:
            self.listener.phase(text)
            output.parent.mkdir(exist_ok=True)
            short = self.config.short_run(candidate, steps, self.rate_of(candidate))
            train_on(self.backbone, short.model_copy(update={"output": output}), self.inputs, self.listener)
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        used = MergeConfig.model_validate(manifest["config"])
        contender = trained(used, folder=output, name=output.name, sha256=file_sha256(output / WEIGHTS))  # also if trained just now
        setup = setup_of(self.config, self.inputs, output / EVALUATION)
        answers = {}
        for index, benchmark in enumerate(self.validation):

            def told(done: int, of: int, index: int = index, domain: str = benchmark.domain) -> None:
                self.listener.evaluating(index + done / of, len(self.validation), f"{text.partition(':')[0]}, on {domain}")

            answers[key_of(benchmark)] = measure(self.backbone, contender, benchmark, setup, TUNING, told)
        return Run(rung, candidate, manifest, used, Measured(contender, answers))


def ranking(scores: Sequence[Sequence[float]], metrics: Sequence[str]) -> list[int]:
    """Indices of the rows, the best mean score first; of equals the earlier one."""
    left, order = list(range(len(scores))), list[int]()
    while left:
        order.append(left.pop(best_row([scores[index] for index in left], metrics)))
    return order


def validation_questions(config: SweepConfig, inputs: Inputs) -> list[Benchmark]:
    """What the choice rests on: each expert's own validation questions, with the run's length limit. Raises InputError."""
    if inputs.remote:
        raise InputError(
            f"{', '.join(inputs.remote)}: a teacher behind a server brings no validation questions to choose on; merge with one --alpha"
        )
    folders = {e.domain: e.path for e in inputs.experts}
    validation = load_validation(folders, limit=config.tune_limit, max_new_tokens=config.max_new_tokens)
    if any(benchmark.metric == "code_tests" for benchmark in validation):
        check_sandbox(config.unsafe_exec)
    check_context(load_tokenizer(inputs.base), context_length(inputs.base), validation)
    return validation


def setup_of(config: MergeConfig, inputs: Inputs, folder: Path) -> Setup:
    """Every run is asked alike, with the merge's seed and batch size."""
    made_of = identity(inputs.base, inputs.experts, config.quantize)
    return Setup(folder, made_of, config.seed, config.batch_size, config.unsafe_exec)


def sweep_settings(config: SweepConfig, inputs: Inputs, validation: Sequence[Benchmark]) -> dict[str, Any]:
    """All that the short runs depend on."""
    settings = {name: value for name, value in settings_of(config, inputs).items() if name not in SWEPT.values()}
    settings["steps_grid"] = sorted({one.steps for one in config.candidates})
    settings["learning_rates"] = list(config.learning_rates) or [config.learning_rate]
    settings["device"] = resolve_device(config.device)
    return settings | {f"validation questions of {benchmark.domain}": benchmark.version for benchmark in validation}


def begin(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Note the settings, or find the same ones there. Raises InputError where others are, unless they may be replaced."""
    file = folder / SETTINGS
    if not file.is_file():
        if {path.name for path in folder.iterdir()} - {".lock", f"{SETTINGS}.partial"}:
            raise InputError(f"{folder}: was not written by gopd-merge sweep, it has no {SETTINGS}; choose another --output")
        write_json(file, {"schema": SCHEMA, "settings": settings})
        return
    there = json.loads(file.read_text(encoding="utf-8"))["settings"]
    differing = differences(there, settings)
    if not differing:
        return
    if not overwrite:
        raise InputError(
            f"{folder}: holds a sweep with {', '.join(differing)}; repeat its options, give --overwrite to begin anew, "
            "or choose another --output"
        )
    for rung in folder.glob("rung-*"):
        shutil.rmtree(rung)
    write_json(file, {"schema": SCHEMA, "settings": settings})


def findings(trials: Trials, best: Candidate, command: str) -> dict[str, Any]:
    """The scale document: every run's scores, what was chosen and why. In one of a sweep there are options beside α, and what it cost."""
    config, runs = trials.config, trials.runs
    steps = sum(run.config.steps for run in runs) + best.steps
    answers = [answer for run in runs for found in run.measured.answers.values() for answer in found]
    described = {
        "chosen_options": {"learning_rate": trials.rate_of(best), "steps": best.steps},
        "cost": {"steps": steps, "full_runs": round(steps / config.halving.longest, 2)},
        "command": command,
        "inputs": runs[0].manifest["inputs"],
        "base": runs[0].manifest["base"],
        "environment": artefacts.environment(trials.backbone.device),
        "seconds": {
            "train": round(sum(run.manifest["seconds"]["total"] for run in runs), 2),
            "answer": round(sum(answer.seconds for answer in answers), 2),
        },
    }
    points = [_point(trials, run, benchmark) for run in runs for benchmark in trials.validation]
    return scale_document("sweep", points, dict.fromkeys(config.domains, best.alpha), _why(trials, best), described)


def _point(trials: Trials, run: Run, benchmark: Benchmark) -> ScalePoint:
    """A run's score on one domain's validation questions. The learning rate is that of the full run that it stands for."""
    row, used = result([run.measured], benchmark, trials.config.seed), run.config
    return ScalePoint(
        domain=row.domain,
        suite=row.suite,
        alpha=run.candidate.alpha,
        learning_rate=trials.rate_of(run.candidate),
        steps=used.steps,
        full_steps=run.candidate.steps,
        rung=run.rung,
        seed=used.seed,
        n=row.n,
        score=row.score,
        low=row.low,
        high=row.high,
        metric=row.metric,
        length_mean=row.length_mean,
        length_capped=row.length_capped,
    )


def _why(trials: Trials, best: Candidate) -> dict[str, str]:
    """By domain a sentence on the last rung that was run: the winner against the next, with the interval of the paired difference."""
    last = [run for run in trials.runs if run.rung == len(trials.config.halving.sizes)]
    order = ranking([run.scores() for run in last], [benchmark.metric for benchmark in trials.validation])
    first, second = (last[index] for index in order[:2])
    means = [sum(run.scores()) / len(trials.validation) for run in (first, second)]
    against = candidate_text(second.candidate.alpha, second.candidate.learning_rate)
    against += f", {second.candidate.steps} steps" if second.candidate.steps != best.steps else ""
    why = {}
    for benchmark in trials.validation:
        ours, theirs = (scores([run.measured], benchmark) for run in (first, second))
        found = paired(
            ours, theirs, suite=benchmark.suite.name, domain=benchmark.domain, method="winner", rival="next", rival_is="next candidate"
        )
        why[benchmark.domain] = (
            f"best mean over the domains of {len(trials.config.candidates)} candidates, after {first.config.steps} of {best.steps} steps: "
            f"{means[0]:.1%}, {means[1]:.1%} with {against}; in {benchmark.domain} the difference is "
            f"{difference_text((found.difference, found.low, found.high), share=True)} points"
        )
    return why
