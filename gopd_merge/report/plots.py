"""The report's plots of scores, differences, lengths and costs, each with its data as a table. No torch."""

from collections.abc import Callable, Sequence

from gopd_merge.report.document import ComparisonRow, Document, Suite
from gopd_merge.report.figures import (
    STYLES,
    Plot,
    Style,
    band,
    by_style,
    dots,
    intervals,
    level,
    log_axis,
    plain,
    rows_layout,
    scaled,
    zero_line,
)
from gopd_merge.report.lines import Line, difference_text, is_share, lines_of, rival_label, score_text
from gopd_merge.report.retention import retentions
from gopd_merge.report.tables import NONE, Cell, Row, Table, unit_title
from gopd_merge.report.verdict import reading

READINGS = {
    "better": Style("better", "@better", "triangle-right"),
    "no clear difference": Style("no clear difference", "@unclear", "circle-open"),
    "worse": Style("worse", "@worse", "triangle-left"),
}


def score_plots(document: Document) -> list[Plot]:
    """For each benchmark the score of every method with its interval; the merge's own is a band behind them."""
    lines = lines_of(document)
    found = [(number, suite, [line for line in lines if suite.key in line.rows]) for number, suite in enumerate(document.suites)]
    return [_score_plot(document, number, suite, shown) for number, suite, shown in found if shown]


def _score_plot(document: Document, number: int, suite: Suite, lines: Sequence[Line]) -> Plot:
    share, unit = is_share(document, suite.key), unit_title(document, suite.key)
    points = [scaled(line.interval(suite.key), 100 if share else 1) for line in lines]
    scores = [score_text(line.interval(suite.key), share) for line in lines]
    texts = [f"{plain(line.label)}<br>{score}" for line, score in zip(lines, scores, strict=True)]
    traces = [intervals(style, [points[i] for i in places], places, [texts[i] for i in places]) for style, places in by_style(lines)]
    bands = [band(low, high) for line, (_, low, high) in zip(lines, points, strict=True) if line.headline][:1]
    rows = [Row([Cell(line.label), Cell(score)], line.headline) for line, score in zip(lines, scores, strict=True)]
    title = f"Score on {document.title(suite.key)}"
    about = f"A dot and its 95 % interval for each of {len(lines)} methods" + ("; the band is this merge's interval." if bands else ".")
    table = Table(f"{title} with 95 % intervals", [("method", False), (unit, True)], rows)
    return Plot(f"score-{number}", title, about, {"data": traces, "layout": rows_layout([x.label for x in lines], unit, bands)}, table)


def difference_plots(document: Document) -> list[Plot]:
    """For each benchmark the paired difference between the merge and each rival, the first of each rival."""
    mine = [c for c in document.comparisons if c.who == document.headline.who]
    plots = []
    for number, suite in enumerate(document.suites):
        first: dict[str, ComparisonRow] = {}
        for c in mine:
            if c.key == suite.key:
                first.setdefault(c.rival, c)
        if first:
            plots.append(_difference_plot(document, number, suite, list(first.values())))
    return plots


def _difference_plot(document: Document, number: int, suite: Suite, comparisons: Sequence[ComparisonRow]) -> Plot:
    share, lines = is_share(document, suite.key), lines_of(document)
    labels = [rival_label(lines, c.rival) for c in comparisons]
    points = [scaled((c.difference, c.low, c.high), 100 if share else 1) for c in comparisons]
    sizes = [difference_text((c.difference, c.low, c.high), share) for c in comparisons]
    traces = []
    for word, style in READINGS.items():
        places = [i for i, c in enumerate(comparisons) if reading(c) == word]
        if places:
            texts = [f"{plain(labels[i])}<br>{sizes[i]}, {word}" for i in places]
            traces.append(intervals(style, [points[i] for i in places], places, texts))
    unit = "points" if share else suite.metric
    rows = [Row([Cell(x), Cell(size), Cell(reading(c))]) for x, size, c in zip(labels, sizes, comparisons, strict=True)]
    title = f"Merge minus rival on {document.title(suite.key)}"
    about = "Paired differences with their 95 % intervals; right of zero the merge is ahead."
    table = Table(title, [("rival", False), (f"difference ({unit})", True), ("reading", False)], rows)
    layout = rows_layout(labels, f"difference, {unit}", [zero_line()]) | {"showlegend": True}  # which reading, even if it is the only one
    return Plot(f"difference-{number}", title, about, {"data": traces, "layout": layout}, table)


