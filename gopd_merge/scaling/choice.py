"""Which α to take: the largest that is not worse than the best on the same validation questions. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gopd_merge.evaluate.statistics import Scores, difference_interval
from gopd_merge.report.lines import Interval, difference_text

NOT_CHOSEN = (
    "α is not chosen: the score is the expert's own reward, which grows with α whether the answers are good or not; "
    "judge some answers, and give α as a number"
)


@dataclass(frozen=True)
class Choice:
    """An α and why."""

    alpha: float
    why: str  # one sentence, with its numbers


def choose(scores: Mapping[float, Scores]) -> Choice:
    """The largest α of which the paired 95 % interval of (best − it) includes zero; of equally good ones the largest is the best.

    Args:
        scores: by α, of right answers (0 to 1) to the same questions. Raises ValueError where the questions differ.
    """
    if len({one.ids for one in scores.values()}) != 1:
        raise ValueError("scores of different questions cannot be paired; ask the same at every α")
    best = max(scores, key=lambda alpha: (scores[alpha].by_question.mean(), alpha))
    behind = {alpha: _behind(scores[best], one) for alpha, one in scores.items()}
    chosen = max(alpha for alpha, (_, low, _) in behind.items() if alpha == best or low <= 0)
    n = len(scores[best].ids)
    best_text = f"{scores[best].by_question.mean():.1%}"
    if chosen == best:
        why = f"α = {best:g} scores best, {best_text} of {n:,} questions"
    else:
        why = (
            f"α = {chosen:g} is the largest that is not worse than the best, α = {best:g} with {best_text} of {n:,} questions: "
            f"best minus it is {difference_text(behind[chosen], True)} points"
        )
    return Choice(chosen, why + _beyond(sorted(scores), chosen, behind))


def _behind(best: Scores, other: Scores) -> Interval:
    """Best minus other with the 95 % interval of the paired difference."""
    differences = best.by_question - other.by_question
    return float(np.mean(differences)), *difference_interval(differences)


def _beyond(alphas: list[float], chosen: float, behind: Mapping[float, Interval]) -> str:
    """What is known of the others; the end of the sentence."""
    larger = [alpha for alpha in alphas if alpha > chosen]
    if not larger:
        return "; it is the largest that was tried, so a larger one may do as well"
    ending = f"; α = {larger[0]:g} is behind the best by {difference_text(behind[larger[0]], True)} points"
    if chosen == alphas[0] > 0:
        ending += ", and no smaller one was tried"
    return ending
