"""How good the expert is on examples that it is not trained on: right answers, preferred answers, or loss, each with its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.rollout import answers, generate, row_seeds, written
from gopd_merge.evaluate.statistics import scores_of, summarise, t_interval
from gopd_merge.train_config import TrainConfig
from gopd_merge.training.inputs import TrainingInputs
from gopd_merge.training.reading import Example
from gopd_merge.training.rewards import Rewards

Metric = Literal["accuracy", "reward", "preferred", "loss"]
UNCUT = 1 << 30  # tokens: what was checked against the context is not cut again
ROUNDING = 1e-4  # nats; what a pair has gained or lost by less has not moved
ROWS = 64  # answers sampled at once


@dataclass(frozen=True)
class Score:
    """One validation: a mean over `n` examples with its 95 % interval."""

    step: int
    metric: Metric
    score: float
    low: float
    high: float
    n: int

    def beats(self, other: "Score") -> bool:
        """Whether it is better, by however little: a loss where it is lower. Of equal shares the later one has learned more."""
        if self.metric == "loss":
            return self.score < other.score
        return self.score > other.score or (self.score == other.score and self.step > other.step)


class Validator:
    """Measures the student on the first `eval_prompts` validation examples."""

    def __init__(self, backbone: Backbone, config: TrainConfig, inputs: TrainingInputs, rewards: Rewards, reference: str) -> None:
        """`reference` is the role that dpo's preferences are measured against."""
        self._backbone, self._config, self._rewards, self._reference = backbone, config, rewards, reference
        self.examples = inputs.splits["validation"][: config.eval_prompts]
        self.metric: Metric = metric_of(config, inputs)

    def measure(self, step: int, told: Callable[[int, int], None] = lambda done, total: None) -> Score | None:
        """The score after `step` steps; None without validation examples, or with one of which no interval follows."""
        if len(self.examples) < 2:
            return None
        values: list[float] = []
        for first in range(0, len(self.examples), ROWS):
            told(first, len(self.examples))
            values += self._values(self.examples[first : first + ROWS], first)
        told(len(self.examples), len(self.examples))
        return summed_up(step, self.metric, values)

    def _values(self, examples: Sequence[Example], first: int) -> list[float]:
        if self.metric == "loss":
            found = response_log_probs(self._backbone, STUDENT, [e.prompt for e in examples], [e.response or "" for e in examples])
            return [-float(row.mean()) for row in found]
        if self.metric == "preferred":
            return [0.5 if abs(margin) < ROUNDING else float(margin > 0) for margin in self._margins(examples)]
        seeds = row_seeds(self._config.seed, "validation", first, count=len(examples))
        texts = sampled(self._backbone, STUDENT, [e.prompt for e in examples], seeds, self._config)
        return self._rewards.of(examples, texts)

    def _margins(self, examples: Sequence[Example]) -> list[float]:
        """How much more the student has moved toward the chosen response than toward the rejected one, in nats."""
        prompts = [e.prompt for e in examples]
        sums = {}
        for side in ("chosen", "rejected"):
            responses = [getattr(e, side) for e in examples]
            for role in (STUDENT, self._reference):
                sums[side, role] = [float(row.sum()) for row in response_log_probs(self._backbone, role, prompts, responses)]
        moved = {side: np.subtract(sums[side, STUDENT], sums[side, self._reference]) for side in ("chosen", "rejected")}
        return list(np.subtract(moved["chosen"], moved["rejected"]))


def metric_of(config: TrainConfig, inputs: TrainingInputs) -> Metric:
    """What tells best how good the expert is: its answers where they can be graded."""
    if config.reward:
        return "reward"
    if inputs.recipe == "dpo":
        return "preferred"
    graded = all(example.is_gradable for example in inputs.splits["validation"])
    return "accuracy" if config.reward_regex or graded else "loss"


def summed_up(step: int, metric: Metric, values: Sequence[float]) -> Score:
    """The mean, with the interval that fits its kind."""
    if metric in ("accuracy", "preferred"):
        found = summarise(scores_of([f"{i:09d}" for i in range(len(values))], values))
        return Score(step, metric, found.score, found.low, found.high, found.n)
    low, high = t_interval(values)
    return Score(step, metric, float(np.mean(values)), low, high, len(values))


def sampled(backbone: Backbone, role: str, prompts: Sequence[str], seeds: Sequence[int], config: TrainConfig) -> list[str]:
    """An answer of that role to each prompt, as text."""
    rollout = generate(backbone, role, prompts, ("",) * len(prompts), config.max_new_tokens, seeds, config.temperature)
    return list(answers(backbone, rollout).texts)


@torch.no_grad()
def response_log_probs(backbone: Backbone, role: str, prompts: Sequence[str], responses: Sequence[str], rows: int = 8) -> list[Tensor]:
    """log π of each token of each response, its end included: one (T,) float32 tensor a response. `rows` run at once."""
    found: list[Tensor] = []
    for first in range(0, len(prompts), rows):
        part = slice(first, first + rows)
        rollout = written(backbone, prompts[part], responses[part], ("",) * len(prompts[part]), UNCUT)
        hidden = rollout.predicting(backbone.hidden(role, rollout.ids, rollout.attention_mask))  # (N, H)
        log_probs = backbone.logits(hidden, role).log_softmax(-1).gather(-1, rollout.response_ids().unsqueeze(-1)).squeeze(-1)  # (N,)
        found += torch.split(log_probs, rollout.response_mask.sum(1).tolist())
    return found
