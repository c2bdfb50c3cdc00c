"""The tables of docs/method.md: what each option of the method gives and costs on the embedded default, out of eval/results/*.json."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean

from gopd_merge.report.lines import difference_text

RESULTS = Path("eval/results")
DOMAINS = ("code", "math")
DEFAULT = "alpha 1.25"
NAMES = {DEFAULT: "the default: full, α = 1.25, 50 steps"}
EXPLAINED = (
    "Accuracy in per cent on {n:,} test questions a domain with 95 % intervals, mean over seeds; in brackets the paired difference in "
    "points from the row that it is compared with. An asterisk: significant at 5 % after Holm's correction over all rows of this page. "
    "Embedded default, NF4, CPU. Made by `python eval/methods.py`.\n"
)


def read(name: str) -> dict | None:
    """A document of results, if it was measured."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def score_cell(row: dict) -> str:
    return f"{100 * row['score']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


def difference_cell(comparisons: Iterable[dict], method: str, domain: str) -> str:
    """The difference from the row's own rival, or nothing."""
    for c in comparisons:
        if (c["method"], c["domain"]) == (method, domain):
            star = "*" if c["p_holm"] is not None and c["p_holm"] < 0.05 else ""
            return f" [{difference_text((c['difference'], c['low'], c['high']), True)}{star}]"
    return ""


def rows_of(document: dict, studies: Iterable[str], also: Iterable[str] = ()) -> list[dict]:
    """The rows of studies, after the ones that they are compared with."""
    return [r for name in also for r in document["rows"] if r["name"] == name] + [r for r in document["rows"] if r["study"] in studies]


def methods_table(rows: list[dict], comparisons: list[dict]) -> list[str]:
    """Scores, differences, how far the student still is from its target, tokens."""
    n = max(result["n"] for row in rows for result in row["results"])
    lines = [
        EXPLAINED.format(n=n),
        f"| run | compared with | {' | '.join(DOMAINS)} | KL to target | steps | tokens | seeds |",
        "|---|---|" + "--:|" * (len(DOMAINS) + 4),
    ]
    for row in rows:
        by_domain = {result["domain"]: result for result in row["results"]}
        cells = [score_cell(by_domain[d]) + difference_cell(comparisons, row["name"], d) for d in DOMAINS]
        known = [kl for kl in row["kl_to_target"].values() if kl is not None]
        kl = f"{fmean(known):.4f}" if known else "–"
        against = NAMES.get(row["against"], row["against"]) or "–"
        lines.append(
            f"| {NAMES.get(row['name'], row['name'])} | {against} | {' | '.join(cells)} | {kl} | {row['steps']} | {row['tokens']:,} | "
            f"{len(row['seeds'])} |"
        )
    return lines


def of_studies(*studies: str, also: tuple[str, ...] = ()) -> Callable[[], list[str]]:
    """The part of eval/results/methods.json that these studies are."""

    def table() -> list[str]:
        document = read("methods")
        rows = rows_of(document, studies, also) if document else []
        return methods_table(rows, document["comparisons"]) if document and rows else []

    return table


def estimators() -> list[str]:
    """Quality at equal steps and at half of them, then the cost of the loss."""
    lines = of_studies("estimators", "steps", also=(DEFAULT, "sampled alpha 1.25"))()
    document = read("estimator_cost")
    if document:
        lines += [
            f"\nThe loss and its gradient alone, {document['tokens']:,} tokens, H = {document['hidden']}, V = {document['vocabulary']:,}, "
            f"chunks of {document['chunk']}, top-k {document['top_k']}; medians of {document['turns']} turns, ratios within a turn, on "
            f"{document['environment']['device']}. Made by `{document['command']}`.\n",
            "| estimator | seconds | against full | memory beside the inputs (MB) |\n|---|--:|--:|--:|",
        ]
        for row in document["rows"]:
            lines.append(f"| {row['estimator']} | {row['seconds']:.2f} | {row['ratio_to_full']:.2f} | {row['peak_bytes'] / 1e6:,.0f} |")
    return lines


