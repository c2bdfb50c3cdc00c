"""The distillation itself: one base with all roles on it, the loop in which the student answers and its teachers score, and its result."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from gopd_merge import artefacts
from gopd_merge.casting import assembled, rule_of
from gopd_merge.config import MergeConfig
from gopd_merge.distill.answering import respond
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.cast import Cast
from gopd_merge.distill.checkpoint import Checkpoints
from gopd_merge.distill.course import Course, Part
from gopd_merge.distill.forgetting import Forgetting, Sizes, Turn, forgetting_text
from gopd_merge.distill.fused import TokenStatistics
from gopd_merge.distill.methods import LEARNT_BY_HEART
from gopd_merge.distill.metrics import Domains, added, domain_metrics, domain_sums, step_metrics
from gopd_merge.distill.reward_scale import Controller
from gopd_merge.distill.reward_scale import schedule as on_a_line
from gopd_merge.distill.rollout import Rollout, joined, row_seeds, unasked
from gopd_merge.distill.room import Room
from gopd_merge.distill.skipping import Skipping, offending_rows
from gopd_merge.distill.target import Scale, Target, score, unscored
from gopd_merge.distill.update import accumulate_balanced, accumulate_gradient, default_learning_rate, optimizer_step
from gopd_merge.distill.watch import Sign, Watch
from gopd_merge.errors import GopdError
from gopd_merge.forecast import Forecast
from gopd_merge.parallel import ALONE, Processes
from gopd_merge.plan import Inputs, pin
from gopd_merge.prompts.mixing import Order, PromptMixer
from gopd_merge.prompts.sources import Prompt
from gopd_merge.run_folder import CHECKPOINTS
from gopd_merge.usage import Clock, peak_memory

METRICS = "metrics.jsonl"
SAME_EVERY = 10  # steps, after which several processes compare their students


class Listener(Protocol):
    """What a merge tells while it runs. The command line draws it; `Silent` ignores it."""

    def started(self, config: MergeConfig, inputs: Inputs) -> None: ...
    def planned(self, forecast: Forecast) -> None: ...
    def phase(self, text: str) -> None: ...
    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None: ...
    def evaluating(self, done: float, total: int, method: str) -> None: ...
    def note(self, text: str) -> None: ...


def distill(
    cast: Cast,
    config: MergeConfig,
    inputs: Inputs,
    folder: Path,
    clock: Clock,
    listener: Listener,
    processes: Processes = ALONE,
    checkpoints: Checkpoints | None = None,
) -> tuple[dict[str, Any], int]:
    """The loop: answer, score, update, log; from the newest of the checkpoints on, if there is one.

    Of several processes each has its own rows of every step; gradient and metrics are of all of them.
    Returns the last step's metrics and the number of response tokens seen. `folder` is for metrics.jsonl.
    """
    mixer = PromptMixer(inputs.prompts, config.batch_size, config.seed, _order(config), config.steps)
    parameters = cast.backbone.student_parameters()
    optimizer, schedule = _optimizer(parameters, config)
    alphas, watch, skipping = AlphaOfStep(config), Watch(config.steps, could_begin_nearer=_could_begin_nearer(config)), Skipping()
    room = Room(config.micro_batch_size, config.chunk_tokens, listener.note, again=not config.shard_base)
    parts: dict[str, Part] = {"schedule": schedule, "alpha": alphas, "skipping": skipping, "room": room, "clock": clock}
    forgetting = Forgetting(cast, _turns(mixer, config.steps), _sizes(config)) if config.method == "alternate" else None
    parts |= {"forgetting": forgetting} if forgetting else {}

    course = Course(cast.backbone, optimizer, parts, watch, folder / METRICS, inputs.base, checkpoints, processes.is_first)
    course.take_up(listener.note)
    if len(set(processes.gather(course.step))) > 1:
        raise GopdError(f"{folder}: not all processes find the same checkpoints there; put --output on a disk that all machines share")
    if checkpoints and processes.is_first:
        checkpoints.save = course.save

    with processes.saved_by_one(course.save):
        for step in range(course.step, config.steps):
            started = time.perf_counter()
            prompts, domains = mixer.batch(step)
            rows = processes.rows(domains, [len(prompt.prompt) for prompt in prompts])
            seeds = row_seeds(config.seed, "step", step, count=len(prompts))
            asked = [(prompts[row], domains[row], seeds[row]) for row in rows]
            at = alphas.of(step)
            rollout, target = room.fit(partial(_answered, cast, config, asked, at, clock))
            with clock.measure("update"):
                num_tokens = sum(processes.gather(rollout.num_tokens))
                statistics, norms = _accumulate(cast, config, rollout, target, num_tokens, sorted(set(domains)), room, processes)
                sums = added(processes.gather(domain_sums(rollout, target, statistics)))
            memory = max(processes.gather(peak_memory(cast.backbone.device)))
            with course.full_step():
                used_rate = schedule.get_last_lr()[0]
                with clock.measure("update"):
                    grad_norm = optimizer_step(parameters, optimizer, config.max_grad_norm)
                schedule.step()
                skipped = not math.isfinite(grad_norm)
                skipping.count(skipped)
                row: dict[str, Any] = {
                    "step": step + 1,
                    "skipped": skipping.total,
                    **step_metrics({} if skipped else sums),
                    "grad_norm": None if skipped else grad_norm,
                    **({"grad_norm_by_domain": norms} if norms and not skipped else {}),
                    "learning_rate": used_rate,
                    "tokens_per_second": num_tokens / (time.perf_counter() - started),
                    "memory_bytes": memory,
                    "domains": {} if skipped else _with_horizon(config, domain_metrics(sums)),
                }
                if forgetting and (forgotten := forgetting.after(step, _scale(config, at))):
                    row["forgetting"] = forgotten
                    listener.note(forgetting_text(forgotten))
                alphas.learn(row["domains"])
                course.log_row(row, num_tokens)
            if step % SAME_EVERY == 0 or step + 1 == config.steps:
                processes.check_same(parameters)
            course.save_if_due(config.steps)
            listener.step(step + 1, config.steps, row)
            if skipped:
                listener.note(f"step {step + 1}: its gradient is not finite, so it was left out")
                offenders = processes.gather(_offenders(cast, config, rollout, statistics, [prompts[row] for row in rows], at))
                skipping.check(
                    folder / CHECKPOINTS if processes.is_first else None, step + 1, config.seed, [one for part in offenders for one in part]
                )
            _warn(watch.look(row), listener, step + 1 if config.stop_on_divergence else None)
    return course.row, course.tokens


def _could_begin_nearer(config: MergeConfig) -> bool:
    """Whether --start average would be another start than the run has: a single expert's average is the expert, which teaches nothing."""
    return config.start == "none" and len(config.experts) > 1 and config.teacher_base is None


