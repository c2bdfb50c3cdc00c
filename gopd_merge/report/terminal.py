"""What a person reads in the terminal, as plain text: the inputs before the run, the table after it. No torch."""

from collections.abc import Iterable, Sequence

from gopd_merge.evaluate.statistics import Comparison, Result

NAMES = {
    "average": "exact average",
    "ties": "TIES",
    "dare_ties": "DARE-TIES",
    "sce": "SCE",
    "svd": "SVD",
    "expo": "ExPO",
    "opd": "merged",
    "exopd": "merged",
}


def label_of(method: str, alpha: float | None) -> str:
    """A method's name for people: `math expert`, `merged, α = 2`."""
    kind, _, name = method.partition(":")
    if name:
        return f"{name} expert" if kind == "expert" else name
    name = NAMES.get(method, method.replace("_", " "))
    return name if alpha is None else f"{name}, α = {alpha:g}"


def results_text(results: Sequence[Result], comparisons: Sequence[Comparison]) -> str:
    """The table of accuracies with their 95 % intervals, and one sentence on merge against average."""
    if not results:
        return ""
    domains = list(dict.fromkeys(r.domain for r in results))
    methods = list(dict.fromkeys(r.method for r in results))
    cell = {(r.method, r.domain): r for r in results}
    counts = {r.n for r in results}
    n = f"{counts.pop():,} each" if len(counts) == 1 else ", ".join(f"{cell[methods[0], d].n:,} {d}" for d in domains)
    table = [[f"accuracy, temperature {results[0].temperature:g}, n = {n}", *domains]]
    for method in methods:
        alphas = {cell[method, d].alpha for d in domains}
        label = label_of(method, cell[method, domains[0]].alpha) if len(alphas) == 1 else NAMES[method]
        table.append([f"  {label}", *(_score(cell[method, d], len(alphas) > 1) for d in domains)])
    return "\n".join([columns(table), "", *verdict_lines(comparisons)]).rstrip()


def verdict_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """One line a domain: by how much the merge differs from the average, and whether that is more than chance."""
    lines = []
    for c in comparisons:
        word = "better than" if c.better else "worse than" if c.worse else "no clear difference from"
        p = f"p = {c.p_holm:.3f}" if c.p_holm >= 0.001 else "p < 0.001"
        lines.append(f"  {c.domain}: {word} the exact average ({c.difference * 100:+.1f} points, paired exact test, {p})")
    return lines


def byte_text(size: float) -> str:
    """`12.3 GB`, `840 MB`, `0.4 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text with their columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _score(result: Result, with_alpha: bool) -> str:
    alpha = f" α = {result.alpha:g}" if with_alpha else ""
    return f"{result.score * 100:.1f} % ({result.low * 100:.1f}–{result.high * 100:.1f}){alpha}"
