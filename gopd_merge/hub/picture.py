"""The scores as a picture for the card: what the report's own plots hold, drawn as SVG. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from typing import Any

from gopd_merge.report.document import Document
from gopd_merge.report.figures import Plot
from gopd_merge.report.plots import score_plots

TEMPLATES = Path(__file__).parent / "templates"
LEFT, RIGHT, WIDTH, ROW, TOP, BOTTOM = 210, 24, 760, 24, 44, 40  # pixels
COLORS = {"@base": "#5d646e", "@expert": "#a85100", "@static": "#00705f", "@trained": "#7a3f9d", "@headline": "#0b57a4"}


@dataclass(frozen=True)
class Mark:
    """One method's score and its interval, in pixels."""

    label: str
    text: str  # the score and its interval in words
    color: str
    bold: bool
    x: float
    low: float
    high: float
    y: float


@dataclass(frozen=True)
class Panel:
    """One benchmark."""

    title: str
    unit: str
    top: float
    height: float
    marks: Sequence[Mark]
    ticks: Sequence[tuple[float, str]]  # place, label
    band: tuple[float, float] | None  # of the merge: left, width


def scores_svg(document: Document) -> str:
    """Every method's score on every benchmark with its 95 % interval. Empty where there is no score."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    panels, top = [], 0.0
    for plot in score_plots(document):
        panels.append(_panel(plot, top))
        top += panels[-1].height
    if not panels:
        return ""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("scores.svg.jinja").render(panels=panels, width=WIDTH, height=top, left=LEFT, right=WIDTH - RIGHT)


def _panel(plot: Plot, top: float) -> Panel:
    """The plot's dots and error bars on a linear axis."""
    points = [point for trace in plot.figure["data"] for point in _points(trace)]
    low, high = min(p["low"] for p in points), max(p["high"] for p in points)
    step = _step(high - low)
    first, last = floor(low / step) * step, -floor(-high / step) * step
    last = last if last > first else first + step

    def across(value: float) -> float:
        return round(float(LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT)), 1)

    labels = plot.figure["layout"]["yaxis"]["ticktext"]
    marks = [
        Mark(
            labels[p["row"]],
            p["text"],
            p["color"],
            p["bold"],
            across(p["x"]),
            across(p["low"]),
            across(p["high"]),
            top + TOP + ROW * (p["row"] + 0.5),
        )
        for p in sorted(points, key=lambda p: p["row"])
    ]
    ticks = [(across(first + i * step), f"{first + i * step:.6g}") for i in range(round((last - first) / step) + 1)]
    merged = next((mark for mark in marks if mark.bold), None)
    band = (merged.low, round(merged.high - merged.low, 1)) if merged else None
    unit = plot.figure["layout"]["xaxis"]["title"]["text"]
    return Panel(plot.title, unit, top, TOP + ROW * len(labels) + BOTTOM, marks, ticks, band)


def _points(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each dot of a trace with its ends and its row."""
    error, marker = trace["error_x"], trace["marker"]
    columns = zip(trace["x"], error["arrayminus"], error["array"], trace["y"], trace["hovertext"], strict=True)
    color = COLORS.get(marker["color"], "#1b1e22")
    return [
        {
            "x": x,
            "low": x - below,
            "high": x + above,
            "row": int(row),
            "text": text.replace("<br>", " "),
            "color": color,
            "bold": marker["color"] == "@headline",
        }
        for x, below, above, row, text in columns
    ]


def _step(span: float) -> float:
    """1, 2 or 5 of a decade, so that there are about five steps."""
    if span <= 0:
        return 1.0
    decade = 10.0 ** floor(log10(span / 5))
    return next(m * decade for m in (1, 2, 5, 10) if span / (m * decade) <= 6)