def _optimizer(
    parameters: list[torch.nn.Parameter], config: MergeConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, and its rate: it rises over the warm-up, and falls to zero at the end."""
    assert config.learning_rate is not None  # train_student() has settled it
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (config.warmup_steps + 1)) * (1 - step / config.steps)
    )


def _warn(signs: Sequence[Sign], listener: Listener, ends_at: int | None) -> None:
    """Say what looks wrong. Raises GopdError where the run has diverged, if it is to end then, at that step."""
    for sign in signs:
        listener.note(sign.text)
    diverged = [sign.text for sign in signs if sign.diverges]
    if diverged and ends_at is not None:
        raise GopdError(f"{diverged[0]}; ended by --stop-on-divergence after step {ends_at}")


def _answered(
    cast: Cast,
    config: MergeConfig,
    asked: Sequence[tuple[Prompt, str, int]],
    alphas: Mapping[str, float],
    clock: Clock,
    micro_batch_size: int,
) -> tuple[Rollout, Target]:
    """Answers to the prompts, each of its domain and from its seed, and their target. It can be done again."""
    with clock.measure("rollout"):
        rollout = _respond(cast, config, asked, pieces=config.micro_batch_size // micro_batch_size)
    with clock.measure("score"):
        return rollout, _target(cast, config.model_copy(update={"micro_batch_size": micro_batch_size}), rollout, alphas)


def _offenders(
    cast: Cast,
    config: MergeConfig,
    rollout: Rollout,
    statistics: TokenStatistics,
    prompts: Sequence[Prompt],
    alphas: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Whose gradient is not finite, see `offending_rows`."""
    teachers = {d: " ".join(reward.teacher.adapter for reward in cast.aims[d].rewards) for d in config.domains}
    return offending_rows(rollout, statistics, [p.prompt for p in prompts], [teachers[d] for d in rollout.domains], alphas)


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

    def state_dict(self) -> dict[str, Any]:
        """The controller's, if there is one."""
        return self._controller.state_dict() if self._controller else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        if self._controller:
            self._controller.load_state_dict(state)


def _order(config: MergeConfig) -> Order:
    """In which the domains' prompts come."""
    if config.method == "alternate":
        return "one after the other"
    return "in turns" if config.rotate == "step" else "sorted" if config.balance else "together"


def _respond(cast: Cast, config: MergeConfig, asked: Sequence[tuple[Prompt, str, int]], pieces: int) -> Rollout:
    """One response to each prompt, of its domain and from its seed, so many at once as make `pieces` batches; none to none."""
    if not asked:
        return unasked(cast.backbone.device)
    parts = []
    size = -(-len(asked) // pieces)
    for start in range(0, len(asked), size):
        prompts, domains, seeds = zip(*asked[start : start + size], strict=True)
        texts, given = [prompt.prompt for prompt in prompts], [prompt.response for prompt in prompts]
        parts.append(respond(cast, config.method, texts, domains, given, config.trained_tokens, seeds))
    return joined(parts, range(len(asked)), int(cast.backbone.tokenizer.pad_token_id)) if len(parts) > 1 else parts[0]


def _target(cast: Cast, config: MergeConfig, rollout: Rollout, alphas: Mapping[str, float]) -> Target:
    if config.method in LEARNT_BY_HEART:
        return unscored(rollout)
    sizes = _sizes(config)
    return score(cast, rollout, _scale(config, alphas), sizes.micro_batch_size, sizes.chunk_tokens, sizes.top_k)


def _scale(config: MergeConfig, alphas: Mapping[str, float]) -> Scale:
    return Scale(alphas, rule_of(config), measured=config.adaptive == "run" or config.shard_base)


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


def _accumulate(
    cast: Cast,
    config: MergeConfig,
    rollout: Rollout,
    target: Target,
    num_tokens: int,
    domains: Sequence[str],
    room: Room,
    processes: Processes,
) -> tuple[TokenStatistics, dict[str, float]]:
    """The gradient of the whole step, of `num_tokens` and these domains, and its norm by domain where that was measured."""
    estimator = "cross_entropy" if config.method in LEARNT_BY_HEART else config.estimator
    parameters = cast.backbone.student_parameters()

    def own(micro_batch_size: int) -> tuple[TokenStatistics, dict[str, float]]:
        for parameter in parameters:  # of an attempt for which memory did not last
            parameter.grad = None
        options = (cast, rollout, target, estimator, micro_batch_size, config.chunk_tokens, config.top_k)
        if config.balance:
            return accumulate_balanced(*options, num_tokens, domains, processes.summed)
        return accumulate_gradient(*options, num_tokens=num_tokens), {}

    statistics, norms = room.fit(own)
    if not config.balance:
        processes.sum_gradients(parameters)
    return statistics, norms


def train_student(
    backbone: Backbone, config: MergeConfig, inputs: Inputs, folder: Path, clock: Clock, listener: Listener, processes: Processes = ALONE
) -> tuple[MergeConfig, dict[str, Any], int]:
    """Run the loop and write the student to `folder`, read back and verified; of several processes one does.

    It goes on from the newest checkpoint in `folder`, if there is one; a run that is stopped leaves one of its last full step.
    Returns the config that was used, with everything settled; the last step's metrics; the number of response tokens seen.
    Raises VerificationError.
    """
    learning_rate = config.learning_rate or default_learning_rate(backbone.hidden_size)
    config = config.model_copy(update={"learning_rate": learning_rate})
    backbone.recompute_activations(config.activation_checkpointing)
    checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint_every, config.checkpoint_minutes, config.keep_checkpoints)

    def save_while_waiting() -> None:  # for a server; from any thread
        checkpoints.save()

    with assembled(backbone, config, inputs, listener.note, save_while_waiting, processes) as cast:
        metrics, tokens = distill(cast, config, inputs, folder, clock, listener, processes, checkpoints)
    if processes.is_first:
        backbone.save_student(folder, inputs.base.name, inputs.base.commit)
        artefacts.verify_adapter(backbone, folder, [p.prompt for s in inputs.prompts for p in s.prompts[:4]])
    return pin(config, inputs), metrics, tokens
