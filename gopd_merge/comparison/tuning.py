"""Rivals get their coefficients as a user would choose them: the best on validation questions, over a stated grid."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from gopd_merge.comparison.contenders import Contender
from gopd_merge.comparison.measuring import TUNING, Setup, measure
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distillation import Listener
from gopd_merge.eval_config import OPD
from gopd_merge.evaluate.answers import Answer
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark
from gopd_merge.experts.deltas import load_updates
from gopd_merge.experts.intake import Expert
from gopd_merge.experts.static import RIVALS


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
    tuned = []
    for name in names:
        rival = RIVALS[name]
        grid = [dict(point) for point in rival.grid]

        def contender(parameters: dict[str, Any], rival: Any = rival) -> Contender:
            return Contender(rival.name, "static", make=lambda: rival.build(updates, parameters).updates, parameters=parameters or None)

        if not validation:
            tuned.append(Tuned(contender(grid[0]), (), ()))
            continue
        points: list[Point] = []
        means: list[list[float]] = []
        answers: list[Answer] = []
        for index, parameters in enumerate(grid):
            scores = []
            for benchmark in validation:
                label = f"{rival.name} {parameters} on {benchmark.domain}"
                listener.evaluating(index, len(grid), f"tuning {label}")
                found = measure(backbone, contender(parameters), benchmark, setup, TUNING)
                answers += found
                scores.append(sum(answer.score for answer in found) / len(found))
                points.append(Point(parameters, benchmark.suite.name, benchmark.domain, len(benchmark.items), scores[-1]))
            means.append(scores)
        best = best_row(means, [benchmark.metric for benchmark in validation])
        tuned.append(Tuned(contender(grid[best]), tuple(points), tuple(means[best]), tuple(answers)))
    return tuned


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
        values = rankdata(values, axis=0)
    return int(values.mean(axis=1).argmax())
