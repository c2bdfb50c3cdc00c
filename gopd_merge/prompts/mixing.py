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
        rows = []
        for source in self._sets:
            first = step * self._share
            rows += [(self._at(source, first + i), source.domain) for i in range(self._share)]
        random.Random(f"{self._seed} step {step}").shuffle(rows)
        return [text for text, _ in rows], [domain for _, domain in rows]

    def _at(self, source: PromptSet, position: int) -> str:
        """The stream of a domain: all its prompts in a random order, then all again in another."""
        epoch, index = divmod(position, len(source.prompts))
        return source.prompts[self._order(source, epoch)[index]].prompt

    def _order(self, source: PromptSet, epoch: int) -> list[int]:
        known_epoch, order = self._orders.get(source.domain, (-1, []))
        if known_epoch != epoch:
            order = list(range(len(source.prompts)))
            random.Random(f"{self._seed} {source.domain} epoch {epoch}").shuffle(order)
            self._orders[source.domain] = (epoch, order)
        return order
