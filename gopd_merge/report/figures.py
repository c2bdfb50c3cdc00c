"""What the report's plots are drawn with: plotly figures as plain JSON. No torch, and no plotly: the page brings its script.

Colours are written `@name` and become the theme's when the page draws. Methods sit at numbers on their axis, with their names as tick
texts, so that no name is taken for a date or a number. Colour never speaks alone: every series has a symbol or a dash of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Any

from gopd_merge.errors import printable
from gopd_merge.report.lines import Interval, Line
from gopd_merge.report.tables import Table

Trace = dict[str, Any]
LONGEST = 30  # characters of a name on an axis


@dataclass(frozen=True)
class Style:
    """How a kind of method is drawn."""

    name: str  # in the legend
    color: str
    symbol: str


STYLES = {
    "base": Style("base", "@base", "circle-open"),
    "expert": Style("expert", "@expert", "square"),
    "static": Style("weight arithmetic", "@static", "diamond"),
    "trained": Style("other trained method", "@trained", "triangle-up"),
    "headline": Style("this merge", "@headline", "circle"),
}


@dataclass(frozen=True)
class Plot:
    """A figure, what it shows in a sentence, and its data for those who do not see it."""

    name: str  # unique on the page
    title: str
    about: str
    figure: Mapping[str, Any]
    table: Table


def by_style(lines: Sequence[Line]) -> list[tuple[Style, list[int]]]:
    """The positions of the lines of each style that is there, in the order of the legend."""
    styles = ["headline" if line.headline else line.kind if line.kind in STYLES else "static" for line in lines]
    found = [(style, [i for i, other in enumerate(styles) if other == name]) for name, style in STYLES.items()]
    return [(style, places) for style, places in found if places]


def dots(style: Style, values: Iterable[float], places: Sequence[float], texts: Sequence[str], upright: bool = False) -> Trace:
    """Dots at `values` along x in the rows `places`; `upright`, along y at the positions `places`. `texts` appear under the pointer."""
    x, y = (list(places), rounded(values)) if upright else (rounded(values), list(places))
    return {
        "type": "scatter",
        "mode": "markers",
        "name": style.name,
        "x": x,
        "y": y,
        "marker": {"color": style.color, "symbol": style.symbol, "size": 9},
        "line": {"color": style.color, "width": 2},
        "hovertext": list(texts),
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def intervals(style: Style, points: Sequence[Interval], places: Sequence[float], texts: Sequence[str], upright: bool = False) -> Trace:
    """Dots with their intervals as error bars."""
    error = {
        "type": "data",
        "symmetric": False,
        "array": rounded(high - value for value, _, high in points),
        "arrayminus": rounded(value - low for value, low, _ in points),
        "color": style.color,
        "thickness": 1.5,
        "width": 4,
    }
    return dots(style, [p[0] for p in points], places, texts, upright) | {"error_y" if upright else "error_x": error}


def level(name: str, style: Style, value: float, span: tuple[float, float], dash: str) -> Trace:
    """A horizontal line over `span`."""
    (y,) = rounded([value])
    line = {"color": style.color, "dash": dash, "width": 2}
    shared = {"name": plain(name), "hovertemplate": f"{plain(name)}: {y:g}<extra></extra>"}
    return {"type": "scatter", "mode": "lines", "x": list(span), "y": [y, y], "line": line, **shared}


def band(low: float, high: float) -> dict[str, Any]:
    """An interval behind all rows."""
    place = {"x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "rect", "layer": "below", "fillcolor": "@band", "line": {"width": 0}, **place}


def zero_line() -> dict[str, Any]:
    """A line at zero through all rows."""
    return {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "@ink", "width": 1}}


def rows_layout(labels: Sequence[str], title: str, shapes: Sequence[Mapping[str, Any]] = (), row_height: int = 26) -> dict[str, Any]:
    """One row a label, the first on top."""
    ticks = [plain(label if len(label) <= LONGEST else label[: LONGEST - 1] + "…") for label in labels]
    yaxis = {"tickvals": list(range(len(labels))), "ticktext": ticks, "range": [len(labels) - 0.5, -0.5]}
    return {"xaxis": {"title": {"text": plain(title)}}, "yaxis": yaxis, "shapes": list(shapes), "height": 120 + row_height * len(labels)}


def log_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with 1, 2 and 5 of each decade that is reached, written out."""
    low, high = min(values), max(values)
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [m * 10.0**e for e in decades for m in (1, 2, 5) if low / 2 <= m * 10.0**e <= high * 2]
    texts = [f"{t / 1e6:g} M" if t >= 1e6 else f"{t / 1e3:g} k" if t >= 1e4 else f"{t:g}" for t in ticks]
    span = [log10(low) - 0.25, log10(high) + 0.15]
    return {"type": "log", "title": {"text": title}, "tickvals": ticks, "ticktext": texts, "range": span}


def scaled(interval: Interval, scale: float) -> Interval:
    """The interval in another unit."""
    value, low, high = interval
    return value * scale, low * scale, high * scale


def plain(text: str) -> str:
    """The text as plotly shows it: it acts upon some HTML tags and entities."""
    return escape(printable(text), quote=False)


def rounded(values: Iterable[float]) -> list[float]:
    """Five significant digits are more than a pixel."""
    return [float(f"{value:.5g}") for value in values]
