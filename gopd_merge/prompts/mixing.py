"""Which prompts a step asks: the same number of each domain, shuffled together; or one domain a step, in turns or one after the other."""

import random  # seeded and reproducible, not secret
from collections.abc import Sequence
from typing import Literal

from gopd_merge.prompts.sources import Prompt, PromptSet

Order = Literal["together", "sorted", "in turns", "one after the other"]


class PromptMixer:
    """A function of the step and the seed alone, so that a run can be taken up again at any step."""

    def __init__(self, sets: Sequence[PromptSet], batch_size: int, seed: int, order: Order = "together", steps: int = 1) -> None:
        """`sorted` is `together` with each domain's prompts in one piece; `steps` of the whole run are divided `one after the other`."""
        self._sets = sorted(sets, key=lambda s: s.domain)
        self._share = batch_size // len(self._sets)
        self._seed = seed
        self._order_of_domains = order
        self._steps = steps
        self._orders: dict[str, tuple[int, list[int]]] = {}  # by domain: the last epoch asked for, and its order

    def batch(self, step: int) -> tuple[list[Prompt], list[str]]:
        """Prompts and domains of step `step` (from 0), as many as `batch_size` holds of each domain equally."""
        rows = self.positions(step)
        return [source.prompts[index] for source, index in rows], [source.domain for source, _ in rows]

    def positions(self, step: int) -> list[tuple[PromptSet, int]]:
        """The same as sets and indices of their prompts."""
        count = len(self._sets)
        if self._order_of_domains in ("together", "sorted"):
            asked = [(source, step * self._share, self._share) for source in self._sets]
        elif self._order_of_domains == "in turns":
            asked = [(self._sets[step % count], step // count * self._share * count, self._share * count)]
        else:
            turn = step * count // self._steps
            began = -(-turn * self._steps // count)  # the first step of this domain
            asked = [(self._sets[turn], (step - began) * self._share * count, self._share * count)]
        rows = [(source, self._at(source, first + i)) for source, first, number in asked for i in range(number)]
        if self._order_of_domains != "sorted":
            random.Random(f"{self._seed} step {step}").shuffle(rows)
        return rows

    def _at(self, source: PromptSet, position: int) -> int:
        """The stream of a domain: all its prompts in a random order, then all again in another."""
        epoch, index = divmod(position, source.size)
        return self._order(source, epoch)[index]

    def _order(self, source: PromptSet, epoch: int) -> list[int]:
        known_epoch, order = self._orders.get(source.domain, (-1, []))
        if known_epoch != epoch:
            order = list(range(source.size))
            random.Random(f"{self._seed} {source.domain} epoch {epoch}").shuffle(order)
            self._orders[source.domain] = (epoch, order)
        return order
