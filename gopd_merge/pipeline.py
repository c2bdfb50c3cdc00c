"""The main job, read from top to bottom: check, load one base, let the student answer and its teachers score, save, measure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gopd_merge import artefacts
from gopd_merge.artefacts import manifest
from gopd_merge.casting import load_backbone, load_teachers
from gopd_merge.comparison.concluding import Evaluation, conclude
from gopd_merge.comparison.contenders import BASE, of_experts, trained
from gopd_merge.comparison.lineup import idle_teachers, line_up
from gopd_merge.comparison.measuring import Setup, measure_all
from gopd_merge.comparison.tuning import tune
from gopd_merge.config import VLLM, MergeConfig
from gopd_merge.consistency import AUTO
from gopd_merge.disk import partial_of, write_json
from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.vllm_engine import check_available
from gopd_merge.distillation import METRICS, Listener, train_student
from gopd_merge.errors import NotEstimatedError
from gopd_merge.evaluate.statistics import Comparison, Result
from gopd_merge.experts.intake import CONFIG, WEIGHTS
from gopd_merge.experts.tensor_file import file_sha256
from gopd_merge.forecast import Forecast
from gopd_merge.hub.card import Place, card_text
from gopd_merge.hub.licence import licences, strictest
from gopd_merge.machine import resolve_device
from gopd_merge.parallel import ALONE, Processes, launched
from gopd_merge.plan import MANIFEST, Inputs, check_output, check_processes, read_inputs
from gopd_merge.report.document import EVALUATION, RESULTS, checked_document
from gopd_merge.report.progress import Silent
from gopd_merge.report.scale import SCALE
from gopd_merge.run_folder import check_unfinished, run_folder
from gopd_merge.scaling.auto import choose_alpha
from gopd_merge.settings import identity, settings_of
from gopd_merge.tracking import tracked
from gopd_merge.usage import Clock, give_back_freed_memory, peak_memory
from gopd_merge.writing import with_written

AVERAGE = "average"
SCHEMA = 1


@dataclass(frozen=True)
class MergeResult:
    """What a merge made. `results` and `comparisons` are empty without evaluation, `table` too."""

    output: Path
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    document: Mapping[str, Any]  # what --json prints
    table: str  # the results as the command line prints them
    scale: Mapping[str, Any] | None = None  # how α was chosen, if it was: what scale.json holds


def merge(
    config: MergeConfig,
    listener: Listener | None = None,
    inputs: Inputs | None = None,
    backbone: Backbone | None = None,
    scale: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> MergeResult:
    """Merge the experts into one adapter at `config.output`.

    A `backbone` that is loaded already has all roles and a fresh student on it, and its memory was looked at. `scale` is the document of
    how α was chosen; it is kept beside the adapter. With `resume` a run that was stopped goes on; where there is none, it begins. In each
    of several processes of `accelerate launch` this is called alike; they train together, and the first alone measures and writes: what it
    returns is known to it alone.

    Raises:
        InputError: something given is refused; nothing was computed.
        GopdError: the run failed; what was computed is in OUTPUT.partial.
    """
    processes = launched()
    listener = listener if listener and processes.is_first else Silent()
    clock = Clock()
    check_output(config.output, config.overwrite)
    if not resume:
        check_unfinished(config.output, config.overwrite)
    check_processes(config, processes)
    with processes.one_voice():
        processes.take_device(resolve_device(config.device))
    inputs = inputs or read_inputs(config)
    listener.started(config, inputs)
    if backbone is None:
        with clock.measure("plan"):
            look_ahead(config, inputs, listener, processes)

    if not processes.is_first:
        partial = partial_of(config.output)
        with processes.joined(resolve_device(config.device), config.remote_patience) as together:
            backbone = backbone or load_backbone(config, inputs)
            train_student(backbone, config, inputs, partial, clock, listener, together)
        return MergeResult(config.output, (), (), {}, "")

    environment = artefacts.environment(torch.device(resolve_device(config.device)))
    with run_folder(config, inputs, resume, environment | {"processes": processes.count}, listener.note) as folder:
        if scale is not None:
            write_json(folder / SCALE, scale)
        elif config.alpha != AUTO and (folder / SCALE).is_file():  # of a sweep, whose last run goes on without it
            scale = json.loads((folder / SCALE).read_text(encoding="utf-8"))
        with (
            processes.joined(resolve_device(config.device), config.remote_patience) as together,
            tracked(config, folder, folder / METRICS, listener) as listener,
        ):
            if backbone is None:
                listener.phase("loading the base")
                with clock.measure("load"):
                    backbone = load_backbone(config, inputs)
            if inputs.is_synthetic:
                with clock.measure("prompts"):
                    inputs = with_written(backbone, config, inputs, folder, listener)
            if config.alpha == AUTO:
                with clock.measure("probe"):
                    config, scale = choose_alpha(backbone, config, inputs, folder, listener)
            config, metrics, tokens = train_student(backbone, config, inputs, folder, clock, listener, together)
        measured = {"seconds": clock.rounded(), "tokens": tokens, "environment": environment}
        found = evaluate(backbone, config, inputs, folder, manifest(config, inputs, metrics) | measured, clock, listener)

        document = {
            "schema": SCHEMA,
            "output": str(config.output),
            "results": found.document["results"] if found else [],
            "comparisons": found.document["comparisons"] if found else [],
            **measured,
            "seconds": clock.rounded(),
            "peak_memory_bytes": peak_memory(backbone.device),
        }
        described = (
            manifest(config, inputs, metrics)
            | document
            | {"settings": settings_of(config, inputs), "files": {name: file_sha256(folder / name) for name in (CONFIG, WEIGHTS)}}
            | ({"scale": _reasons(scale)} if scale else {})
        )
        results, comparisons = (found.results, found.comparisons) if found else ((), ())
        measured_as = checked_document(found.document, folder / EVALUATION / RESULTS) if found else None
        place = Place(config.output.name, licence=strictest(licences(described)), chats=bool(backbone.tokenizer.chat_template))
        (folder / "README.md").write_text(card_text(described, measured_as, place), encoding="utf-8")
        write_json(folder / MANIFEST, described)  # last: its presence means complete
    return MergeResult(config.output, results, comparisons, document, found.table if found else "", scale)


def _reasons(scale: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen and why; what it rests on is in scale.json."""
    return {name: scale[name] for name in ("made_by", "chosen", "chosen_options", "why") if name in scale}