def alpha_plots(document: Document) -> list[Plot]:
    """Score against λ, where at least two were run on a benchmark; the base and the domain's own expert are levels."""
    lines = lines_of(document)
    plots = []
    for number, suite in enumerate(document.suites):
        here = [line for line in lines if suite.key in line.rows]
        runs = sorted(
            ((line.alpha, line) for line in here if line.method in ("opd", "exopd") and line.alpha is not None), key=lambda r: r[0]
        )
        levels = [line for line in here if line.method in ("base", f"expert:{suite.domain}")]
        if len({alpha for alpha, _ in runs}) > 1:
            plots.append(_alpha_plot(document, number, suite, runs, levels))
    return plots


def _alpha_plot(document: Document, number: int, suite: Suite, runs: Sequence[tuple[float, Line]], levels: Sequence[Line]) -> Plot:
    share, unit = is_share(document, suite.key), unit_title(document, suite.key)
    scale = 100 if share else 1
    alphas, scores = [alpha for alpha, _ in runs], [score_text(line.interval(suite.key), share) for _, line in runs]
    texts = [f"{plain(line.label)}<br>{score}" for (_, line), score in zip(runs, scores, strict=True)]
    style = Style("merged", "@headline", "circle")
    trace = intervals(style, [scaled(line.interval(suite.key), scale) for _, line in runs], alphas, texts, upright=True)
    if len(set(alphas)) == len(alphas):  # several runs of one alpha are points, and no line
        trace["mode"] = "lines+markers"
    span = (alphas[0], alphas[-1])
    traces = [trace]
    for line in levels:
        dash = "dot" if line.kind == "base" else "dash"
        traces.append(level(line.label, STYLES[line.kind], line.rows[suite.key].score * scale, span, dash))
    rows = [Row([Cell(line.label), Cell(f"{alpha:g}"), Cell(score)]) for (alpha, line), score in zip(runs, scores, strict=True)]
    rows += [Row([Cell(line.label), Cell(NONE), Cell(score_text(line.interval(suite.key), share))]) for line in levels]
    xaxis = {"title": {"text": "λ (the option --alpha)"}, "tickvals": sorted(set(alphas))}
    figure = {"data": traces, "layout": {"xaxis": xaxis, "yaxis": {"title": {"text": plain(unit)}}, "height": 320}}
    title = f"Score on {document.title(suite.key)} against λ"
    about = f"{len(runs)} merges with 95 % intervals; base and own expert are levels."
    return Plot(f"alpha-{number}", title, about, figure, Table(title, [("method", False), ("λ", True), (unit, True)], rows))


def retention_plot(document: Document) -> Plot | None:
    """Base, own expert and merge close together for each domain whose score is a share."""
    found = [r for r in retentions(document) if is_share(document, r.key)]
    if not found:
        return None
    levels = [
        ("base", 0.22, [r.base for r in found]),
        ("expert", 0.0, [r.expert for r in found]),
        ("headline", -0.22, [r.merge for r in found]),
    ]
    traces = []
    for name, offset, points in levels:
        texts = [f"{STYLES[name].name}<br>{score_text(p, True)}" for p in points]
        traces.append(intervals(STYLES[name], [scaled(p, 100) for p in points], [i + offset for i in range(len(found))], texts))
    rows = [Row([Cell(document.title(r.key)), *(Cell(score_text(p, True)) for p in (r.base, r.expert, r.merge))]) for r in found]
    table = Table("Scores (%) with 95 % intervals", [("domain", False), ("base", True), ("own expert", True), ("merge", True)], rows)
    figure = {"data": traces, "layout": rows_layout([document.title(r.key) for r in found], "score (%)", row_height=70)}
    about = "For each domain the scores of the base, of its own expert and of the merge, with 95 % intervals."
    return Plot("retention", "Base, own expert and merge", about, figure, table)


