"""The report's tables as data: the terminal, the Markdown and the page write the same cells. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gopd_merge.report.document import Document, Key, Tuned
from gopd_merge.report.lines import (
    Interval,
    Line,
    difference_text,
    is_share,
    lines_of,
    p_text,
    rival_label,
    score_text,
)
from gopd_merge.report.retention import Retention, retentions
from gopd_merge.report.terminal import parameters_text
from gopd_merge.report.verdict import reading

NONE = "–"
NOT_PAIRED = " *"  # ends a difference that does not come from the same questions


@dataclass(frozen=True)
class Cell:
    """A text, what it is sorted by (the text itself where that is None), and where an interval lies on its column's axis (0 to 1)."""

    text: str
    value: float | None = None
    interval: Interval | None = None
    code: bool = False  # a hash, which may break anywhere


@dataclass(frozen=True)
class Row:
    """The first cell is the row's heading. `marked` rows are those of the merge that the report is about."""

    cells: Sequence[Cell]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Columns are (title, whether it holds numbers)."""

    caption: str
    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Row]
    remark: str | None = None

    @property
    def note(self) -> str | None:
        """The remark, or what an asterisk means where there is one."""
        if self.remark:
            return self.remark
        starred = any(cell.text.endswith(NOT_PAIRED) for row in self.rows for cell in row.cells)
        return "* not paired: out of the intervals of both scores" if starred else None


def score_table(document: Document) -> Table:
    """Every method on every benchmark, then the mean over them, then how many questions and samples."""
    lines, keys = lines_of(document), [s.key for s in document.suites]
    shares = [is_share(document, key) for key in keys]
    columns = [("method", False), *((unit_title(document, key), True) for key in keys)]
    scores = [[line.interval(key) if key in line.rows else None for key in keys] for line in lines]
    with_mean = len(keys) > 1 and len(set(shares)) == 1
    if with_mean:
        columns.append(("mean" + (" (%)" if shares[0] else ""), True))
        scores = [[*row, line.mean if None not in row else None] for row, line in zip(scores, lines, strict=True)]
        shares.append(shares[0])
    rows = []
    for line, row in zip(lines, scores, strict=True):
        cells = [score_cell(value, share, [r[i] for r in scores]) for i, (value, share) in enumerate(zip(row, shares, strict=True))]
        counts = [_counts(line, keys, "n"), _counts(line, keys, "k")]
        rows.append(Row([Cell(line.label), *cells, *counts], line.headline))
    caption = "Score with its 95 % interval over questions; n questions, k samples of each"
    return Table(caption, [*columns, ("n", True), ("k", True)], rows)


def score_cell(value: Interval | None, share: bool, column: Sequence[Interval | None]) -> Cell:
    """A score, and its place among those of its column."""
    if value is None:
        return Cell(NONE)
    known = [v for v in column if v is not None]
    low, high = min(v[1] for v in known), max(v[2] for v in known)
    placed = [(x - low) / (high - low or 1) for x in value]
    return Cell(score_text(value, share), value[0], (placed[0], placed[1], placed[2]))


def seeds_table(document: Document) -> Table | None:
    """How much runs that differ only in their seed differ: apart from the intervals, which are over questions."""
    rows = []
    for line in lines_of(document):
        for key, row in line.rows.items():
            if row.seed_sd is not None:
                share = is_share(document, key)
                sd = f"{row.seed_sd * 100:.1f}" if share else f"{row.seed_sd:.3f}"
                cells = [
                    Cell(line.label),
                    Cell(unit_title(document, key)),
                    Cell(score_text((row.score, row.low, row.high), share), row.score),
                ]
                seeds = Cell(", ".join(map(str, row.seeds)), len(row.seeds))
                rows.append(Row([*cells, seeds, Cell(sd, row.seed_sd)], line.headline))
    columns = [("method", False), ("benchmark", False), ("mean over seeds", True), ("seeds", True), ("standard deviation over seeds", True)]
    return Table("Mean over the runs of a method, and how far they lie apart", columns, rows) if rows else None


def comparison_table(document: Document) -> Table:
    """Every paired difference, its interval and what may be concluded."""
    lines = lines_of(document)
    several = len({(c.who, c.seeds) for c in document.comparisons}) > 1
    rows = []
    for c in document.comparisons:
        share = is_share(document, c.key)
        size = difference_text((c.difference, c.low, c.high), share)
        cells = [Cell(_title(document, c.key)), Cell(rival_label(lines, c.rival)), Cell(c.rival_is), Cell(size, c.difference)]
        cells += [Cell(f"{c.n:,}", c.n), Cell(p_text(c.p), c.p), Cell(p_text(c.p_holm), c.p_holm), Cell(c.test), Cell(reading(c))]
        about = c.who == document.headline.who
        if several:
            label = next((line.label for line in lines if line.who == c.who), c.method)
            cells.insert(0, Cell(label + (f", seeds {', '.join(map(str, c.seeds))}" if c.seeds else "")))
        rows.append(Row(cells, several and about))
    points = any(is_share(document, c.key) for c in document.comparisons)
    columns = [("benchmark", False), ("rival", False), ("it is the", False), ("difference" + (" (points)" if points else ""), True)]
    columns += [("n", True), ("p", True)]
    columns += [("p, Holm", True), ("test", False), ("reading", False)]
    caption = "Merge minus rival on the same questions, with the 95 % interval of the difference"
    return Table(caption, [("merge", False), *columns] if several else columns, rows)


def retention_table(document: Document) -> Table:
    """Per domain: what its own expert gained over the base, how much of that the merge kept, and what was lost."""
    rows = []
    for r in retentions(document):
        share = is_share(document, r.key)
        levels = [Cell(score_text(level, share), level[0]) for level in (r.base, r.expert, r.merge)]
        changes = [
            Cell(difference_text(d, share) + ("" if paired else NOT_PAIRED), d[0])
            for d, paired in zip((r.gain, r.change), r.paired, strict=True)
        ]
        rows.append(
            Row(
                [
                    Cell(unit_title(document, r.key)),
                    *levels,
                    *changes,
                    Cell(kept_text(r), None if r.kept is None else r.kept[0]),
                    Cell(r.reading),
                ]
            )
        )
    columns = ["base", "own expert", "merge", "expert − base", "merge − expert", "gain kept (%)"]
    caption = "What the merge kept of each domain's own expert, with 95 % intervals; of the kept share, bounds that hold with at least 90 %"
    return Table(caption, [("domain", False), *((title, True) for title in columns), ("against the expert", False)], rows)


def kept_text(r: Retention) -> str:
    """The kept share, or why there is none."""
    if r.kept is not None:
        value, low, high = (f"{x * 100:.0f}".replace("-", "−") for x in r.kept)
        return f"{value} ({low} to {high})"
    return "the expert is worse than the base" if r.gain[2] < 0 else "not divided: the expert's gain may be zero"


def length_table(document: Document) -> Table:
    """How long the answers are, how many the limit cut, and how many are empty."""
    keys = [s.key for s in document.suites]
    fields: list[tuple[str, Callable[[Line, Key], Cell]]] = [
        ("mean length (tokens)", lambda line, key: Cell(f"{line.rows[key].length_mean:,.1f}", line.rows[key].length_mean)),
        ("cut by the limit (%)", lambda line, key: Cell(f"{line.rows[key].length_capped * 100:.1f}", line.rows[key].length_capped)),
        ("empty (%)", lambda line, key: Cell(f"{line.rows[key].empty * 100:.1f}", line.rows[key].empty)),
    ]
    columns = [("method", False), *((f"{document.title(key)}: {name}", True) for key in keys for name, _ in fields)]
    rows = [
        Row([Cell(line.label), *(cell(line, key) if key in line.rows else Cell(NONE) for key in keys for _, cell in fields)], line.headline)
        for line in lines_of(document)
    ]
    return Table("Length of the answers", columns, rows)


def cost_table(document: Document) -> Table:
    """What each method took, beside its mean score."""
    rows = []
    for line in lines_of(document):
        for entry in line.described:
            if entry.cost is not None:
                c = entry.cost
                name = line.label if len(line.described) == 1 or not entry.adapter else f"{line.label} ({entry.adapter})"
                times = [_number(x, "{:,.1f}") for x in (c.train_seconds, c.tune_seconds, c.answer_seconds)]
                counts = [_number(x, "{:,.0f}") for x in (c.tune_answers, c.answers, c.tokens)]
                rows.append(Row([Cell(name), *times, *counts, Cell(c.device or NONE)], line.headline))
    columns = ["training (s)", "tuning (s)", "answering (s)", "answers for tuning", "answers measured", "tokens"]
    return Table("Time and tokens", [("method", False), *((title, True) for title in columns), ("device", False)], rows)


def tuning_tables(document: Document) -> list[tuple[str, Table]]:
    """(method, its grid) for every rival that was tuned: each point's validation score, and which was chosen."""
    labels = {line.method: line.label for line in reversed(lines_of(document))}
    found = []
    for method in dict.fromkeys(t.method for t in document.tuning):
        points = [t for t in document.tuning if t.method == method]
        keys = list(dict.fromkeys((t.suite, t.domain) for t in points))
        rows = []
        for text in dict.fromkeys(parameters_text(t.parameters) for t in points):
            here = {(t.suite, t.domain): t for t in points if parameters_text(t.parameters) == text}
            chosen = [document.title(key) for key in keys if key in here and here[key].chosen]
            word = "chosen" if len(chosen) == len(here) else f"chosen for {', '.join(chosen)}" if chosen else NONE
            scores = [_validation(document, key, here[key].score) if key in here else Cell(NONE) for key in keys]
            rows.append(Row([Cell(text), *scores, Cell(word)], bool(chosen)))
        counts = ", ".join(f"{points_n:,} {document.title(key)}" for key, points_n in {(t.suite, t.domain): t.n for t in points}.items())
        columns = [("coefficients", False), *((unit_title(document, key), True) for key in keys), ("choice", False)]
        label, lost = labels.get(method, method), next((m.lost for m in document.methods if m.method == method), None)
        note = " ".join(
            [*_edge_notes(points), *([f"{lost:.1%} of its squared norm does not fit into an adapter of its rank."] if lost else [])]
        )
        found.append((label, Table(f"Validation scores of {label} (questions: {counts})", columns, rows, note or None)))
    return found


