"""Arrays that have a size and no values, counted for as long as anything refers to them, and the way of a gradient back through them.

What PyTorch would hold is what is held here, if the same things are made and let go in the same order. No torch.
"""

from collections.abc import Callable, Sequence

Back = Callable[["list[Array]"], "list[Array]"]  # takes the gradient of what was made out of its list; gives those of the sources


class Ledger:
    """Counts the bytes of the arrays that live, and the most that there have been."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.gradients: list[Array] = []  # of what is trained: they stay
        self._steps = 0

    def new(self, size: int) -> "Array":
        """An array of so many bytes."""
        return Array(Storage(self, size))

    def recorded(self, made: "Array", sources: Sequence["Array"], back: Back | None) -> "Array":
        """The array with a way back to those of its sources that have one themselves. Without `back` it is a leaf.

        `back` holds the storages that must be kept for it, and gives a gradient for each of these sources, in their order.
        """
        self._steps += 1
        return Array(made.storage, Step(self._steps, [source.step for source in sources if source.step], back))


class Storage:
    """Bytes that are taken from its making until the last reference to it is gone."""

    __slots__ = ("_ledger", "size")

    def __init__(self, ledger: Ledger, size: int) -> None:
        self._ledger, self.size = ledger, size
        ledger.now += size
        ledger.peak = max(ledger.peak, ledger.now)

    def __del__(self) -> None:
        self._ledger.now -= self.size


class Step:
    """An operation that a gradient goes back through. As in autograd it knows its sources' steps, not the sources."""

    __slots__ = ("back", "number", "sources")

    def __init__(self, number: int, sources: "list[Step]", back: Back | None) -> None:
        self.number, self.sources, self.back = number, sources, back


class Array:
    """A tensor: a storage, which views share, and the step that made it; None where no gradient is wanted."""

    __slots__ = ("step", "storage")

    def __init__(self, storage: Storage, step: Step | None = None) -> None:
        self.storage, self.step = storage, step

    @property
    def size(self) -> int:
        """Bytes."""
        return self.storage.size


def go_back(ledger: Ledger, last: Step | None, gradient: list[Array]) -> list[Array]:
    """Take a gradient, the one in the list, back from the last step, letting go of what was kept on the way. Returns those of leaves."""
    assert last is not None
    waiting = {last: gradient}
    leaves: list[Array] = []
    while waiting:
        step = max(waiting, key=lambda one: one.number)
        arrived = waiting.pop(step)
        if step.back is None:
            leaves += arrived
            continue
        found = step.back(arrived)
        step.back = None
        for source in step.sources:
            there = waiting.setdefault(source, [])
            there.append(found.pop(0))
            if len(there) == 2:  # two uses of one array: their sum, then both go
                there.append(ledger.new(there[0].size))
                del there[:2]
    return leaves
