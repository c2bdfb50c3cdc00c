"""The training curves: for each run its plots, thinned, and the table behind them. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gopd_merge.report.document import Curve, CurveRow, Document
from gopd_merge.report.figures import Plot, plain
from gopd_merge.report.tables import Cell, Row, Table

QUANTITIES = {  # name in metrics.jsonl: (title, unit)
    "kl_to_target": ("KL to the target", "nats per token"),
    "reward": ("Reward", "nats per token"),
    "drift": ("Drift from the base", "nats per token"),
    "entropy": ("Entropy", "nats per token"),
    "response_length": ("Response length", "tokens"),
}
COLORS, DASHES = ("@series1", "@series2", "@series3", "@series4"), ("solid", "dash", "dot", "dashdot")
POINTS, TABLE_ROWS = 120, 13  # at most, in a curve and in its table


@dataclass(frozen=True)
class Run:
    """One run's curves. `marked` where it made the merge that the report is about."""

    label: str
    note: str
    plots: Sequence[Plot]
    marked: bool


def runs(document: Document) -> list[Run]:
    """All training runs that have at least one step, the headline's first."""
    found = [
        _run(number, curve, len({c.seed for c in document.curves}) > 1, curve.who == document.headline.who)
        for number, curve in enumerate(document.curves)
        if curve.rows
    ]
    return sorted(found, key=lambda run: not run.marked)


def entropy_table(document: Document) -> Table:
    """Entropy per token at the first and last step of each run: one that falls to zero has stopped exploring."""
    rows = []
    for curve in document.curves:
        for domain in _domains(curve):
            values = [x for x in (_value(row, domain, "entropy") for row in curve.rows) if x is not None]
            if values:
                name = curve.label if curve.seed is None else f"{curve.label}, seed {curve.seed}"
                ends = [Cell(f"{x:.3f}", x) for x in (values[0], values[-1])]
                rows.append(Row([Cell(name), Cell(domain), *ends]))
    columns = [("run", False), ("domain", False), ("first step", True), ("last step", True)]
    return Table("Entropy of the student, nats per token, at the first and the last step", columns, rows)


def _run(number: int, curve: Curve, with_seed: bool, marked: bool) -> Run:
    label = f"{curve.label}, seed {curve.seed}" if with_seed and curve.seed is not None else curve.label
    plots = []
    for name, (title, unit) in QUANTITIES.items():
        points = {d: [(row.step, v) for row in curve.rows if (v := _value(row, d, name)) is not None] for d in _domains(curve)}
        series = {domain: found for domain, found in points.items() if found}
        if series:
            about = f"{unit.capitalize()} at each step, a line for each teacher's domain."
            plots.append(
                Plot(f"curve-{number}-{name}", title, about, _figure(series, unit), _table(f"{title}, {unit}: {label}", curve, name))
            )
    stride = _stride(len(curve.rows), POINTS)
    return Run(label, f"{len(curve.rows):,} steps" + (f"; the plots show every {stride}th" if stride > 1 else ""), plots, marked)


def _figure(series: dict[str, list[tuple[int, float]]], unit: str) -> dict[str, Any]:
    """A line for each domain."""
    traces = []
    for i, (domain, points) in enumerate(series.items()):
        kept = points[:: _stride(len(points), POINTS)]
        line = {"color": COLORS[i % len(COLORS)], "dash": DASHES[i % len(DASHES)], "width": 2}
        steps, values = _steps([step for step, _ in kept]), [float(f"{value:.4g}") for _, value in kept]
        traces.append({"type": "scatter", "mode": "lines", "name": plain(domain), **steps, "y": values, "line": line})
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": unit}}, "height": 260, "hovermode": "x unified"}
    return {"data": traces, "layout": layout}


def _steps(steps: Sequence[int]) -> dict[str, Any]:
    """Evenly spaced steps as start and distance, which is shorter."""
    distances = {b - a for a, b in pairwise(steps)}
    return {"x0": steps[0], "dx": distances.pop()} if len(distances) == 1 else {"x": list(steps)}


def _table(caption: str, curve: Curve, name: str) -> Table:
    """Some of the steps in numbers."""
    domains, stride = _domains(curve), _stride(len(curve.rows), TABLE_ROWS)
    rows = [Row([Cell(str(row.step)), *(_cell(_value(row, domain, name)) for domain in domains)]) for row in curve.rows[::stride]]
    return Table(
        caption + (f", every {stride}th step" if stride > 1 else ""), [("step", True), *((domain, True) for domain in domains)], rows
    )


def _cell(value: float | None) -> Cell:
    return Cell("–" if value is None else f"{value:.4g}".replace("-", "−"))


def _domains(curve: Curve) -> list[str]:
    return list(dict.fromkeys(domain for row in curve.rows for domain in row.domains))


def _value(row: CurveRow, domain: str, name: str) -> float | None:
    return row.domains.get(domain, {}).get(name)


def _stride(count: int, most: int) -> int:
    return -(-count // most) if count > most else 1
