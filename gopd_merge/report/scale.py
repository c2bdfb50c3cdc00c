"""Score against α before the merge: `scale.json`, which `gopd-merge probe` and `sweep` write, and its pictures. No torch.

The pictures are pure text for the terminal and plotly figures for the page; both come from the same points.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from gopd_merge.errors import InputError, printable
from gopd_merge.report.document import Document, Key, Part, ScalePoint
from gopd_merge.report.figures import Plot, Style, intervals, plain, scaled
from gopd_merge.report.lines import SHARES, Interval, score_text
from gopd_merge.report.tables import NONE, Cell, Row, Table, score_cell
from gopd_merge.report.terminal import columns

SCHEMA, KIND, SCALE = 1, "scale", "scale.json"  # the last: a file in the folder of a probe, a sweep or a merge
MEASURED = {"probe": "the target itself, sampled without a student", "sweep": "short merges"}
STYLES = [Style("", f"@series{i + 1}", symbol) for i, symbol in enumerate(("circle", "square", "diamond", "triangle-up"))]
DASHES = ("solid", "dash", "dot", "dashdot")
CHOSEN = Style("chosen", "@headline", "circle-open")
WIDTH = 27  # characters of a picture in the terminal


class Scale(Part):
    """What was found out about α before a merge."""

    version: int = Field(SCHEMA, alias="schema")
    kind: Literal["scale"] = "scale"
    made_by: Literal["probe", "sweep"]
    points: tuple[ScalePoint, ...] = Field(min_length=1)
    chosen: dict[str, float] = Field(default_factory=dict)  # α by domain
    chosen_options: dict[str, float] = Field(default_factory=dict)  # of a sweep: learning_rate, steps
    why: dict[str, str] = Field(default_factory=dict)  # by domain, a sentence

    def is_chosen(self, point: ScalePoint) -> bool:
        """Whether this is the point that was taken."""
        options = {"learning_rate": point.learning_rate, "steps": point.full_steps or point.steps}
        return self.chosen.get(point.domain) == point.alpha and all(options.get(k) == v for k, v in self.chosen_options.items())

    def benchmarks(self) -> dict[Key, list[ScalePoint]]:
        """The points of each benchmark, by the options of the training and then by α."""
        found: dict[Key, list[ScalePoint]] = {}
        for point in sorted(self.points, key=lambda p: (p.learning_rate or 0, p.steps or 0, p.alpha, p.seed or 0)):
            found.setdefault(point.key, []).append(point)
        return dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0])))


def read_scale(path: Path) -> Scale:
    """A scale.json. Raises InputError where it cannot be read, is another document, or is newer than this program."""
    try:
        data = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it with gopd-merge probe") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON document ({error}); make it again, or remove it") from None
    return checked_scale(data, path)


def scale_in(folder: Path | None) -> Scale | None:
    """The scale.json in the folder of a merge, if one is there. Raises InputError as `read_scale`."""
    return read_scale(folder / SCALE) if folder is not None and (folder / SCALE).is_file() else None


def checked_scale(data: Any, path: Path = Path(SCALE)) -> Scale:
    """The document that JSON holds; `path` is named where it does not. Raises InputError."""
    found = data.get("kind") if isinstance(data, Mapping) else type(data).__name__
    if found != KIND:
        raise InputError(f"{path}: its kind is {found!r}, expected {KIND!r}; name the {SCALE} of a probe or a sweep")
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(f"{path}: schema {schema}, this program reads up to {SCHEMA}; update gopd-merge")
    try:
        return Scale.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg']}; make it again, or remove it") from None


def scale_of(document: Document) -> Scale | None:
    """The part of a comparison that speaks of α before the merge, if it has one."""
    if not document.scale:
        return None
    parts = {name: getattr(document, name) for name in ("chosen", "chosen_options", "why")}
    return Scale(made_by=document.scale_made_by, points=document.scale, **parts)


def scale_text(document: Mapping[str, Any]) -> str:
    """A scale document for the terminal, see `picture`. Raises InputError where it is none."""
    return picture(checked_scale(document))


def picture(scale: Scale) -> str:
    """For each benchmark a row for each point, with its interval drawn, then what was chosen and why."""
    blocks = [_picture(scale, key, points) for key, points in scale.benchmarks().items()]
    reasons = [f"{domain}: {printable(why)}" for domain, why in sorted(scale.why.items())]
    return "\n\n".join([*blocks, *(["\n".join(reasons)] if reasons else [])])


def _picture(scale: Scale, key: Key, points: Sequence[ScalePoint]) -> str:
    low, high = min(p.low for p in points), max(p.high for p in points)
    names = [name for name, _ in _labels(points)]
    rows = [[*names, _unit(points[0]), "tokens", "cut", "", ""]]
    for point, label in zip(points, _label_rows(points), strict=True):
        drawn = _drawn(_interval(point), low, high)
        mark = "chosen" if scale.is_chosen(point) else ""
        cells = [_score(point), f"{point.length_mean:.1f}", f"{point.length_capped:.1%}", drawn, mark]
        rows.append([*label, *cells])
    return f"{printable(_title(scale, key, points))}\n" + columns([["  " + row[0], *row[1:]] for row in rows])


def _drawn(interval: Interval, low: float, high: float) -> str:
    """The interval as a line and the score as a dot on an axis from `low` to `high`."""
    score, left, right = (round((x - low) / ((high - low) or 1) * (WIDTH - 1)) for x in interval)
    return "".join("●" if i == score else "─" if left <= i <= right else " " for i in range(WIDTH))


def scale_tables(scale: Scale) -> list[Table]:
    """One for each benchmark: what the pictures show, in numbers."""
    tables = []
    for key, points in scale.benchmarks().items():
        titles = [(name, True) for name, _ in _labels(points)]
        column = [_interval(p) for p in points]
        rows = []
        for point, label, interval in zip(points, _label_rows(points), column, strict=True):
            length, cut = Cell(f"{point.length_mean:.1f}", point.length_mean), Cell(f"{point.length_capped:.1%}", point.length_capped)
            chosen = scale.is_chosen(point)
            score = score_cell(interval, point.metric in SHARES, column)
            rows.append(Row([*map(Cell, label), score, length, cut, Cell("chosen" if chosen else NONE)], chosen))
        heads = [*titles, (_unit(points[0]), True), ("tokens", True), ("cut by the limit", True), ("choice", False)]
        tables.append(Table(_title(scale, key, points), heads, rows, scale.why.get(key[1])))
    return tables


def scale_plots(scale: Scale) -> list[Plot]:
    """Score against α for each benchmark, a line for each pair of learning rate and steps; the chosen point has a ring."""
    tables = scale_tables(scale)
    return [
        _plot(scale, number, key, points, tables[number].rows, tables[number].columns)
        for number, (key, points) in enumerate(scale.benchmarks().items())
    ]


def _plot(
    scale: Scale, number: int, key: Key, points: Sequence[ScalePoint], rows: Sequence[Row], heads: Sequence[tuple[str, bool]]
) -> Plot:
    groups: dict[str, list[ScalePoint]] = {}
    for point in points:
        groups.setdefault(_training(point) or MEASURED[scale.made_by], []).append(point)
    traces = []
    for index, (name, members) in enumerate(groups.items()):
        style = Style(plain(name), STYLES[index % len(STYLES)].color, STYLES[index % len(STYLES)].symbol)
        trace = _trace(style, members)
        alphas = [p.alpha for p in members]
        if len(set(alphas)) == len(alphas):  # several runs of one α are points, and no line
            trace |= {"mode": "lines+markers", "line": {"color": style.color, "dash": DASHES[index % len(DASHES)], "width": 2}}
        traces.append(trace)
    if taken := [p for p in points if scale.is_chosen(p)]:
        ring = _trace(CHOSEN, taken)
        ring["marker"] = ring["marker"] | {"size": 17, "line": {"width": 2}}
        traces.append(ring)
    xaxis = {"title": {"text": "α"}, "tickvals": sorted({p.alpha for p in points})}
    layout = {"xaxis": xaxis, "yaxis": {"title": {"text": plain(_unit(points[0]))}}, "height": 320, "showlegend": True}
    title = f"Score against α in {key[1]}" + (f" ({key[0]})" if key[0] != "own" else "")
    about = f"{len(points)} points with 95 % intervals over validation questions: {MEASURED[scale.made_by]}."
    return Plot(f"scale-{number}", title, about, {"data": traces, "layout": layout}, Table(title, heads, rows))


def _trace(style: Style, points: Sequence[ScalePoint]) -> dict[str, Any]:
    unit = 100 if points[0].metric in SHARES else 1
    texts = [f"α = {p.alpha:g}<br>{_score(p)}" for p in points]
    return intervals(style, [scaled(_interval(p), unit) for p in points], [p.alpha for p in points], texts, upright=True)


def _interval(point: ScalePoint) -> Interval:
    return point.score, point.low, point.high


def _score(point: ScalePoint) -> str:
    return score_text(_interval(point), point.metric in SHARES)


def _unit(point: ScalePoint) -> str:
    return "score (%)" if point.metric in SHARES else point.metric


def _training(point: ScalePoint) -> str:
    """`rate 0.002, 50 steps`; nothing for a target."""
    parts = [f"rate {point.learning_rate:g}"] if point.learning_rate is not None else []
    return ", ".join(parts + ([f"{point.steps} steps"] if point.steps is not None else []))


def _labels(points: Sequence[ScalePoint]) -> list[tuple[str, list[str]]]:
    """What tells the points apart, as columns: α, and of the rest what is not the same for all."""
    found = [("α", [f"{p.alpha:g}" for p in points])]
    for name, title in (("learning_rate", "rate"), ("steps", "steps"), ("seed", "seed")):
        values = [getattr(p, name) for p in points]
        if len(set(values)) > 1:
            found.append((title, [NONE if v is None else f"{v:g}" for v in values]))
    return found


def _label_rows(points: Sequence[ScalePoint]) -> list[tuple[str, ...]]:
    """The same by row."""
    return list(zip(*(texts for _, texts in _labels(points)), strict=True))


def _title(scale: Scale, key: Key, points: Sequence[ScalePoint]) -> str:
    suite, domain = key
    counts = sorted({p.n for p in points})
    asked = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{domain}: {MEASURED[scale.made_by]}; {asked} validation questions of {suite}, 95 % intervals"
