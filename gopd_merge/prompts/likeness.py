"""Which texts are nearly the same as one before them."""

import math
import re
from collections import Counter
from collections.abc import Sequence

WORDS = 3  # in a row, of which a text's set is made
NEAR = 0.8  # Jaccard likeness of two sets from which on the later text is a copy


def copies(texts: Sequence[str]) -> list[bool]:
    """Of each text, whether one before it that is no copy itself is the same, or shares NEAR of all their runs of WORDS words.

    Exact, without comparing all pairs: two sets that are so much alike share one of the rarest runs of each.
    """
    sets = [_runs(text) for text in texts]
    frequency = Counter(run for runs in sets for run in runs)
    holders: dict[tuple[str, ...], list[int]] = {}
    found = []
    for number, runs in enumerate(sets):
        rarest = sorted(runs, key=lambda run: (frequency[run], run))[: len(runs) - math.ceil(NEAR * len(runs)) + 1]
        others = {other for run in rarest for other in holders.get(run, ())}
        is_copy = any(len(runs & sets[other]) >= NEAR * len(runs | sets[other]) for other in others)
        found.append(is_copy)
        if not is_copy:
            for run in rarest:
                holders.setdefault(run, []).append(number)
    return found


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text.casefold())
    return {tuple(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
