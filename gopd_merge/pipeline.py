"""The main job, read from top to bottom: check, load one base, let the student answer and its teachers score, save, measure."""

import ctypes
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gopd_merge import artefacts
from gopd_merge.config import MergeConfig
from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone, expert
from gopd_merge.distill.objective import ESTIMATORS
from gopd_merge.distill.rollout import answers, generate
from gopd_merge.distill.target import score
from gopd_merge.distill.update import accumulate_gradient, default_learning_rate, domain_metrics, optimizer_step
from gopd_merge.errors import NotEstimatedError
from gopd_merge.evaluate.statistics import Comparison, Result, Scores, paired, scores_of, with_holm
from gopd_merge.evaluate.tasks import Outcome, Task, ask, result_row
from gopd_merge.experts.base import load_base
from gopd_merge.experts.deltas import load_updates
from gopd_merge.experts.static import weighted_sum
from gopd_merge.forecast import Forecast, resolve_device
from gopd_merge.plan import MANIFEST, Inputs, check_output, pin, read_inputs
from gopd_merge.prompts.mixing import PromptMixer
from gopd_merge.report.card import card_text
from gopd_merge.report.progress import Silent
from gopd_merge.report.terminal import results_text

AVERAGE = "average"
OWN_PROMPTS = "own prompts"  # the suite of what comes beside the experts
SCHEMA = 1
M_MMAP_THRESHOLD = -3  # of <malloc.h>


class Listener(Protocol):
    """What a merge tells while it runs. The command line draws it; `Silent` ignores it."""

    def started(self, config: MergeConfig, inputs: Inputs) -> None: ...
    def planned(self, forecast: Forecast) -> None: ...
    def phase(self, text: str) -> None: ...
    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None: ...
    def evaluating(self, done: int, total: int, method: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class MergeResult:
    """What a merge made. `results` and `comparisons` are empty without evaluation."""

    output: Path
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    document: Mapping[str, Any]  # what --json prints

    @property
    def table(self) -> str:
        """The results as the command line prints them."""
        return results_text(self.results, self.comparisons)


class Clock:
    """Seconds by phase. Phases may be entered again and again, but not inside each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        total = time.perf_counter() - self._started
        return {phase: round(seconds, 2) for phase, seconds in {**self.seconds, "total": total}.items()}


def merge(config: MergeConfig, listener: Listener | None = None, inputs: Inputs | None = None) -> MergeResult:
    """Merge the experts into one adapter at `config.output`.

    Raises:
        InputError: something given is refused; nothing was computed.
        GopdError: the run failed; what was computed is in OUTPUT.partial.
    """
    listener = listener or Silent()
    clock = Clock()
    check_output(config.output, config.overwrite)
    inputs = inputs or read_inputs(config)
    listener.started(config, inputs)
    for warning in (*(f"{e.name}: {text}" for e in inputs.experts for text in e.warnings), *inputs.base.warnings):
        listener.note(warning)

    with clock.measure("plan"):
        forecast = Forecast(config, inputs)
        try:
            forecast.check()
            listener.planned(forecast)
            if forecast.is_tight:
                give_back_freed_memory()
        except NotEstimatedError as error:
            listener.note(str(error))

    with artefacts.new_folder(config.output, config.overwrite) as folder:
        listener.phase("loading the base")
        with clock.measure("load"):
            backbone = load_backbone(config, inputs)
        learning_rate = config.learning_rate or default_learning_rate(backbone.hidden_size)
        config = pin(config, inputs).model_copy(update={"learning_rate": learning_rate})  # merge.json holds what was used
        try:
            metrics, tokens = distill(backbone, config, inputs, folder / "metrics.jsonl", clock, listener)
        finally:  # an interrupted run leaves the student as it was after its last full step
            backbone.save_student(folder, inputs.base.name, inputs.base.commit)
        artefacts.verify_adapter(backbone, folder, [p.prompt for s in inputs.prompts for p in s.prompts[:4]])
        results, comparisons = evaluate(backbone, config, inputs, clock, listener)

        document = {
            "schema": SCHEMA,
            "output": str(config.output),
            "results": [asdict(result) for result in results],
            "comparisons": [asdict(comparison) for comparison in comparisons],
            "seconds": clock.rounded(),
            "peak_memory_bytes": peak_memory(backbone.device),
            "tokens": tokens,
            "environment": artefacts.environment(backbone.device),
        }
        described = manifest(config, inputs, metrics) | document
        (folder / "README.md").write_text(card_text(described, results, comparisons), encoding="utf-8")
        artefacts.write_json(folder / MANIFEST, described)  # last: its presence means complete
    return MergeResult(config.output, tuple(results), tuple(comparisons), document)


def load_backbone(config: MergeConfig, inputs: Inputs) -> Backbone:
    """The one base with all experts and a fresh student on it."""
    device = resolve_device(config.device)
    model, tokenizer = load_base(inputs.base, config.quantize, device)
    backbone = Backbone(model, tokenizer, inputs.experts)
    backbone.add_student(inputs.lora_rank, inputs.targets, config.seed)
    backbone.check_head()
    return backbone


def give_back_freed_memory() -> None:
    """Blocks of 256 KiB and more return to the system when they are freed: the run then takes what its plan says, and more time.

    Left to itself glibc raises that limit up to 32 MiB, and the process keeps a heap full of holes. No-op on other systems.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 256 << 10)


