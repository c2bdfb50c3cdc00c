"""What one domain's metrics say over a few steps: the controller and the warnings judge a run by the same signs.

One step's metrics are noisy, so nothing is judged by a single step. The first window is what is normal for these prompts.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WINDOW = 5  # steps
ENTROPY_LEFT = 0.5  # of the first window's: below that it has collapsed
LENGTH_GROWTH = 1.5  # times the first window's: above that responses run away
MORE_CAPPED = 0.1  # of all responses, more than in the first window: the same, where the limit hides the growth
STANDARD_ERRORS = 2.0  # further apart than that is more than noise

DomainMetrics = Mapping[str, float | None]  # one domain's entry of `update.domain_metrics`


@dataclass(frozen=True)
class Window:
    """Means over some steps of one domain: nats a token, tokens, shares. None where a step did not have the number."""

    response_length: float
    capped: float | None  # None where a horizon cuts responses before it is known
    entropy: float | None
    kl_to_target: float | None
    kl_error: float | None  # standard error of the mean
    reward: float | None  # log π_T/π_r
    reward_error: float | None
    alpha: float | None
    clipped_share: float | None
    engine_gap: float | None  # None where the student itself samples


def window_of(rows: Sequence[DomainMetrics]) -> Window:
    """Summarise at least two steps."""
    length = _mean(rows, "response_length")
    assert length is not None  # every response has a length
    return Window(
        response_length=length,
        capped=_mean(rows, "capped"),
        entropy=_mean(rows, "entropy"),
        kl_to_target=_mean(rows, "kl_to_target"),
        kl_error=_error(rows, "kl_to_target"),
        reward=_mean(rows, "reward"),
        reward_error=_error(rows, "reward"),
        alpha=_mean(rows, "alpha"),
        clipped_share=_mean(rows, "clipped_share"),
        engine_gap=_mean(rows, "engine_gap"),
    )


def _values(rows: Sequence[DomainMetrics], name: str) -> list[float]:
    """One value a row, or none at all."""
    values = [value for row in rows if (value := row.get(name)) is not None]
    return values if len(values) == len(rows) else []


def _mean(rows: Sequence[DomainMetrics], name: str) -> float | None:
    values = _values(rows, name)
    return statistics.fmean(values) if values else None


def _error(rows: Sequence[DomainMetrics], name: str) -> float | None:
    values = _values(rows, name)
    return statistics.stdev(values) / math.sqrt(len(values)) if values else None


def entropy_collapsed(first: Window, now: Window) -> bool:
    """The student has all but stopped sampling: q has become a point."""
    return first.entropy is not None and now.entropy is not None and now.entropy < ENTROPY_LEFT * first.entropy


def length_exploded(first: Window, now: Window) -> bool:
    """Responses grow without end, or more and more of them end at the limit."""
    more_capped = now.capped is not None and first.capped is not None and now.capped >= first.capped + MORE_CAPPED
    return now.response_length > LENGTH_GROWTH * first.response_length or more_capped


def reward_fell(best: Window, now: Window) -> bool:
    """The student's own samples are liked less by its teacher than they once were, by more than noise."""
    return _below(now.reward, now.reward_error, best.reward, best.reward_error)


def kl_rose(nearest: Window, now: Window) -> bool:
    """The student is further from its target than it once was, by more than noise."""
    return _below(nearest.kl_to_target, nearest.kl_error, now.kl_to_target, now.kl_error)


def _below(low: float | None, low_error: float | None, high: float | None, high_error: float | None) -> bool:
    if low is None or high is None or low_error is None or high_error is None:
        return False
    return high - low > STANDARD_ERRORS * math.hypot(low_error, high_error)