def look_ahead(config: MergeConfig, inputs: Inputs, listener: Listener, processes: Processes = ALONE) -> None:
    """Notes what is odd about the inputs. Raises InputError for a run that cannot fit into memory, or lacks what is to sample."""
    for warning in inputs.notes:
        listener.note(warning)
    if config.rotate == "step" and (silent := config.domains[config.steps :]):
        listener.note(
            f"--rotate step: in {config.steps} step(s) {', '.join(silent)} will not teach; give --steps {len(config.domains)} or more"
        )
    if config.rollout == VLLM:
        check_available(inputs.lora_rank)
    forecast = Forecast(config, inputs, processes)
    try:
        forecast.check()
        listener.planned(forecast)
        if forecast.is_tight:
            give_back_freed_memory()
    except NotEstimatedError as error:
        listener.note(str(error))


def evaluate(
    backbone: Backbone, config: MergeConfig, inputs: Inputs, folder: Path, described: Mapping[str, Any], clock: Clock, listener: Listener
) -> Evaluation | None:
    """Base, experts, exact average and merge on the experts' own test questions; answers and results go to `folder`/evaluation.

    `gopd-merge compare` goes on from there with rivals that are tuned. None where there are no such questions.
    """
    for domain in sorted(set(config.domains) - {benchmark.domain for benchmark in inputs.test}) if config.eval else ():
        behind = "its expert is behind a server" if domain in inputs.remote else "no prompts/test.jsonl comes with its adapter"
        listener.note(f"{domain}: not measured, {behind}")
    if not inputs.test:
        return None
    setup = Setup(
        folder / EVALUATION, identity(inputs.base, inputs.experts, config.quantize), config.seed, config.batch_size, config.unsafe_exec
    )
    teachers = None
    if inputs.teacher_base:
        listener.phase("loading the experts' base again, to measure them")
        teachers = load_teachers(config, inputs)
    average = tune([AVERAGE] if inputs.on_one_base else [], inputs.experts, backbone, [], setup, listener)
    seconds = described["seconds"]
    merged = trained(
        config,
        role=STUDENT,
        folder=folder,
        name=config.output.name,
        sha256=file_sha256(folder / WEIGHTS),
        train_seconds=sum(seconds[phase] for phase in ("rollout", "score", "update")),
        train_tokens=described["tokens"],
    )
    with clock.measure("evaluate"):
        contenders = [BASE, *of_experts(inputs.experts, teachers), *(one.contender for one in average), merged]
        lineup = line_up(measure_all(backbone, contenders, inputs.test, setup, listener), average, [])
    for warning in idle_teachers(lineup, inputs.test):
        listener.note(warning)
    about = {name: described[name] for name in ("inputs", "base", "config", "environment")}
    about |= {"command": "gopd-merge --config merge.json", "seconds": clock.rounded()}
    found = conclude(lineup, inputs.test, [], setup, about)
    write_json(setup.folder / RESULTS, found.document)
    return found
