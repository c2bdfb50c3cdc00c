"""Successive halving: many candidates in short runs, the better half of them in longer ones, and one winner (arXiv 1502.07943). No torch.

What it costs is fixed beforehand, in optimiser steps, since a step costs every candidate about the same: all rungs before the last cost
the same, together at most BUDGET runs as long as the longest; the last rung is the winner's full run. So a sweep costs at most
BUDGET + 1 = 3 full runs, however many candidates there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

from gopd_merge.errors import InputError

BUDGET = 2  # full runs that all short ones may cost together
LEAST = 10  # steps of the shortest run: it goes as far as the full one, and in fewer strides it would stumble


@dataclass(frozen=True)
class Candidate:
    """Options of one full run."""

    alpha: float
    learning_rate: float | None  # None: the default by the base's width
    steps: int

    @property
    def slug(self) -> str:
        """What its folders are called: numbers in full, so that no two candidates share one."""
        rate = "" if self.learning_rate is None else f"-rate-{self.learning_rate!r}"
        return f"alpha-{self.alpha!r}{rate}-steps-{self.steps}"


@dataclass(frozen=True)
class Halving:
    """The rungs before the last: how many candidates are in each, and how long their runs are."""

    longest: int  # steps of the longest full run
    sizes: tuple[int, ...]  # candidates by rung, the first with all of them

    def steps(self, full: Sequence[int]) -> list[int]:
        """Steps of a rung's runs, for the `full` steps of each of its candidates: the same share of them for all, at most half.

        As long as a full run a short one would be that run itself.
        """
        rungs, of_all = len(self.sizes), sum(full)
        return [min(steps // 2, BUDGET * self.longest * steps // (rungs * of_all)) for steps in full]


def candidates(alphas: Sequence[float], learning_rates: Sequence[float], steps: Sequence[int]) -> list[Candidate]:
    """Every combination, in the order of the lists: where scores are equal the earlier one wins."""
    return [Candidate(*options) for options in product(alphas, learning_rates or (None,), steps)]


def plan(full: Sequence[int]) -> Halving:
    """The rungs for candidates with these full runs, in steps: half of the candidates go on, or as few as it takes for LEAST steps each.

    Raises InputError where not even one rung gives each that many.
    """
    halving = Halving(max(full), (len(full),))
    for cut in range(2, len(full) + 1):
        halving = Halving(max(full), _sizes(len(full), cut))
        if min(halving.steps(full)) >= LEAST:
            return halving
    scale = max(LEAST * sum(full) / BUDGET, 2 * LEAST * max(full)) / max(full) / min(full)  # by which the runs would have to be longer
    raise InputError(
        f"{len(full)} candidates: two full runs of {max(full)} steps leave the shortest of their runs {min(halving.steps(full))}, "
        f"and {LEAST} are needed; sweep over fewer values, or let the longest have {ceil(max(full) * scale)} steps"
    )


def champion(
    field: Sequence[Candidate], halving: Halving, rank: Callable[[int, Sequence[tuple[Candidate, int]]], Sequence[int]]
) -> Candidate:
    """The candidate that is left. `rank` gets a rung's number, from 1, and its candidates with their steps: their indices, best first."""
    field = list(field)
    for rung, following in enumerate((*halving.sizes[1:], 1), start=1):
        order = rank(rung, list(zip(field, halving.steps([one.steps for one in field]), strict=True)))
        field = [field[index] for index in sorted(order[:following])]
    return field[0]


def _sizes(count: int, cut: int) -> tuple[int, ...]:
    """`count`, a `cut`-th of it, and so on, as long as there is something to choose."""
    sizes = []
    while count > 1:
        sizes.append(count)
        count //= cut
    return tuple(sizes)
