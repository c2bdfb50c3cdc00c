"""Make eval/README.md's tables and the generated parts of README.md out of eval/results/*.json and of the program itself.

python eval/tables.py
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from scipy.stats import t

RESULTS = Path("eval/results")
DOMAINS = ("math", "code")


def interval(values: list[float]) -> str:
    """Mean and 95 % t-interval over seeds, in points."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = 100 * t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def score_of(rows: list[dict], **wanted: object) -> dict[int, float]:
    """Score by seed of the rows that match."""
    return {r["seed"]: r["score"] for r in rows if all(r[k] == v for k, v in wanted.items())}


def method_names(document: dict, rows: list[dict]) -> dict[tuple[str, float | None], str]:
    """The rows of a table, in order: (method, α) -> what it is called."""
    names: dict[tuple[str, float | None], str] = {
        ("base", None): "base",
        ("expert:math", None): "math expert",
        ("expert:code", None): "code expert",
        ("average", None): "exact average",
        ("task_arithmetic", None): f"task arithmetic × {document['tuned_coefficient']:g} (tuned)",
    }
    return names | {(r["method"], r["alpha"]): f"merged, α = {r['alpha']:g}" for r in rows if r["alpha"] is not None}


def seeds_tables() -> list[str]:
    document = json.loads((RESULTS / "embedded_seeds.json").read_text())
    rows = [r for r in document["results"] if r["split"] == "test"]
    names = method_names(document, rows)
    lines = [
        "| accuracy, % | math, temperature 1 | code, temperature 1 | math, greedy | code, greedy |\n|---|---|---|---|---|",
    ]
    for (method, alpha), name in names.items():
        cells = [
            interval(list(score_of(rows, method=method, alpha=alpha, domain=d, temperature=temp).values()))
            for temp in (1.0, 0.0)
            for d in DOMAINS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("\nDifference in points, paired by seed and question, temperature 1 (an interval without zero is more than chance):\n")
    lines.append("| | against | math | code |\n|---|---|---|---|")
    for (method, alpha), name in names.items():
        if alpha is None:
            continue
        for rival, rival_name in (
            ("average", "exact average"),
            ("task_arithmetic", "task arithmetic"),
            ("expert", "the domain's own expert"),
        ):
            cells = []
            for d in DOMAINS:
                ours = score_of(rows, method=method, alpha=alpha, domain=d, temperature=1.0)
                theirs = score_of(rows, method=f"expert:{d}" if rival == "expert" else rival, domain=d, temperature=1.0)
                cells.append(interval([ours[seed] - theirs[seed] for seed in ours]))
            lines.append(f"| {name} | {rival_name} | {' | '.join(cells)} |")
    n = {r["n"] for r in rows}
    seeds = len({r["seed"] for r in rows})
    header = f"## The embedded default, {seeds} seeds\n\nn = {', '.join(f'{x:,}' for x in n)} test questions per domain; ± is the 95 % "
    header += (
        f"t-interval over {seeds} seeds (sampling, prompts and student); greedy answers of the rivals do not depend on the seed. NF4, "
    )
    header += f"{document['environment']['device']}, torch {document['environment']['torch']}. Made by `{document['command']}`.\n"
    return [header, *lines]


def headline() -> list[str]:
    """The README's own table: temperature 1, mean over seeds."""
    document = json.loads((RESULTS / "embedded_seeds.json").read_text())
    rows = [r for r in document["results"] if r["split"] == "test" and r["temperature"] == 1.0]
    n = rows[0]["n"]
    seeds = len({r["seed"] for r in rows})
    lines = [
        f"Accuracy in per cent at temperature 1, mean ± 95 % interval over {seeds} seeds, {n:,} questions per domain:\n",
        "| | math | code |\n|---|---|---|",
    ]
    for (method, alpha), name in method_names(document, rows).items():
        cells = [interval(list(score_of(rows, method=method, alpha=alpha, domain=d).values())) for d in DOMAINS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "\n[eval/README.md](eval/README.md) has the greedy scores, the paired differences and the cost."]


def target_table() -> list[str]:
    """How good the target itself is, and how far from it the trained students end."""
    document = json.loads((RESULTS / "target_probe.json").read_text())
    merged = [r for r in json.loads((RESULTS / "embedded_seeds.json").read_text())["results"] if r["method"] in ("opd", "exopd")]
    lines = [
        "\n## What the target allows\n",
        "Accuracy of the target `teacher^α · reference^(1−α)` itself, sampled token by token without any student (temperature 1, one seed, "
        "95 % interval over questions), beside the mean of the students that were trained toward it. "
        f"Made by `{document['command']}`.\n",
        "| α | math, target | math, student | code, target | code, student |\n|---|---|---|---|---|",
    ]
    for alpha in dict.fromkeys(r["alpha"] for r in document["results"]):
        cells = []
        for domain in DOMAINS:
            (target,) = (r for r in document["results"] if (r["alpha"], r["domain"]) == (alpha, domain))
            cells.append(f"{100 * target['score']:.1f} ({100 * target['low']:.1f}–{100 * target['high']:.1f})")
            students = score_of(merged, alpha=alpha, domain=domain, temperature=1.0).values()
            cells.append(f"{100 * statistics.mean(students):.1f}" if students else "")
        lines.append(f"| {alpha:g} | {' | '.join(cells)} |")
    return lines


def cost_table() -> list[str]:
    document = json.loads((RESULTS / "main_command.json").read_text())
    lines = [
        "\n## What the main command costs\n",
        f"Seconds, median of {len(document['runs'])} runs on {document['environment']['device']}. Made by `{document['command']}`.\n",
        "| phase | seconds |\n|---|---|",
    ]
    for phase in ("load", "rollout", "score", "update", "evaluate", "total"):
        lines.append(f"| {phase} | {statistics.median(run['seconds'][phase] for run in document['runs']):.1f} |")
    wall = statistics.median(run["wall_seconds"] for run in document["runs"])
    peak = statistics.median(run["peak_memory_bytes"] for run in document["runs"])
    lines.append(f"| the whole process, imports included | {wall:.1f} |")
    return [*lines, f"\nPeak resident memory {peak / 1e6:.0f} MB, most of it libraries."]


def memory_table() -> list[str]:
    document = json.loads((RESULTS / "memory.json").read_text())
    lines = [
        "\n## Is the plan's memory right?\n",
        "Peak resident memory of merges against what `gopd-merge plan` said before, in MB: held to 1.15 times the plan with `--memory`, "
        "and left free, where glibc keeps freed blocks in its heap and the run is faster (other work ran beside; times are not compared). "
        f"Models above 1 M parameters have random weights. {document['environment']['device']}. Made by `{document['command']}`.\n",
        "| run | parameters | planned | held | planned / held | left free |\n" + "|---" * 6 + "|",
    ]
    for row in document["rows"]:
        sizes = " | ".join(f"{row[f'{name}_bytes'] / 1e6:,.0f}" for name in ("planned", "held"))
        lines.append(
            f"| {row['case']} | {row['parameters'] / 1e6:,.1f} M | {sizes} | {row['planned_to_held']:.2f} | "
            f"{row['free_bytes'] / 1e6:,.0f} |"
        )
    return lines


def fuzz_text() -> list[str]:
    document = json.loads((RESULTS / "fuzz_intake.json").read_text())
    return [
        "\n## Damaged adapters\n",
        f"`{document['command']}`: {document['executions']:,} damaged adapters in {document['seconds']:,.0f} s, coverage-guided: "
        f"{document['refused']:,} refused in a line, {document['taken']:,} taken, {document['finds']} that did neither. "
        f"Inputs kept as tests: {document['finds_kept_as_tests']}.",
    ]


def real_table() -> list[str]:
    document = json.loads((RESULTS / "smollm2.json").read_text())
    lines = [f"\n## A real model\n\n{document['what']}.\n", "| held-out KL to the target, nats a token | before | after |\n|---|---|---|"]
    for domain, kl in document["held_out_kl"].items():
        lines.append(
            f"| {domain} ({kl['before']['prompts']} prompts) | {kl['before']['kl_to_target']:.4f} | {kl['after']['kl_to_target']:.4f} |"
        )
    seconds, peak = document["seconds"], document["peak_memory_bytes"]
    phases = ", ".join(f"{phase} {seconds[phase]:.0f}" for phase in ("rollout", "score", "update"))
    lines.append(
        f"\nThe merge took {seconds['total']:.0f} s ({phases}), peak memory {peak / 1e9:.1f} GB, on {document['environment']['device']}. "
        "Made by `eval/real/smollm2.py`; accuracies are not measured here."
    )
    return lines


def coverage_table() -> list[str]:
    document = json.loads((RESULTS / "interval_coverage.json").read_text())
    names = [name for name, value in document["rows"][0].items() if isinstance(value, dict)]
    lines = [
        "\n## Do the intervals hold what they say?\n",
        f"Share of {document['draws']} simulated draws of questions in which a 95 % interval holds the truth: the least over "
        "difficulties and over 1, 4 and 16 samples a question. `percentile` and `BCa` are scipy's bootstraps of a score, "
        "`bootstrap_interval` and `difference_interval` are what is used for scores and for paired differences (with a shift where one "
        f"method is better by it on half of the questions). Made by `{document['command']}`.\n",
        f"| questions | {' | '.join(names)} |\n" + "|---" * (len(names) + 1) + "|",
    ]
    for n in dict.fromkeys(row["n"] for row in document["rows"]):
        cells = [f"{min(row[name]['coverage'] for row in document['rows'] if row['n'] == n):.2f}" for name in names]
        lines.append(f"| {n:,} | {' | '.join(cells)} |")
    return lines


def replace_between(text: str, name: str, content: str) -> str:
    """`text` with what stands between <!-- name --> and <!-- /name --> replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    return text.split(begin, maxsplit=1)[0] + begin + "\n" + content + "\n" + end + text.split(end)[1]


def shown(*arguments: str) -> str:
    """What the command prints, 100 columns wide."""
    command = [Path(sys.executable).with_name("gopd-merge"), *arguments]
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    ).stdout
    return "\n".join(line.rstrip() for line in printed.splitlines()).strip()


if __name__ == "__main__":
    parts = ["# Results\n\nWritten by `python eval/tables.py` from the JSON files in `results/`.\n"]
    for name, table in (
        ("embedded_seeds", seeds_tables),
        ("target_probe", target_table),
        ("main_command", cost_table),
        ("memory", memory_table),
        ("fuzz_intake", fuzz_text),
        ("smollm2", real_table),
        ("interval_coverage", coverage_table),
    ):
        if (RESULTS / f"{name}.json").is_file():
            parts += table()
    Path("eval/README.md").write_text("\n".join(parts) + "\n")
    readme = replace_between(Path("README.md").read_text(), "help", f"```text\n{shown('--help')}\n```")
    plan = ("plan", "--experts", "adapters/math.lora", "adapters/code.lora", "--memory", "4GB", "--calibrate", "--overwrite")
    readme = replace_between(readme, "plan", f"```text\n$ gopd-merge {' '.join(plan)}\n{shown(*plan)}\n```")
    if (RESULTS / "embedded_seeds.json").is_file():
        readme = replace_between(readme, "results", "\n".join(headline()))
    Path("README.md").write_text(readme)
    print("\n".join(parts))
