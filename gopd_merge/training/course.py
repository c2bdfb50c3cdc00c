"""What goes on around the updates of a trainer: checkpoints, validation, the best adapter, early stop, and rewards that say nothing."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback

from gopd_merge.disk import append_json_line, read_json_lines, remove, whole_folder, write_json, write_json_lines
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.checkpoint import STATE, Checkpoint, Checkpoints, load_optimizer, save_optimizer
from gopd_merge.distill.rollout import row_seeds
from gopd_merge.distill.skipping import IN_A_ROW, Skipping
from gopd_merge.errors import GopdError
from gopd_merge.experts.base import Base
from gopd_merge.stopping import undisturbed
from gopd_merge.train_config import TrainConfig
from gopd_merge.training.inputs import TrainingInputs
from gopd_merge.training.reading import Example
from gopd_merge.training.rewards import Rewards, constant, nothing_to_learn
from gopd_merge.training.scoring import Score, Validator
from gopd_merge.usage import Clock, peak_memory

METRICS = "metrics.jsonl"
BEST = "best-"  # and the step, of a folder
IDLE = 10  # steps in a row in which no prompt had two answers of different reward
LOGGED = {  # trl's names -> ours
    "loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate", "reward": "reward", "entropy": "entropy", "kl": "kl",
    "completions/mean_length": "length", "completions/clipped_ratio": "capped", "rewards/accuracies": "preferred",
}  # fmt: skip


class Listener(Protocol):
    """What a training tells while it runs. The command line draws it; `SilentTraining` ignores it."""

    def started(self, config: TrainConfig, inputs: TrainingInputs) -> None: ...
    def phase(self, text: str) -> None: ...
    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None: ...
    def evaluating(self, done: float, total: int, method: str) -> None: ...
    def scored(self, score: Score, steps: int) -> None: ...
    def note(self, text: str) -> None: ...


class Course(TrainerCallback):  # type: ignore[misc] # Transformers is not typed
    """The run as it is after its last full step."""

    def __init__(
        self,
        backbone: Backbone,
        config: TrainConfig,
        steps: int,
        folder: Path,
        base: Base,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
        validator: Validator,
        rewards: Rewards,
        checkpoints: Checkpoints,
        clock: Clock,
        listener: Listener,
    ) -> None:
        self._backbone, self._config, self._folder, self._base = backbone, config, folder, base
        (self._optimizer, self._schedule), self._validator, self._rewards = optimizers, validator, rewards
        self._checkpoints, self._clock, self._listener = checkpoints, clock, listener
        self.steps, self.step = steps, 0
        self.every = config.eval_every or max(1, steps // 10)
        self.scores: list[Score] = []
        self.best: Score | None = None
        self.stopped: str | None = None  # why it ended before its last step
        self._saved = 0  # the last step of which there is a checkpoint
        self._in_between = False  # whether a full step was begun and not written down
        self._signal = Signal()
        self._skipping = Skipping()
        self._rewarded: dict[str, Any] = {}  # of the step under way
        self._undisturbed = ExitStack()

    # --- going on ---

    def take_up(self, found: Checkpoint | None) -> None:
        """Go on from a checkpoint, if there is one."""
        if found is None:
            remove(self._folder, [METRICS])
            return
        self._backbone.load_student(found.folder)
        load_optimizer(self._optimizer, found.folder)
        state = found.state
        self._schedule.load_state_dict(state["schedule"])
        self._clock.load_state_dict(state["clock"])
        self._skipping.load_state_dict(state["skipping"])
        self._signal, self.stopped = Signal(**state["signal"]), state["stopped"]
        self.scores = [Score(**score) for score in state["scores"]]
        self.best = Score(**state["best"]) if state["best"] else None
        self._rewards.failures, self._rewards.calls = Counter(state["failures"]), state["calls"]
        self.step = self._saved = found.step
        rows = read_json_lines(self._folder / METRICS)
        write_json_lines(self._folder / METRICS, [row for row in rows if row["step"] <= self.step])
        self._listener.note(f"going on after step {self.step}")

    def save(self) -> None:
        """A checkpoint of the last full step, unless there is one, or the next has half come. Raises OSError."""
        if self._saved == self.step or self._in_between:
            return
        with self._checkpoints.new(self.step) as folder:
            self._backbone.save_student(folder, self._base.name, self._base.commit)
            save_optimizer(self._optimizer, folder)
            state: dict[str, Any] = {
                "schedule": self._schedule.state_dict(),
                "clock": self._clock.state_dict(),
                "skipping": self._skipping.state_dict(),
            }
            state |= {"scores": [asdict(score) for score in self.scores], "best": asdict(self.best) if self.best else None}
            state |= {
                "signal": asdict(self._signal),
                "stopped": self.stopped,
                "failures": dict(self._rewards.failures),
                "calls": self._rewards.calls,
            }
            write_json(folder / STATE, state)
        self._saved = self.step
        kept = self.best_folder.name if self.best else ""
        remove(self._folder, [path.name for path in self._folder.glob(f"{BEST}*") if path.name != kept])

    @property
    def best_folder(self) -> Path:
        """The adapter of the best validation."""
        assert self.best is not None
        return self._folder / f"{BEST}{self.best.step:06d}"

    def evaluate_if_due(self) -> None:
        """Validate after this step, unless that was done; keep the adapter where it is the best of those that were trained."""
        if self.step % self.every and self.step != self.steps:
            return
        if not self.scores or self.scores[-1].step < self.step:
            self._evaluate()
        since = sum(score.step > self.best.step for score in self.scores) if self.best else 0
        if self._config.patience and since >= self._config.patience and self.step < self.steps:
            self.stopped = f"worse than at step {self.best.step if self.best else 0} for {since} validations"

    def _evaluate(self) -> None:
        with self._clock.measure("evaluate"):
            score = self._validator.measure(self.step, lambda done, total: self._listener.evaluating(done, total, "validation"))
        if score is None:
            return
        self.scores.append(score)
        self._listener.scored(score, self.steps)
        if self.step > 0 and (self.best is None or score.beats(self.best)):
            with whole_folder(self._folder / f"{BEST}{self.step:06d}") as folder:
                self._backbone.save_student(folder, self._base.name, self._base.commit)
            self.best = score

    # --- what a reward tells ---

    def reward(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """Of the answers of a step, a group of `generations` a prompt. Raises GopdError where rewards cannot teach anything."""
        failures = self._rewards.failures.copy()
        with self._clock.measure("reward"):
            rewards = self._rewards.of(examples, texts)
        failed = self._rewards.failures - failures
        self._rewarded = {"reward_failures": dict(failed)} if failed else {}
        if self._signal.is_idle(rewards, self._config.generations):
            if not self._signal.has_learned:
                problem, remedy = nothing_to_learn(constant(rewards), IDLE * len(rewards))
                raise GopdError(f"step {self.step + 1}: for {IDLE} steps {problem}; {remedy}")
            self.stopped = f"for {IDLE} steps all answers to a prompt had the same reward; nothing is left to learn from them"
        return rewards

    # --- called by the trainer ---

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What a step draws at random depends on the seed and the step alone."""
        torch.manual_seed(row_seeds(self._config.seed, "torch", self.step, count=1)[0])
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here until the step is written down no signal is heard. A gradient that is not finite changes nothing."""
        self._undisturbed.enter_context(undisturbed())
        gradients = [p.grad for p in self._backbone.student_parameters() if p.grad is not None]
        skipped = not all(gradient.isfinite().all() for gradient in gradients)
        if skipped:
            for parameter in self._backbone.student_parameters():
                parameter.grad = None
        self._skipping.count(skipped)
        self._in_between = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Called after each step, and once more at the end."""
        if not logs or "loss" not in logs:
            return
        self.step += 1
        row = {"step": self.step, **{ours: _number(logs[theirs]) for theirs, ours in LOGGED.items() if theirs in logs}, **self._rewarded}
        row |= {"seconds": round(time.perf_counter() - self._began, 3), "memory_bytes": peak_memory(self._backbone.device)}
        row |= {"skipped": self._skipping.total}
        append_json_line(self._folder / METRICS, row)
        self._in_between = False
        if self._checkpoints.is_due(self.step) or self.step == self.steps:
            self.save()
        self._undisturbed.close()
        self._listener.step(self.step, self.steps, row)
        if self._skipping.in_a_row >= IN_A_ROW:
            raise GopdError(f"step {self.step}: the gradient was not finite for {IN_A_ROW} steps in a row; lower --learning-rate")
        self.evaluate_if_due()
        if self.stopped:
            control.should_training_stop = True

    def close(self) -> None:
        """Hear signals again, whatever happened."""
        self._undisturbed.close()


@dataclass
class Signal:
    """Whether the rewards of a step differ within some prompt's answers: without that a step teaches nothing."""

    idle: int = 0  # steps in a row
    has_learned: bool = False

    def is_idle(self, rewards: Sequence[float], generations: int) -> bool:
        """Whether the last IDLE steps, this one among them, taught nothing."""
        groups = [rewards[first : first + generations] for first in range(0, len(rewards), generations)]
        taught = any(constant(group) is None for group in groups)
        self.idle = 0 if taught else self.idle + 1
        self.has_learned |= taught
        return self.idle >= IDLE


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
