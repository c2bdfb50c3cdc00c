"""Sentences and tables of docs/ that hold numbers, out of eval/results/*.json; `python eval/tables.py` puts them in."""

import json
import statistics
from pathlib import Path

from gopd_merge.report.document import read_document
from gopd_merge.report.tables import score_table
from gopd_merge.report.terminal import byte_text

RESULTS = Path(__file__).parent / "results"
NAMED = ("**merged, α = 1.25**", "merged, α = 1.5", "ExPO", "task arithmetic", "TIES", "DARE-TIES", "exact average")


def static_table() -> list[str]:
    """Mean scores of the merge and of weight arithmetic on the embedded default."""
    document = read_document(RESULTS / "embedded_seeds.json")
    table = score_table(document)
    at = [title for title, _ in table.columns].index("mean (%)")
    means = {row.cells[0].text: row.cells[at].text for row in table.rows}
    needs = {"merged": "prompts", "exact average": "nothing"}
    rows = [
        (name, means[name.strip("*")], needs.get(name.strip("*").partition(",")[0], "graded questions, for its coefficients"))
        for name in NAMED
    ]
    return ["| method | mean of both domains (%) | needs |", "|---|--:|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def seconds_text() -> list[str]:
    """What the main command takes."""
    runs = json.loads((RESULTS / "main_command.json").read_text())
    median = {name: statistics.median(run["seconds"][name] for run in runs["runs"]) for name in ("total", "evaluate")}
    return [
        f"On the embedded default a merge of 50 steps takes {median['total']:.0f} s on {runs['environment']['device']}; "
        f"{median['evaluate']:.0f} s of them are the measuring at the end, which `--no-eval` leaves out."
    ]


def one_gpu_table() -> list[str]:
    """What is planned for a base of 8 billion parameters in 24 GB."""
    document = json.loads((RESULTS / "one_gpu.json").read_text())
    parts = ("base", "student", "optimizer")
    lines = ["| options | base | student, optimizer | rollout | score | update | peak | in 24 GB |", "|---|--:|--:|--:|--:|--:|--:|---|"]
    for plan in document["plans"]:
        memory = plan["memory"]
        always = [memory[part] for part in parts]
        sizes = [always[0], sum(always[1:]), *(memory["phases"][phase] for phase in ("rollout", "score", "update")), memory["peak"]]
        shown = " | ".join(byte_text(size) for size in sizes)
        lines.append(f"| `{plan['options']}` | {shown} | {'refused' if plan['exit_code'] else 'fits'} |")
    return [*lines, "", f"Planned, not measured: nobody has run it on a GPU yet. Made by `{document['command']}`."]


def synthetic_table() -> list[str]:
    """Merges on prompts that the experts wrote against real ones, and whose domain those prompts are of."""
    path = RESULTS / "synthetic_prompts.json"
    if not path.is_file():
        return []
    document = json.loads(path.read_text())
    domains = [row["domain"] for row in document["purity"]]
    lines = (
        []
        if not document["rows"]
        else [
            f"On the embedded default, merges on {document['prompts']:,} prompts a domain, {len(document['seeds'])} seeds: accuracy in "
            "per cent with 95 % intervals over questions, and the paired difference from real prompts in points (* where Holm's test finds "
            "one).\n",
            f"| prompts | {' | '.join(f'{d} (%) | difference' for d in domains)} | n |\n|---|{'--:|--:|' * len(domains)}--:|",
        ]
    )
    for row in document["rows"]:
        cells = []
        for domain in domains:
            (found,) = (r for r in row["results"] if r["domain"] == domain)
            compared = [c for c in document["comparisons"] if (c["method"], c["domain"]) == (row["name"], domain)]
            cells.append(f"{100 * found['score']:.1f} ({100 * found['low']:.1f}–{100 * found['high']:.1f})")
            cells.append(_difference(compared[0]) if compared else "–")
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['results'][0]['n']:,} |")
    lines += [
        *([""] if lines else []),
        "Share of prompts that are of the expert's own domain (by their form, which is known here), in per cent:\n",
        "| expert | all that it wrote | those likelier under it than under the base | those that were kept | written | kept |\n"
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in document["purity"]:
        shares = " | ".join(f"{100 * row['shares'][name]:.1f}" for name in ("written", "likelier", "kept"))
        lines.append(f"| {row['domain']} | {shares} | {row['written']:,} | {row['kept']:,} |")
    environment = document["environment"]
    return [*lines, f"\n{environment['device']}, torch {environment['torch']}. Made by `{document['command']}`."]


def _difference(found: dict) -> str:
    star = "*" if found["p_holm"] is not None and found["p_holm"] < 0.05 else ""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f}){star}"


def incremental_table() -> list[str]:
    """What each way to add an expert to a merge makes of all domains."""
    document = json.loads((RESULTS / "incremental.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    domains = [result["domain"] for result in rows["base"]["results"]]
    changed = {(one["method"], one["domain"]): one for one in document["comparisons"] if one["rival"] == "first"}
    lines = [f"| {' | '.join(['merge', *domains, 'tokens'])} |", "|---" + "|--:" * (len(domains) + 1) + "|"]
    for name, row in rows.items():
        if name.startswith("expert:"):
            continue
        cells = []
        for result in row["results"]:
            text = f"{100 * result['score']:.1f} ({100 * result['low']:.1f}–{100 * result['high']:.1f})"
            one = changed.get((name, result["domain"]))
            if one:
                star = "*" if one["p_holm"] < 0.05 else ""
                text += f" [{100 * one['difference']:+.1f}{star}]".replace("-", "−")
            cells.append(text)
        tokens = f"{row['tokens']:,}" if row["tokens"] else "–"
        lines.append(f"| {' | '.join([name, *cells, tokens])} |")
    seeds = max(len(result["seeds"]) for row in rows.values() for result in row["results"])
    about = [f"- *{row['name']}*: {row['about']}." for row in rows.values() if row["about"]]
    n, over = rows["base"]["results"][0]["n"], "1 seed" if seeds == 1 else f"{seeds} seeds"
    return [
        "Measured on the embedded default: *first* is a merge of the math expert alone, to which the code expert is added. Accuracy in per "
        f"cent with 95 % intervals over {n:,} questions a domain, {over}; in brackets the paired difference from the first merge in "
        "points, with an asterisk where it is significant at 5 % after Holm's correction. Tokens are those that the student answered in "
        "training. "
        f"Made by `{document['command']}`.",
        "",
        *lines,
        "",
        *about,
    ]


BLOCKS = {
    "prompts.md": {"synthetic": synthetic_table},
    "faq.md": {"static": static_table, "seconds": seconds_text},
    "one-gpu.md": {"one gpu": one_gpu_table},
} | ({"many-experts.md": {"incremental": incremental_table}} if (RESULTS / "incremental.json").is_file() else {})
