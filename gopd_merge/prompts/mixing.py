"""Which prompts a step asks: the same number of each domain, shuffled together."""

import random  # seeded and reproducible, not secret
from collections.abc import Sequence

from gopd_merge.prompts.sources import PromptSet


class PromptMixer:
    """A function of the step and the seed alone, so that a run can be taken up again at any step."""

    def __init__(self, sets: Sequence[PromptSet], batch_size: int, seed: int) -> None:
        self._sets = sorted(sets, key=lambda s: s.domain)
        self._share = batch_size // len(self._sets)
        self._seed = seed
        self._orders: dict[str, tuple[int, list[int]]] = {}  # by domain: the last epoch asked for, and its order

    def batch(self, step: int) -> tuple[list[str], list[str]]:
        """Texts and domains of step `step` (from 0), both of length batch_size."""
        rows = self.positions(step)
        return [source.prompts[index].prompt for source, index in rows], [source.domain for source, _ in rows]

    def positions(self, step: int) -> list[tuple[PromptSet, int]]:
        """The same as sets and indices of their prompts."""
        first = step * self._share
        rows = [(source, self._at(source, first + i)) for source in self._sets for i in range(self._share)]
        random.Random(f"{self._seed} step {step}").shuffle(rows)
        return rows

    def _at(self, source: PromptSet, position: int) -> int:
        """The stream of a domain: all its prompts in a random order, then all again in another."""
        epoch, index = divmod(position, len(source.prompts))
        return self._order(source, epoch)[index]

    def _order(self, source: PromptSet, epoch: int) -> list[int]:
        known_epoch, order = self._orders.get(source.domain, (-1, []))
        if known_epoch != epoch:
            order = list(range(len(source.prompts)))
            random.Random(f"{self._seed} {source.domain} epoch {epoch}").shuffle(order)
            self._orders[source.domain] = (epoch, order)
        return order
