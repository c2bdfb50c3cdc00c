"""Is the merge better? The answer in words, no stronger than the comparisons allow. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from gopd_merge.report.document import ComparisonRow, Document
from gopd_merge.report.lines import Line, difference_text, headline_of, is_share, joined, lines_of, p_text, rival_label

STRONGEST = ("best expert", "best static merge", "exact average")  # whom a merge must beat
WORDS = {"better": "Better", "mixed": "Better in part", "unclear": "No clear difference", "worse": "Worse", "none": "Not compared"}


@dataclass(frozen=True)
class Finding:
    """One comparison in words."""

    reading: str  # better, worse, no clear difference
    against: str  # math, against the best expert (math expert)
    size: str  # +4.4 points
    interval: str  # 95 % interval +1.5 to +7.3
    chance: str  # p = 0.029 after Holm's correction, n = 400

    @property
    def text(self) -> str:
        """All but the reading, on one line."""
        return f"{self.against}: {self.size} ({self.interval}), {self.chance}"


@dataclass(frozen=True)
class Verdict:
    """The sentence that the report opens with, and what it rests on."""

    status: str  # a key of WORDS
    sentence: str
    findings: Sequence[Finding]

    @property
    def word(self) -> str:
        """The status as a heading."""
        return WORDS[self.status]


def reading(comparison: ComparisonRow) -> str:
    """One of three words. "Better" is said only where the interval excludes zero and the corrected p is small."""
    return "better" if comparison.better else "worse" if comparison.worse else "no clear difference"


def verdict_of(document: Document) -> Verdict:
    """The headline's comparisons with the best expert and the best static merge; with every rival, where it met neither."""
    lines = lines_of(document)
    headline = headline_of(lines)
    label = headline.label if headline else document.headline.method
    mine = [c for c in document.comparisons if c.who == document.headline.who]
    mine = [c for c in mine if c.seeds == mine[0].seeds]  # of several runs of it, the first document's
    used = [c for c in mine if c.rival_is in STRONGEST] or mine
    if not used:
        return Verdict("none", f"{_capital(label)} was not compared with a rival, so nothing can be said.", ())
    readings = [reading(c) for c in used]
    better, worse = readings.count("better"), readings.count("worse")
    if better == len(used):
        status = "better"
    elif worse == 0:
        status = "mixed" if better else "unclear"
    else:
        status = "mixed" if better else "worse"
    return Verdict(status, _sentence(document, label, used), [_finding(document, lines, c) for c in used])


def _sentence(document: Document, label: str, used: Sequence[ComparisonRow]) -> str:
    """Who is beaten where; rivals with the same outcome in the same places share a clause."""
    clauses = []
    for word, phrase in (
        ("better", "is better than"),
        ("no clear difference", "shows no clear difference from"),
        ("worse", "is worse than"),
    ):
        rivals: dict[tuple[str, ...], list[str]] = {}
        for rival_is in dict.fromkeys(c.rival_is for c in used):
            places = dict.fromkeys(document.title(c.key) for c in used if c.rival_is == rival_is and reading(c) == word)
            if places:
                rivals.setdefault(tuple(places), []).append(f"the {rival_is}")
        clauses += [f"{phrase} {joined(names)} in {joined(places)}" for places, names in rivals.items()]
    return f"{_capital(label)}, {joined(clauses)}." if "," in label else f"{_capital(label)} {joined(clauses)}."


def _finding(document: Document, lines: Sequence[Line], c: ComparisonRow) -> Finding:
    """The numbers of one comparison, each written as in the tables."""
    rival = rival_label(lines, c.rival)
    against = c.rival_is if c.rival_is in (c.rival, rival) else f"{c.rival_is} ({rival})"
    share = is_share(document, c.key)
    size, _, interval = difference_text((c.difference, c.low, c.high), share).partition(" (")
    p = p_text(c.p_holm)
    chance = f"p {p if p.startswith('<') else f'= {p}'} after Holm's correction, n = {c.n:,}".replace("<", "< ")
    return Finding(
        reading(c),
        f"{document.title(c.key)}, against the {against}",
        f"{size} points" if share else size,
        f"95 % interval {interval[:-1]}",
        chance,
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
