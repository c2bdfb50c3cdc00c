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
    """Means over some steps of one domain. Nats a token, tokens, shares."""

    entropy: float
    response_length: float
    capped: float
    kl_to_target: float
    kl_error: float  # its standard error
    reward: float | None  # log π_T/π_0; None where one of the two was not run
    reward_error: float | None


def window_of(rows: Sequence[DomainMetrics]) -> Window:
    """Summarise at least two steps."""
    columns = {name: [row[name] for row in rows] for name in ("entropy", "response_length", "capped", "kl_to_target", "reward")}
    known = {name: [value for value in column if value is not None] for name, column in columns.items()}
    reward, reward_error = _mean(known["reward"]) if len(known["reward"]) == len(rows) else (None, None)
    kl_to_target, kl_error = _mean(known["kl_to_target"])
    return Window(
        entropy=statistics.fmean(known["entropy"]),
        response_length=statistics.fmean(known["response_length"]),
        capped=statistics.fmean(known["capped"]),
        kl_to_target=kl_to_target,
        kl_error=kl_error,
        reward=reward,
        reward_error=reward_error,
    )


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def entropy_collapsed(first: Window, now: Window) -> bool:
    """The student has all but stopped sampling: q has become a point."""
    return now.entropy < ENTROPY_LEFT * first.entropy


def length_exploded(first: Window, now: Window) -> bool:
    """Responses grow without end, or more and more of them end at the limit."""
    return now.response_length > LENGTH_GROWTH * first.response_length or now.capped >= first.capped + MORE_CAPPED


def reward_fell(best: Window, now: Window) -> bool:
    """The student's own samples are liked less by its teacher than they once were, by more than noise."""
    if best.reward is None or now.reward is None:
        return False
    assert best.reward_error is not None
    assert now.reward_error is not None
    return best.reward - now.reward > STANDARD_ERRORS * math.hypot(best.reward_error, now.reward_error)
