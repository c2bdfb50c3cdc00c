"""λ where one number for the whole run will not do: guards, λ by token, by step, and by what the run shows.

The first three look at probabilities, not at hidden states: with them a token's target needs teacher and reference projected apart.

n is the number of tokens, V the size of the vocabulary; all log-probabilities are normalised over V and finite.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from gopd_merge.distill.windows import WINDOW, DomainMetrics, Window, entropy_collapsed, length_exploded, reward_fell, window_of
from gopd_merge.errors import InputError


def bounded_log_ratio(log_teacher: Tensor, log_ref: Tensor, bound: float) -> Tensor:
    """log π_T/π_r, clipped to ±bound.

    In the tail, where both probabilities are tiny, the ratio is noise of the number format, and λ − 1 > 0 multiplies it.

    Args:
        log_teacher: (n, V) log π_T.
        log_ref: (n, V) log π_r.
        bound: in nats, above 0.

    Returns:
        (n, V). The target is log π_kl plus λ times it, normalised anew; at λ = 1 that is no longer the teacher.
    """
    return (log_teacher - log_ref).clamp(-bound, bound)


def guarded_alpha(alpha: Tensor, log_teacher: Tensor, threshold: float) -> Tensor:
    """λ = 1 where the teacher is all but certain of one token: extrapolating there changes nothing but noise.

    A λ below 1 does not extrapolate and stays.

    Args:
        alpha: (n,) λ of each token.
        log_teacher: (n, V) log π_T.
        threshold: the teacher's largest probability above which λ is at most 1; between 0 and 1.

    Returns:
        (n,)
    """
    certain = log_teacher.amax(-1) > math.log(threshold)  # (n,)
    return alpha.clamp(max=1).where(certain, alpha)


def token_alpha(alpha: Tensor, log_teacher: Tensor, log_ref: Tensor) -> Tensor:
    """1 + (λ − 1)·g: extrapolate as much as teacher and reference disagree.

    g is their total variation distance, ½ Σ|π_T − π_r|: 0 where training changed nothing, 1 where it changed everything.

    Args:
        alpha: (n,) λ of each token.
        log_teacher: (n, V) log π_T.
        log_ref: (n, V) log π_r.

    Returns:
        (n,) between 1 and λ.
    """
    distance = (log_teacher.exp() - log_ref.exp()).abs().sum(-1) / 2  # (n,)
    return 1 + (alpha - 1) * distance


def schedule(start: float, end: float, step: int, steps: int) -> float:
    """λ of a step, from 0 to steps − 1, on the straight line from `start` at the first one to `end` at the last."""
    return start + (end - start) * step / max(steps - 1, 1)


class Controller:
    """λ of every domain, lowered when the run shows trouble and raised while it is calm.

    It decides at the end of each window of a domain's own steps, and the first window is what that domain is compared with.
    """

    def __init__(
        self, start: Mapping[str, float], highest: float, *, lowest: float = 1.0, window: int = WINDOW, rise: float = 0.1, fall: float = 0.5
    ) -> None:
        """`start` is λ by domain. In calm λ rises by `rise`; in trouble what it has above `lowest` is multiplied by `fall`.

        Raises InputError for a start that is not between `lowest` and `highest`.
        """
        for domain, alpha in start.items():
            if not lowest <= alpha <= highest:
                raise InputError(f"adaptive α of {domain} starts at {alpha:g}; it must lie between {lowest:g} and {highest:g}")
        self.alphas = dict(start)
        self.lowest, self.highest = lowest, highest
        self.window, self.rise, self.fall = window, rise, fall
        self._rows: dict[str, list[DomainMetrics]] = {domain: [] for domain in start}  # of the window that is not yet full
        self._first: dict[str, Window] = {}
        self._best: dict[str, Window] = {}  # the highest reward since λ was last lowered

    def update(self, domains: Mapping[str, DomainMetrics]) -> dict[str, float]:
        """Take one step's metrics by domain (`update.domain_metrics`) and return λ of every domain for the next step.

        A domain that had no prompts in the step may be missing.
        """
        for domain, metrics in domains.items():
            self._rows[domain].append(metrics)
            if len(self._rows[domain]) == self.window:
                now = window_of(self._rows[domain])
                self._rows[domain] = []
                self._decide(domain, now)
        return dict(self.alphas)

    def _decide(self, domain: str, now: Window) -> None:
        first = self._first.setdefault(domain, now)
        best = self._best.get(domain, now)
        if entropy_collapsed(first, now) or length_exploded(first, now) or reward_fell(best, now):
            self.alphas[domain] = self.lowest + self.fall * (self.alphas[domain] - self.lowest)
            self._best.pop(domain, None)  # less λ means less reward: that is no trouble
            return
        self.alphas[domain] = min(self.alphas[domain] + self.rise, self.highest)
        if best.reward is None or (now.reward is not None and now.reward >= best.reward):
            best = now
        self._best[domain] = best

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while it runs, as JSON can hold it."""
        return {
            "alphas": dict(self.alphas),
            "rows": {domain: [dict(row) for row in rows] for domain, rows in self._rows.items()},
            "first": {domain: asdict(window) for domain, window in self._first.items()},
            "best": {domain: asdict(window) for domain, window in self._best.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken. Raises InputError for the state of other domains."""
        if set(state["alphas"]) != set(self.alphas):
            raise InputError(f"the saved α is of {', '.join(sorted(state['alphas']))}; this run has {', '.join(sorted(self.alphas))}")
        self.alphas = dict(state["alphas"])
        self._rows = {domain: list(rows) for domain, rows in state["rows"].items()}
        self._first = {domain: Window(**window) for domain, window in state["first"].items()}
        self._best = {domain: Window(**window) for domain, window in state["best"].items()}