def probe_prediction() -> list[str]:
    """Rank correlation and gap of the probe's target against the students."""
    document = read("probe_prediction")
    if not document:
        return []
    rows = document["results"]
    lines = [
        f"{document['questions']} validation questions a domain and α, against the students' scores on the test questions, at α = "
        f"{', '.join(f'{a:g}' for a in rows[0]['alphas'])}. Made by `{document['command']}`.\n",
        "| domain | seed | rank correlation | student − target (points, mean over α) | α chosen | its student behind the best (points) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda r: (r["domain"], r["seed"])):
        lines.append(
            f"| {row['domain']} | {row['seed']} | {row['rank_correlation']:.2f} | {100 * row['mean_gap']:+.1f} | {row['chosen']:g} | "
            f"{100 * row['chosen_is_behind_best_student']:.1f} |"
        )
    for domain in sorted({r["domain"] for r in rows}):
        mine = [r for r in rows if r["domain"] == domain]
        mean = {name: fmean(r[name] for r in mine) for name in ("rank_correlation", "mean_gap", "chosen_is_behind_best_student")}
        lines.append(
            f"| **{domain}** | mean | {mean['rank_correlation']:.2f} | {100 * mean['mean_gap']:+.1f} | | "
            f"{100 * mean['chosen_is_behind_best_student']:.1f} |"
        )
    return lines


def strong_to_weak() -> list[str]:
    """The paper's order, as found."""
    document = read("strong_to_weak")
    if not document:
        return []
    results = {row["name"]: row["result"] for row in document["rows"]}
    lines = [
        f"Math, {max(r['n'] for r in results.values()):,} test questions, accuracy in per cent with 95 % intervals; differences paired, an "
        f"asterisk where significant at 5 % after Holm's correction. Made by `{document['command']}`.\n",
        "| run | math | difference from | points | seeds |\n|---|--:|---|--:|--:|",
    ]
    compared = {c["method"]: c for c in document["comparisons"]}
    for name, result in results.items():
        c = compared.get(name)
        cells = f"{c['rival']} | {difference_cell([c], name, c['domain']).strip(' []')}" if c else "– | –"
        lines.append(f"| {name} | {score_cell(result)} | {cells} | {len(result['seeds'])} |")
    return lines


def extrapolated_steps() -> list[str]:
    """EffOPD's idea, with and without."""
    document = read("extrapolated_steps")
    if not document:
        return []
    lines = [
        f"\nThe student moved on along its own way of the last {document['every']} steps, by the best of the factors "
        f"{', '.join(f'{f:g}' for f in document['factors'])} (EffOPD's idea). Not an option of gopd-merge. Made by "
        f"`{document['command']}`.\n",
        "| steps | domain | plain | extrapolated | difference (points) | factor, mean | seeds |\n|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in document["rows"]:
        domain, name = row["plain"]["domain"], f"extrapolated, {row['steps']} steps"
        factor = fmean(f for run in row["factors"] for f in run)
        lines.append(
            f"| {row['steps']} | {domain} | {score_cell(row['plain'])} | {score_cell(row['extrapolated'])} | "
            f"{difference_cell(document['comparisons'], name, domain).strip(' []')} | {factor:.2f} | {len(row['seeds'])} |"
        )
    return lines


def horizons() -> list[str]:
    """Quality against the part of the responses that was seen."""
    document = read("horizon")
    if not document:
        return []
    rows = document["rows"]
    whole = next(row for row in rows if row["options"].get("horizon") is None)
    count = max(result["n"] for result in whole["results"])
    lines = [
        f"Accuracy in per cent on {count:,} test questions a domain, answered in full, with 95 % intervals; in brackets the paired "
        "difference in points from whole responses, an asterisk where significant at 5 % after Holm's correction. Mean over "
        f"{len(whole['seeds'])} seeds, embedded default, NF4, CPU. Made by `{document['command']}`.\n",
        "| `--horizon` | responses longer than that | response tokens trained on | code | math |\n|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        by_domain = {result["domain"]: result for result in row["results"]}
        cells = [score_cell(by_domain[d]) + difference_cell(document["comparisons"], row["name"], d) for d in DOMAINS]
        cut = "–" if row["past_horizon"] is None else f"{100 * row['past_horizon']:.0f} %"
        tokens = f"{row['tokens']:,} ({100 * row['tokens'] / whole['tokens']:.0f} %)"
        lines.append(f"| {row['options'].get('horizon') or 'none'} | {cut} | {tokens} | {' | '.join(cells)} |")
    return lines


TABLES: dict[str, Callable[[], list[str]]] = {
    "estimators": estimators,
    "alpha": of_studies("alpha", "sampled"),
    "probe": probe_prediction,
    "adaptive": of_studies("adaptive", also=("alpha 1.5",)),
    "start": lambda: [*of_studies("start", also=(DEFAULT, "12 steps"))(), *extrapolated_steps()],
    "rotate": of_studies("rotate", also=(DEFAULT,)),
    "strong_to_weak": strong_to_weak,
    "methods": of_studies("methods", also=(DEFAULT, "alpha 1")),
    "horizon": horizons,
}
