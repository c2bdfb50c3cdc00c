"""What a merge keeps of each expert's gain over the base, and what each domain lost. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from gopd_merge.report.document import ComparisonRow, Document, Key
from gopd_merge.report.lines import Interval, Line, headline_of, lines_of


@dataclass(frozen=True)
class Retention:
    """One benchmark: base, its own expert, the merge, and their differences, each (value, low, high)."""

    key: Key
    base: Interval
    expert: Interval
    merge: Interval
    gain: Interval  # expert − base
    change: Interval  # merge − expert
    paired: tuple[bool, bool]  # whether the intervals of gain and change come from the same questions
    reading: str  # lost, gained or no clear difference, against the expert
    kept: Interval | None  # share of the gain that the merge has; None where the gain's interval includes zero, or it is a loss


def retentions(document: Document) -> list[Retention]:
    """One for each benchmark on which base, the domain's own expert and the merge were measured; none where there is no merge."""
    lines = lines_of(document)
    headline = headline_of(lines)
    base = next((line for line in lines if line.kind == "base"), None)
    if headline is None or base is None or headline.kind != "trained":
        return []
    found = []
    for suite in document.suites:
        expert = next((line for line in lines if line.method == f"expert:{suite.domain}"), None)
        if expert and all(suite.key in line.rows for line in (headline, base, expert)):
            found.append(_retention(document, suite.key, base, expert, headline))
    return found


def _retention(document: Document, key: Key, base: Line, expert: Line, merge: Line) -> Retention:
    gain, gain_test = _difference(document.comparisons, key, expert, base)
    change, change_test = _difference(document.comparisons, key, merge, expert)
    levels = [line.interval(key) for line in (base, expert, merge)]
    paired = (gain_test is not None, change_test is not None)
    lost = change_test.worse if change_test else change[2] < 0
    gained = change_test.better if change_test else change[1] > 0
    reading = "lost" if lost else "gained" if gained else "no clear difference"
    return Retention(key, levels[0], levels[1], levels[2], gain, change, paired, reading, kept_share(gain, change))


def kept_share(gain: Interval, change: Interval) -> Interval | None:
    """(merge − base) / (expert − base) = 1 + change / gain, with the extremes that the two 95 % intervals allow together.

    Both hold at once with at least 90 % (Bonferroni), so the bounds do too. None unless the whole interval of the gain is above zero.
    """
    if gain[1] <= 0:
        return None
    corners = [1 + change[i] / gain[j] for i in (1, 2) for j in (1, 2)]
    return 1 + change[0] / gain[0], min(corners), max(corners)


def _difference(comparisons: Sequence[ComparisonRow], key: Key, first: Line, second: Line) -> tuple[Interval, ComparisonRow | None]:
    """first − second, and the paired comparison that it is from; out of both intervals where the document has none.

    The latter is Newcombe's hybrid interval for independent shares (Statistics in Medicine 17, 1998, method 10). Answers to the same
    questions agree more often than independent ones, so it is wide rather than narrow.
    """
    for c in comparisons:
        if (c.key, c.method, c.alpha, c.rival) == (key, first.method, first.alpha, second.method):
            return (c.difference, c.low, c.high), c
    (a, a_low, a_high), (b, b_low, b_high) = first.interval(key), second.interval(key)
    return (a - b, a - b - hypot(a - a_low, b_high - b), a - b + hypot(a_high - a, b - b_low)), None
