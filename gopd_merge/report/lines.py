"""What a report has one line for: a method with its rows on every benchmark, and how its numbers are written. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Any

from gopd_merge.report.document import Document, Key, Method, ResultRow, Who
from gopd_merge.report.terminal import TRAINED, label_of, parameters_text

SHARES = ("math_answer", "function_cases", "code_tests")  # metrics that are shares of right answers, written in per cent

Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Line:
    """One method (of one alpha, one set of coefficients) with its results by benchmark."""

    who: Who
    label: str
    kind: str  # base, expert, static or trained
    method: str
    alpha: float | None
    parameters: Mapping[str, Any] | None
    rows: Mapping[Key, ResultRow]
    described: Sequence[Method]  # its entries in the document: one, or one for each seed
    headline: bool

    def interval(self, key: Key) -> Interval:
        """Its score on a benchmark; KeyError where it was not measured there."""
        row = self.rows[key]
        return row.score, row.low, row.high

    @cached_property
    def mean(self) -> Interval:
        """Mean score over its benchmarks; half widths add up in squares, as the questions of different benchmarks are independent."""
        rows, n = list(self.rows.values()), len(self.rows)
        mean = sum(r.score for r in rows) / n
        return mean, mean - sqrt(sum((r.score - r.low) ** 2 for r in rows)) / n, mean + sqrt(sum((r.high - r.score) ** 2 for r in rows)) / n


def lines_of(document: Document) -> list[Line]:
    """All methods in the document's order. Runs of several seeds without a common row get a line each."""
    groups: dict[Who, list[ResultRow]] = {}
    for row in document.results:
        groups.setdefault(row.who, []).append(row)
    order = {m.who: number for number, m in reversed(list(enumerate(document.methods)))}
    lines = []
    for who, rows in sorted(groups.items(), key=lambda item: order.get(item[0], len(order))):
        pooled = [r for r in rows if r.seed is None]
        seeds = [None] if pooled else list(dict.fromkeys(r.seed for r in rows))
        for seed in seeds:
            line = _line(document, [r for r in rows if r.seed == seed], who == document.headline.who)
            lines.append(replace(line, label=f"{line.label}, seed {seed}") if len(seeds) > 1 else line)
    return _distinct(lines)


def _line(document: Document, rows: Sequence[ResultRow], headline: bool) -> Line:
    first = rows[0]
    described = [m for m in document.methods if m.who == first.who]
    label, kind = (
        (described[0].label, described[0].kind)
        if described
        else (label_of(first.method, first.alpha, first.parameters), _kind(first.method))
    )
    return Line(first.who, label, kind, first.method, first.alpha, first.parameters, {r.key: r for r in rows}, described, headline)


def _kind(method: str) -> str:
    """The kind of a method that the document does not describe."""
    return "base" if method == "base" else "expert" if method.startswith("expert:") else "trained" if method in TRAINED else "static"


def _distinct(lines: list[Line]) -> list[Line]:
    """The lines with their coefficients in the label where it would name two of them."""
    labels = [line.label for line in lines]
    return [
        replace(line, label=f"{line.label}, {parameters_text(line.parameters)}")
        if labels.count(line.label) > 1 and line.parameters
        else line
        for line in lines
    ]


def headline_of(lines: Sequence[Line]) -> Line | None:
    """The line that the report is about."""
    return next((line for line in lines if line.headline), None)


def rival_label(lines: Sequence[Line], rival: str) -> str:
    """The label of the method that a comparison names."""
    return next((line.label for line in lines if line.method == rival and not line.headline), rival.replace("_", " "))


def is_share(document: Document, key: Key) -> bool:
    """Whether a benchmark's scores are shares of right answers, written in per cent."""
    return next((s.metric in SHARES for s in document.suites if s.key == key), True)


def score_text(interval: Interval, share: bool) -> str:
    """`71.9 (69.9–73.8)` in per cent, or `−0.412 (−0.450 to −0.371)` in the metric's own unit."""
    if share:
        value, low, high = (f"{x * 100:.1f}" for x in interval)
        return f"{value} ({low}–{high})"
    value, low, high = (minus(f"{x:.3f}") for x in interval)
    return f"{value} ({low} to {high})"


def difference_text(interval: Interval, share: bool) -> str:
    """`+6.0 (+3.1 to +8.9)`, in points or in the metric's own unit."""
    value, low, high = (minus(f"{x * 100:+.1f}" if share else f"{x:+.3f}") for x in interval)
    return f"{value} ({low} to {high})"


def p_text(p: float) -> str:
    """`0.012`, `<0.001`."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def minus(text: str) -> str:
    """With a real minus sign; a zero has no sign."""
    return text.replace("-", "−") if any(c in "123456789" for c in text) else text.lstrip("+-")


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
