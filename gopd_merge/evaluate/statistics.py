"""Intervals, paired tests and the one row in which every measurement is kept. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Result:
    """One score, in the schema of everything that is measured (`--json`, merge.json, eval/results). Null where a field does not apply."""

    suite: str
    domain: str
    method: str  # base, expert:<domain>, average, task_arithmetic, opd, exopd
    parameters: dict[str, Any] | None
    alpha: float | None
    split: str
    seed: int
    n: int
    k: int
    temperature: float
    score: float
    low: float  # 95 % Wilson interval over questions
    high: float
    length_mean: float  # tokens
    length_capped: float  # share of answers that the length limit cut


@dataclass(frozen=True)
class Comparison:
    """Is `method` better than `rival` on the same questions?"""

    domain: str
    method: str
    rival: str
    difference: float  # of accuracies, method minus rival
    p: float  # exact McNemar test, two-sided, Holm-corrected over the domains compared together

    @property
    def better(self) -> bool:
        """Whether more than chance speaks for the method."""
        return self.difference > 0 and self.p < 1 - CONFIDENCE


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's score interval)."""
    interval = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact p that two methods are equally good, from paired answers: only questions where they differ speak."""
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method, in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def compare(method: str, rival: str, answers: Mapping[str, tuple[Sequence[bool], Sequence[bool]]]) -> list[Comparison]:
    """Paired comparison by domain; `answers` holds the method's and the rival's verdicts on the same questions."""
    raw = [mcnemar_p(ours, theirs) for ours, theirs in answers.values()]
    differences = [(sum(ours) - sum(theirs)) / len(ours) for ours, theirs in answers.values()]
    return [Comparison(domain, method, rival, difference, p) for domain, difference, p in zip(answers, differences, holm(raw), strict=True)]