def distill(
    backbone: Backbone, config: MergeConfig, inputs: Inputs, log: Path, clock: Clock, listener: Listener
) -> tuple[dict[str, Any], int]:
    """The loop: sample, score, update, log. Returns the last step's metrics and the number of response tokens seen."""
    mixer = PromptMixer(inputs.prompts, config.batch_size, config.seed)
    alphas = {domain: config.alpha_of(domain) for domain in config.domains}
    estimator = ESTIMATORS[config.estimator]
    parameters = backbone.student_parameters()
    assert config.learning_rate is not None  # merge() has settled it
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # rises over the warm-up, falls to zero at the end
        optimizer, lambda step: min(1.0, (step + 1) / (config.warmup_steps + 1)) * (1 - step / config.steps)
    )
    torch.manual_seed(config.seed)
    row: dict[str, Any] = {}
    tokens = 0

    for step in range(config.steps):
        started = time.perf_counter()
        texts, domains = mixer.batch(step)
        with clock.measure("rollout"):
            rollout = generate(backbone, STUDENT, texts, domains, config.max_new_tokens)
        with clock.measure("score"):
            target = score(backbone, rollout, alphas, config.micro_batch_size)
        with clock.measure("update"):
            statistics = accumulate_gradient(backbone, rollout, target, estimator, config.micro_batch_size, config.chunk_tokens)
            used_rate = schedule.get_last_lr()[0]
            grad_norm = optimizer_step(parameters, optimizer, config.max_grad_norm)
            schedule.step()
        tokens += rollout.num_tokens
        row = {
            "step": step + 1,
            "kl_to_target": float(statistics.kl.mean()),
            "grad_norm": grad_norm,
            "learning_rate": used_rate,
            "tokens_per_second": rollout.num_tokens / (time.perf_counter() - started),
            "memory_bytes": peak_memory(backbone.device),
            "domains": domain_metrics(rollout, target, statistics),
        }
        artefacts.append_json_line(log, row)
        listener.step(step + 1, config.steps, row)
    return row, tokens


def evaluate(
    backbone: Backbone, config: MergeConfig, inputs: Inputs, clock: Clock, listener: Listener
) -> tuple[list[Result], list[Comparison]]:
    """Base, experts, exact average and merge on the same test questions, at temperature 1."""
    tasks = [Task(s.domain, s.prompts[: config.eval_prompts]) for s in inputs.test_prompts]
    for domain in sorted(set(config.domains) - {task.domain for task in tasks}) if config.eval else ():
        listener.note(f"{domain}: not measured, no prompts/test.jsonl comes with its adapter")
    if not tasks:
        return [], []
    merged = "opd" if all(config.alpha_of(d) == 1 for d in config.domains) else "exopd"
    roles = {"base": REFERENCE} | {f"expert:{e.domain}": expert(e.domain) for e in inputs.experts}
    if all(e.is_plain for e in inputs.experts):
        updates = [load_updates(e) for e in inputs.experts]
        backbone.add_updates(AVERAGE, weighted_sum(updates, [1 / len(updates)] * len(updates)))
        roles[AVERAGE] = AVERAGE
    else:
        listener.note("exact average: not defined for these experts (DoRA, LoRA bias, adapted embeddings and saved modules are no B · A)")
    roles[merged] = STUDENT

    outcomes: dict[tuple[str, str], Outcome] = {}
    for method, role in roles.items():
        for task in tasks:
            listener.evaluating(len(outcomes), len(roles) * len(tasks), f"{method} on {task.domain}")
            with clock.measure("evaluate"):
                outcomes[method, task.domain] = measure(backbone, role, task, config)
    results = [
        result_row(
            OWN_PROMPTS,
            outcomes[method, task.domain],
            method=method,
            domain=task.domain,
            parameters={"weights": "1/n"} if method == AVERAGE else None,
            alpha=config.alpha_of(task.domain) if method == merged else None,
            split="test",
            seed=config.seed,
            temperature=1.0,
            metric=task.metric,
        )
        for method in roles
        for task in tasks
    ]
    comparisons = []
    if AVERAGE in roles:
        names = {"suite": OWN_PROMPTS, "method": merged, "rival": AVERAGE, "rival_is": "average"}
        comparisons = with_holm(
            [
                paired(
                    verdicts(task, outcomes[merged, task.domain]),
                    verdicts(task, outcomes[AVERAGE, task.domain]),
                    domain=task.domain,
                    **names,
                )
                for task in tasks
            ]
        )
    return results, comparisons


def verdicts(task: Task, outcome: Outcome) -> Scores:
    """The outcome as scores to be paired: every method was asked the same questions in the same order."""
    return scores_of([str(index) for index in range(len(task.questions))], outcome.correct)


def measure(backbone: Backbone, role: str, task: Task, config: MergeConfig, temperature: float = 1.0) -> Outcome:
    """One sampled (or, at temperature 0, greedy) answer of `role` to each question; the same for the same seed."""
    torch.manual_seed(config.seed)

    def respond(prompts: Any) -> Any:
        rollout = generate(backbone, role, prompts, [task.domain] * len(prompts), config.max_new_tokens, temperature)
        return answers(backbone, rollout)

    return ask(task, respond, config.batch_size, config.unsafe_exec)


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak allocation, or on CPU the largest resident size of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def manifest(config: MergeConfig, inputs: Inputs, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What merge.json holds besides the result document: inputs, options, final metrics."""
    return {
        "config": config.model_dump(mode="json"),
        "inputs": {
            e.domain: {
                "name": e.name,
                "commit": e.commit,
                "sha256": e.sha256,
                "rank": e.rank,
                "targets": list(e.targets),
                "warnings": list(e.warnings),
                "prompts": len(s.prompts),
            }
            for e, s in zip(inputs.experts, inputs.prompts, strict=True)
        },
        "base": {
            "name": inputs.base.name,
            "commit": inputs.base.commit,
            "quantization": config.quantize,
            "warnings": list(inputs.base.warnings),
        },
        "student": {"rank": inputs.lora_rank, "targets": list(inputs.targets)},
        "final_metrics": metrics,
    }
