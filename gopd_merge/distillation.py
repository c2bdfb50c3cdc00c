"""The distillation itself: one base with all roles on it, the loop in which the student answers and its teachers score, and its result."""

import ctypes
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from gopd_merge import artefacts
from gopd_merge.casting import assembled, rule_of
from gopd_merge.config import MergeConfig
from gopd_merge.distill.answering import LEARNT_BY_HEART, respond
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.cast import Cast
from gopd_merge.distill.forgetting import Forgetting, Sizes, Turn, forgetting_text
from gopd_merge.distill.fused import TokenStatistics
from gopd_merge.distill.reward_scale import Controller
from gopd_merge.distill.reward_scale import schedule as on_a_line
from gopd_merge.distill.rollout import Rollout, row_seeds
from gopd_merge.distill.target import Scale, Target, score, unscored
from gopd_merge.distill.update import (
    Domains,
    accumulate_balanced,
    accumulate_gradient,
    default_learning_rate,
    domain_metrics,
    importance_metrics,
    mean_kl,
    optimizer_step,
)
from gopd_merge.distill.watch import Watch
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import Expert
from gopd_merge.forecast import Forecast, resolve_device
from gopd_merge.plan import Inputs, pin
from gopd_merge.prompts.mixing import Order, PromptMixer

METRICS = "metrics.jsonl"
M_MMAP_THRESHOLD = -3  # of <malloc.h>


class Listener(Protocol):
    """What a merge tells while it runs. The command line draws it; `Silent` ignores it."""

    def started(self, config: MergeConfig, inputs: Inputs) -> None: ...
    def planned(self, forecast: Forecast) -> None: ...
    def phase(self, text: str) -> None: ...
    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None: ...
    def evaluating(self, done: float, total: int, method: str) -> None: ...
    def note(self, text: str) -> None: ...


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


def load_backbone(config: MergeConfig, inputs: Inputs) -> Backbone:
    """The one base with all roles of a merge; without the experts where they are on a base of their own."""
    here = () if inputs.teacher_base else inputs.experts
    return load_roles(inputs.base, here, config.quantize, config.device, inputs.lora_rank, inputs.targets, config.seed)


def load_roles(
    base: Base, experts: Sequence[Expert], quantize: str, device: str, lora_rank: int, targets: Sequence[str], seed: int
) -> Backbone:
    """The one base with all experts and a fresh student on it."""
    model, tokenizer = load_base(base, quantize, resolve_device(device))
    backbone = Backbone(model, tokenizer, experts)
    backbone.add_student(lora_rank, targets, seed)
    backbone.check_head()
    return backbone


def give_back_freed_memory() -> None:
    """Blocks of 256 KiB and more return to the system when they are freed: the run then takes what its plan says, and more time.

    Left to itself glibc raises that limit up to 32 MiB, and the process keeps a heap full of holes. No-op on other systems.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 256 << 10)


def distill(cast: Cast, config: MergeConfig, inputs: Inputs, log: Path, clock: Clock, listener: Listener) -> tuple[dict[str, Any], int]:
    """The loop: answer, score, update, log. Returns the last step's metrics and the number of response tokens seen."""
    mixer = PromptMixer(inputs.prompts, config.batch_size, config.seed, _order(config), config.steps)
    parameters = cast.backbone.student_parameters()
    cast.backbone.recompute_activations(config.activation_checkpointing)
    assert config.learning_rate is not None  # merge() has settled it
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # rises over the warm-up, falls to zero at the end
        optimizer, lambda step: min(1.0, (step + 1) / (config.warmup_steps + 1)) * (1 - step / config.steps)
    )
    alphas = AlphaOfStep(config)
    watch = Watch(config.steps)
    forgetting = Forgetting(cast, _turns(mixer, config.steps), _sizes(config)) if config.method == "alternate" else None
    row: dict[str, Any] = {}
    tokens = 0

    for step in range(config.steps):
        started = time.perf_counter()
        prompts, domains = mixer.batch(step)
        with clock.measure("rollout"):
            texts, given = [p.prompt for p in prompts], [p.response for p in prompts]
            seeds = row_seeds(config.seed, "step", step, count=len(texts))
            rollout = respond(cast, config.method, texts, domains, given, config.trained_tokens, seeds)
        with clock.measure("score"):
            target = _target(cast, config, rollout, alphas.of(step))
        with clock.measure("update"):
            statistics, norms = _accumulate(cast, config, rollout, target)
            used_rate = schedule.get_last_lr()[0]
            grad_norm = optimizer_step(parameters, optimizer, config.max_grad_norm)
            schedule.step()
        tokens += rollout.num_tokens
        row = {
            "step": step + 1,
            "kl_to_target": mean_kl(statistics),
            "grad_norm": grad_norm,
            **({"grad_norm_by_domain": norms} if norms else {}),
            **importance_metrics(rollout, statistics),
            "learning_rate": used_rate,
            "tokens_per_second": rollout.num_tokens / (time.perf_counter() - started),
            "memory_bytes": peak_memory(cast.backbone.device),
            "domains": _with_horizon(config, domain_metrics(rollout, target, statistics)),
        }
        if forgetting and (forgotten := forgetting.after(step, _scale(config, alphas.of(step)))):
            row["forgetting"] = forgotten
            listener.note(forgetting_text(forgotten))
        alphas.learn(row["domains"])
        artefacts.append_json_line(log, row)
        listener.step(step + 1, config.steps, row)
        for warning in watch.look(row):
            listener.note(warning)
    return row, tokens


