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


BLOCKS = {"faq.md": {"static": static_table, "seconds": seconds_text}, "one-gpu.md": {"one gpu": one_gpu_table}}
