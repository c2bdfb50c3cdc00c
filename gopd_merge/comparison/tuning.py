"""Rivals get their coefficients as a user would choose them: the best on validation questions, over a stated grid."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy

from gopd_merge.comparison.contenders import Contender
from gopd_merge.comparison.measuring import TUNING, Setup, measure
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distillation import Listener
from gopd_merge.eval_config import OPD
from gopd_merge.evaluate.answers import Answer
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark
from gopd_merge.experts.deltas import Update, Updates, load_updates
from gopd_merge.experts.intake import Expert
from gopd_merge.experts.static import RIVALS, Merged, Parameters, Rival


@dataclass(frozen=True)
class Point:
    """One point of a rival's grid on one benchmark's validation questions."""

    parameters: dict[str, Any]
    suite: str
    domain: str
    n: int
    score: float


@dataclass(frozen=True)
class Tuned:
    """A static merge with the coefficients that were chosen."""

    contender: Contender
    points: tuple[Point, ...]  # of the whole grid
    scores: tuple[float, ...]  # of the chosen point, by validation benchmark; empty where there are none
    lost: float  # share of its squared norm that does not fit into an adapter, see `experts.static.Merged`
    answers: tuple[Answer, ...] = field(default=(), repr=False)  # that tuning took


def tune(
    rivals: Sequence[str], experts: Sequence[Expert], backbone: Backbone, validation: Sequence[Benchmark], setup: Setup, listener: Listener
) -> list[Tuned]:
    """Every static rival at its best. Experts that are no plain LoRAs have no static merges: then there are none, and a note says so."""
    names = [name for name in rivals if name != OPD]
    if names and not all(expert.is_plain for expert in experts):
        listener.note(
            "static merges are not defined for these experts (DoRA, LoRA bias, adapted embeddings and saved modules are no B · A)"
        )
        return []
    if not names:
        return []
    updates = [load_updates(expert) for expert in experts]
    return [_tuned(Builder(RIVALS[name], updates), backbone, validation, setup, listener) for name in names]


@dataclass(frozen=True, eq=False)
class Builder:
    """Builds a rival at any point of its grid, one point's work serving for all that differ in the coefficient alone."""

    rival: Rival
    experts: list[Updates]

    def contender(self, parameters: Parameters) -> Contender:
        """The rival with these parameters, to be built when it answers."""
        return Contender(self.rival.name, "static", make=lambda: self.merged(parameters).updates, parameters=dict(parameters) or None)

    def merged(self, parameters: Parameters) -> Merged:
        """The merge: every coefficient multiplies the whole of it."""
        coefficient = parameters.get("coefficient")
        if coefficient is None:
            return self.rival.build(self.experts, parameters)
        one = _unscaled(self, tuple(sorted((parameters | {"coefficient": 1.0}).items())))
        return Merged({module: Update(update.a, update.b * coefficient) for module, update in one.updates.items()}, one.lost)


@functools.lru_cache(maxsize=1)  # one of all rivals: it may be as large as the base
def _unscaled(builder: Builder, parameters: tuple[tuple[str, float], ...]) -> Merged:
    return builder.rival.build(builder.experts, dict(parameters))


def _tuned(builder: Builder, backbone: Backbone, validation: Sequence[Benchmark], setup: Setup, listener: Listener) -> Tuned:
    """One rival at the best point of its grid; at the first one where there are no validation questions."""
    grid = builder.rival.grid
    points: list[Point] = []
    scores: list[list[float]] = []
    answers: list[Answer] = []
    for index, parameters in enumerate(grid if validation else ()):
        contender = builder.contender(parameters)
        scores.append([])
        for benchmark in validation:
            values = " ".join(f"{name} {value:g}" for name, value in parameters.items())
            listener.evaluating(index, len(grid), f"tuning {builder.rival.name} {values} on {benchmark.domain}")
            found = measure(backbone, contender, benchmark, setup, TUNING)
            answers += found
            scores[-1].append(sum(answer.score for answer in found) / len(found))
            points.append(Point(dict(parameters), benchmark.suite.name, benchmark.domain, len(benchmark.items), scores[-1][-1]))
    best = best_row(scores, [benchmark.metric for benchmark in validation]) if scores else 0
    lost = builder.merged(grid[best]).lost
    return Tuned(builder.contender(grid[best]), tuple(points), tuple(scores[best]) if scores else (), lost, tuple(answers))


def best_static(tuned: Sequence[Tuned], validation: Sequence[Benchmark]) -> Tuned | None:
    """The static merge that a user would take: the best on the validation questions, not on the test."""
    if not tuned or not tuned[0].scores:
        return tuned[0] if tuned else None
    return tuned[best_row([one.scores for one in tuned], [benchmark.metric for benchmark in validation])]


def best_row(scores: Sequence[Sequence[float]], metrics: Sequence[str]) -> int:
    """Index of the row with the highest mean score; the first of equals.

    Where accuracies and log-likelihood ratios meet, which have no common scale, it is the highest mean rank.
    """
    values = np.asarray(scores)  # (rows, benchmarks)
    if len({metric == EXPERT_REWARD for metric in metrics}) > 1:
        values = scipy.stats.rankdata(values, axis=0)
    return int(values.mean(axis=1).argmax())
