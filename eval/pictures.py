"""The pictures of the README and of docs/, as SVG, with matplotlib. The same numbers give the same bytes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gopd_merge.report.document import Document, Key
from gopd_merge.report.lines import Line

LIGHT, DARK = "#9ecae1", "#3182bd"
COLOURS = {"base": "#8c8c8c", "expert": "#e6862a", "static": "#6aa84f", "trained": DARK}  # of the kinds of lines
NAMES = {"base": "base", "expert": "experts", "static": "weight arithmetic", "trained": "trained merges"}


def write_bars(path: Path, title: str, groups: dict[str, list[tuple[str, dict[str, float], float]]]) -> None:
    """Stacked bars of seconds: group -> rows of (name, phase -> seconds, the whole's), each group on an axis of its own."""
    with _style():
        figure = Figure(figsize=(7.4, 0.55 + 0.31 * sum(len(rows) + 1.4 for rows in groups.values())), layout="constrained")
        heights = [len(rows) for rows in groups.values()]
        drawn = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, rows) in zip(drawn, groups.items(), strict=True):
            left = [0.0] * len(rows)
            for phase, colour in zip(rows[0][1], (LIGHT, DARK), strict=True):
                widths = [seconds[phase] for _, seconds, _ in rows]
                axes.barh(range(len(rows)), widths, left=left, height=0.75, color=colour, label=phase)
                left = [a + b for a, b in zip(left, widths, strict=True)]
            for row, (end, (_, _, whole)) in enumerate(zip(left, rows, strict=True)):
                axes.annotate(f"{whole:.1f} s", (end, row), (4, 0), textcoords="offset points", va="center")
            axes.set_title(name, loc="left", fontweight="bold")
            axes.set_xlim(0, 1.12 * max(left))
            axes.xaxis.set_visible(False)
            axes.spines["bottom"].set_visible(False)
            _name_rows(axes, [name for name, _, _ in rows])
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
        _save(figure, path, title)


def write_scores(path: Path, title: str, document: Document, lines: Sequence[Line], keys: Sequence[Key], titles: Sequence[str]) -> None:
    """A panel for each benchmark: score and interval of every line, in per cent, with the headline's score as a rule."""
    with _style():
        figure = Figure(figsize=(3.2 + 2.6 * len(keys), 0.9 + 0.25 * len(lines)), layout="constrained")
        panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
        for axes, key, name in zip(panels, keys, titles, strict=True):
            for row, line in enumerate(lines):
                score, low, high = (100 * value for value in line.interval(key))
                axes.errorbar(
                    score, row, xerr=[[score - low], [high - score]], fmt="D" if line.headline else "o", color=COLOURS[line.kind],
                    markersize=6 if line.headline else 4.5, elinewidth=1.4,
                )  # fmt: skip
                if line.headline:
                    axes.axvline(score, color=COLOURS[line.kind], linewidth=0.8, linestyle=":")
            axes.set_title(f"{name} (%)", loc="left", fontweight="bold")
            axes.grid(axis="x", color="#e5e5e5")
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        _name_rows(panels[0], [line.label for line in lines])
        for label, line in zip(panels[0].get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if line.headline else "normal")
        kinds = [kind for kind in NAMES if any(line.kind == kind for line in lines)]
        marks = [mpl.lines.Line2D([], [], color=COLOURS[kind], marker="o", linewidth=1.4, markersize=4.5) for kind in kinds]
        figure.legend(marks, [NAMES[kind] for kind in kinds], loc="outside lower left", ncols=len(kinds))
        _save(figure, path, title)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """From top to bottom."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _style() -> Any:
    """Letters as letters, so that a picture can be searched and read aloud, and nothing that differs from one call to the next."""
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    spines = {f"axes.spines.{side}": False for side in ("top", "right", "left")}
    return mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gopd_merge", "font.size": 9, "axes.titlesize": 9, **spines})


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.savefig(path, metadata={"Title": title, "Date": None, "Creator": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