def length_plots(document: Document) -> list[Plot]:
    """Mean length of each method's answers, a plot for each benchmark."""
    lines, plots = lines_of(document), []
    for number, suite in enumerate(document.suites):
        shown = [line for line in lines if suite.key in line.rows]
        lengths = [line.rows[suite.key].length_mean for line in shown]
        texts = [f"{plain(line.label)}<br>{length:,.1f} tokens" for line, length in zip(shown, lengths, strict=True)]
        traces = [dots(style, [lengths[i] for i in places], places, [texts[i] for i in places]) for style, places in by_style(shown)]
        layout = rows_layout([line.label for line in shown], "mean length, tokens")
        layout["xaxis"]["rangemode"] = "tozero"
        rows = [Row([Cell(line.label), Cell(f"{length:,.1f}")], line.headline) for line, length in zip(shown, lengths, strict=True)]
        title = f"Length of answers on {document.title(suite.key)}"
        table = Table(f"{title}, mean in tokens", [("method", False), ("tokens", True)], rows)
        plots.append(Plot(f"length-{number}", title, "Mean number of tokens for each method.", {"data": traces, "layout": layout}, table))
    return plots


def cost_plots(document: Document) -> list[Plot]:
    """Mean score against the seconds and against the tokens that a method took; the axis of cost is logarithmic."""
    keys = [s.key for s in document.suites]
    if len({is_share(document, key) for key in keys}) > 1:
        return []  # per cent and other units have no common mean
    lines = [line for line in lines_of(document) if all(key in line.rows for key in keys)]
    plots = []
    for name, cost in (("seconds", _seconds), ("tokens", _tokens)):
        shown = [line for line in lines if cost(line) > 0]
        if shown:
            plots.append(_cost_plot(name, shown, cost, share=is_share(document, keys[0])))
    return plots


def _cost_plot(name: str, lines: Sequence[Line], cost: Callable[[Line], float], share: bool) -> Plot:
    scores = [score_text(line.mean, share) for line in lines]
    traces = []
    for style, places in by_style(lines):
        texts = [f"{plain(lines[i].label)}<br>{scores[i]}<br>{cost(lines[i]):,.0f} {name}" for i in places]
        points = [scaled(lines[i].mean, 100 if share else 1) for i in places]
        trace = intervals(style, points, [cost(lines[i]) for i in places], texts, upright=True)
        if style is not STYLES["trained"]:  # they lie close to this merge, whose name they would cover
            best = max(places, key=lambda i: lines[i].mean[0])
            trace["mode"] = "markers+text"
            trace["text"] = [plain(lines[i].label) if i == best else "" for i in places]
            trace |= {"textposition": "top left", "textfont": {"color": style.color, "size": 11}, "cliponaxis": False}
        traces.append(trace)
    xaxis = log_axis(f"{name} (training, tuning, answering)", [cost(line) for line in lines])
    figure = {
        "data": traces,
        "layout": {"xaxis": xaxis, "yaxis": {"title": {"text": "mean score" + (", %" if share else "")}}, "height": 380},
    }
    rows = [
        Row([Cell(line.label), Cell(f"{cost(line):,.0f}"), Cell(score)], line.headline) for line, score in zip(lines, scores, strict=True)
    ]
    title = f"Mean score against {name}"
    about = "A point and the 95 % interval of its mean score for each method; up and to the left is better. "
    about += "Named are this merge and the best of the base, the experts and the weight arithmetic."
    return Plot(f"cost-{name}", title, about, figure, Table(title, [("method", False), (name, True), ("mean score", True)], rows))


def _seconds(line: Line) -> float:
    """Of one adapter: the mean over its seeds."""
    costs = [m.cost for m in line.described if m.cost]
    return sum((c.train_seconds or 0) + (c.tune_seconds or 0) + (c.answer_seconds or 0) for c in costs) / max(1, len(costs))


def _tokens(line: Line) -> float:
    """Of one adapter: the mean over its seeds."""
    tokens = [m.cost.tokens or 0 for m in line.described if m.cost]
    return sum(tokens) / max(1, len(tokens))