def _edge_notes(points: Sequence[Tuned]) -> list[str]:
    """Where the chosen value is the last of those tried, one beyond it might be better: the rival may be worth more than is shown."""
    notes = []
    for name in dict.fromkeys(name for point in points for name in point.parameters):
        tried = [point.parameters[name] for point in points]
        chosen = {point.parameters[name] for point in points if point.chosen}
        if len(set(tried)) > 1 and chosen & {min(tried), max(tried)} and not (name == "density" and max(chosen) == 1):
            notes.append(f"The chosen {name.replace('_', ' ')} is at the edge of what was tried: a wider grid might find a better one.")
    return notes


def unit_title(document: Document, key: Key) -> str:
    """`math (%)`, or `style, log_likelihood_ratio`."""
    if is_share(document, key):
        return f"{document.title(key)} (%)"
    metric = next((s.metric for s in document.suites if s.key == key), "score")
    return f"{document.title(key)}, {metric}"


def _title(document: Document, key: Key) -> str:
    """The name, with the metric where scores are no shares."""
    return document.title(key) if is_share(document, key) else unit_title(document, key)


def _validation(document: Document, key: Key, score: float) -> Cell:
    return Cell(f"{score * 100:.1f}" if is_share(document, key) else f"{score:.3f}".replace("-", "−"), score)


def _counts(line: Line, keys: Sequence[Key], field: str) -> Cell:
    """One number where all benchmarks have the same, else one for each."""
    counts = [getattr(line.rows[key], field) for key in keys if key in line.rows]
    return Cell(" / ".join(f"{c:,}" for c in (counts if len(set(counts)) > 1 else counts[:1])), sum(counts))


def _number(value: float | None, form: str) -> Cell:
    return Cell(NONE) if value is None else Cell(form.format(value), value)
