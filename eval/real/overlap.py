"""Keeps training prompts apart from test questions: by equal text, and by a run of words that both have."""

import re
from collections.abc import Iterable, Iterator, Sequence

WORDS = 8  # in a row, that make two prompts too much alike; numbers count, so one story with other numbers is another question


def words(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return re.findall(r"[a-z0-9_]+", text.lower())


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of WORDS words; the whole of a shorter text."""
    found = words(text)
    for start in range(max(1, len(found) - WORDS + 1)):
        yield tuple(found[start : start + WORDS])


class Forbidden:
    """The test questions. What both sides always say, the instruction, is to be cut off before."""

    def __init__(self, questions: Iterable[str]) -> None:
        self._runs = {run for question in questions for run in runs(question)}

    def meets(self, text: str) -> bool:
        """Whether the text has a run of words of some test question."""
        return any(run in self._runs for run in runs(text))

    def without(self, rows: Sequence[dict], key: str = "key") -> list[dict]:
        """The rows that meet no test question."""
        return [row for row in rows if not self.meets(row[key])]