class AlphaOfStep:
    """λ by domain at every step: as given, on a line from `alpha_from`, or moved by the controller."""

    def __init__(self, config: MergeConfig) -> None:
        self._config = config
        self._given = {domain: config.alpha_of(domain) for domain in config.domains}
        self._controller = Controller(self._given, config.alpha_max) if config.adaptive == "run" else None

    def of(self, step: int) -> dict[str, float]:
        """λ of the step (from 0)."""
        config = self._config
        if self._controller:
            return dict(self._controller.alphas)
        if config.alpha_from is None:
            return self._given
        return {domain: on_a_line(config.alpha_from, alpha, step, config.steps) for domain, alpha in self._given.items()}

    def learn(self, domains: Domains) -> None:
        """Take a step's metrics."""
        if self._controller:
            self._controller.update(domains)


def _order(config: MergeConfig) -> Order:
    """In which the domains' prompts come."""
    if config.method == "alternate":
        return "one after the other"
    return "in turns" if config.rotate == "step" else "sorted" if config.balance else "together"


def _target(cast: Cast, config: MergeConfig, rollout: Rollout, alphas: Mapping[str, float]) -> Target:
    if config.method in LEARNT_BY_HEART:
        return unscored(rollout)
    sizes = _sizes(config)
    return score(cast, rollout, _scale(config, alphas), sizes.micro_batch_size, sizes.chunk_tokens, sizes.top_k)


def _scale(config: MergeConfig, alphas: Mapping[str, float]) -> Scale:
    return Scale(alphas, rule_of(config), measured=config.adaptive == "run")


def _sizes(config: MergeConfig) -> Sizes:
    top_k = config.top_k if config.estimator == "topk" else 0
    return Sizes(config.trained_tokens, config.micro_batch_size, config.chunk_tokens, top_k)


def _with_horizon(config: MergeConfig, domains: Domains) -> Domains:
    """Whether a response would have ended is not known where the horizon cut it: how many it cut has a name of its own."""
    if config.horizon is None:
        return domains
    return {domain: {**metrics, "capped": None, "past_horizon": metrics["capped"]} for domain, metrics in domains.items()}


def _turns(mixer: PromptMixer, steps: int) -> dict[str, Turn]:
    """The last step of each domain."""
    turns = {}
    for step in range(steps):
        prompts, domains = mixer.batch(step)
        turns[domains[0]] = Turn(step, [prompt.prompt for prompt in prompts])
    return turns


def _accumulate(cast: Cast, config: MergeConfig, rollout: Rollout, target: Target) -> tuple[TokenStatistics, dict[str, float]]:
    """The step's gradient, and its norm by domain where that was measured."""
    estimator = "cross_entropy" if config.method in LEARNT_BY_HEART else config.estimator
    options = (cast, rollout, target, estimator, config.micro_batch_size, config.chunk_tokens, config.top_k)
    return accumulate_balanced(*options) if config.balance else (accumulate_gradient(*options), {})


def train_student(
    backbone: Backbone, config: MergeConfig, inputs: Inputs, folder: Path, clock: Clock, listener: Listener
) -> tuple[MergeConfig, dict[str, Any], int]:
    """Run the loop and write the student to `folder`, read back and verified.

    Returns the config that was used, with everything settled; the last step's metrics; the number of response tokens seen.
    An interrupted run leaves the student as it was after its last full step; so does one that waits for a server.
    Raises VerificationError.
    """
    learning_rate = config.learning_rate or default_learning_rate(backbone.hidden_size)
    config = config.model_copy(update={"learning_rate": learning_rate})

    def save() -> None:
        backbone.save_student(folder, inputs.base.name, inputs.base.commit)

    with assembled(backbone, config, inputs, listener.note, save) as cast:
        try:
            metrics, tokens = distill(cast, config, inputs, folder / METRICS, clock, listener)
        finally:
            save()
    artefacts.verify_adapter(backbone, folder, [p.prompt for s in inputs.prompts for p in s.prompts[:4]])
    return pin(config, inputs), metrics, tokens


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak allocation, or on CPU the largest resident size of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # getrusage would count what the process that started this one held
        held = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if held:
            return int(held[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def manifest(config: MergeConfig, inputs: Inputs, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What merge.json holds besides the result document: inputs, options, final metrics."""
    return {
        "config": config.model_dump(mode="json"),
        "inputs": _described_experts(inputs),
        "base": {
            "name": inputs.base.name,
            "commit": inputs.base.commit,
            "quantization": config.quantize,
            "warnings": list(inputs.base.warnings),
        },
        "teacher_base": {"name": inputs.teacher_base.name, "commit": inputs.teacher_base.commit} if inputs.teacher_base else None,
        "student": {"rank": inputs.lora_rank, "targets": list(inputs.targets)},
        "final_metrics": metrics,
    }


def _described_experts(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """By domain. Of one behind a server no more is known than where that is."""
    here: dict[str, dict[str, Any]] = {
        e.domain: {
            "name": e.name,
            "commit": e.commit,
            "sha256": e.sha256,
            "rank": e.rank,
            "targets": list(e.targets),
            "warnings": list(e.warnings),
        }
        for e in inputs.experts
    }
    there: dict[str, dict[str, Any]] = {
        domain: {"name": location, "commit": None, "sha256": None, "rank": None, "targets": [], "warnings": []}
        for domain, location in inputs.remote.items()
    }
    return {s.domain: {**here, **there}[s.domain] | {"prompts": len(s.prompts)} for s in inputs.prompts}
