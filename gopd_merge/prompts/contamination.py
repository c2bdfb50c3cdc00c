"""Prompts that are questions of an evaluation suite, or hold a long piece of one: they must not be trained on.

As GPT-3's authors did (arXiv 2005.14165, appendix C): texts are compared as lower-case words without punctuation, by runs of N words; N
is the 5th percentile of the lengths of the suite's questions, at least 8 and at most 13. A run that many of its questions share is the
suite's wording ("work it out step by step"), not a question, and does not count. A text of fewer than N words is looked for as a whole; of
fewer than 8, only the same text is meant.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

SHORTEST, LONGEST = 8, 13  # words in a run
COMMON = 10  # questions: what more of them share is the suite's wording; of a small suite, half of them

Run = tuple[str, ...]


class Suspects:
    """The questions of one suite."""

    def __init__(self, name: str, questions: Sequence[str]) -> None:
        self.name = name
        words = [_words(text) for text in questions]
        lengths = sorted(map(len, words))
        self.n = min(LONGEST, max(SHORTEST, lengths[len(lengths) // 20] if lengths else LONGEST))
        shared = Counter(run for one in words for run in set(_runs(one, self.n)))
        common = min(COMMON, max(1, len(words) // 2))
        self._runs = {run for run, count in shared.items() if count <= common}
        self._whole = {tuple(one) for one in words}
        self._short = {one for one in self._whole if SHORTEST <= len(one) < self.n}
        self._lengths = sorted({len(one) for one in self._short})
        self._pieces: dict[int, set[Run]] = {}  # by length, as they are asked for

    def holds(self, prompt: str) -> bool:
        """Whether a prompt is one of the questions, or shares a run with one."""
        words = _words(prompt)
        if not words:
            return False
        if tuple(words) in self._whole or (SHORTEST <= len(words) < self.n and tuple(words) in self._pieces_of(len(words))):
            return True
        if any(run in self._runs for run in _runs(words, self.n)):
            return True
        return any(run in self._short for length in self._lengths for run in _runs(words, length))

    def _pieces_of(self, length: int) -> set[Run]:
        """All runs of so many words, for prompts that are shorter than n."""
        if length not in self._pieces:
            self._pieces[length] = {run for one in self._whole for run in _runs(one, length)}
        return self._pieces[length]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(words: Sequence[str], n: int) -> Iterable[Run]:
    return (tuple(words[at : at + n]) for at in range(len(words) - n + 1))
