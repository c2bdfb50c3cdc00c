"""Make eval/README.md and the generated parts of README.md and docs/ out of eval/results/*.json and of the program itself.

python eval/tables.py
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from docs_numbers import BLOCKS
from method_tables import TABLES
from run_tables import RESULTS, many_experts_table, processes_table, rollout_table, soak_table
from speed_tables import PICTURE, side_by_side_tables, write_picture
from step_tables import profile_table, startup_table
from study_tables import STUDY, four_tables, longer_tables, start_table, study_tables
from study_tables import headline as study_headline
from study_tables import write_picture as write_scores_picture

from gopd_merge.report.document import read_document
from gopd_merge.report.terminal import label_of, parameters_text
from gopd_merge.report.text import markdown_text
from gopd_merge.report.verdict import verdict_of

DOMAINS = ("math", "code")


def score_of(rows: list[dict], **wanted: object) -> float:
    """Score of the one row that matches."""
    (score,) = (r["score"] for r in rows if all(r[k] == v for k, v in wanted.items()))
    return score


def seeds_tables() -> list[str]:
    """The whole comparison, as `gopd-merge report --format markdown` writes it."""
    document = read_document(RESULTS / "embedded_seeds.json")
    seeds = sorted({seed for row in document.results for seed in row.seeds})
    return [
        f"## The embedded default, {len(seeds)} seeds\n",
        f"Merges of {len(seeds)} seeds at each α, all test questions; the rivals' coefficients were chosen on validation questions. NF4, "
        f"{document.environment['device']}, torch {document.environment['torch']}. Made by `{document.command}`.\n",
        markdown_text(document),
    ]


def headline() -> list[str]:
    """What the README says of the embedded default."""
    document = read_document(RESULTS / "embedded_seeds.json")
    n, seeds = max(row.n for row in document.results), max(len(row.seeds) for row in document.results)
    return [
        f"{verdict_of(document).sentence} (At temperature 1, {n:,} questions a domain, the mean of {seeds} seeds; "
        "[all numbers](eval/README.md), with every α, every rival, the spread over seeds and the cost.)"
    ]


def tuning_table() -> list[str]:
    """What every rival got: its grid's best point."""
    document = read_document(RESULTS / "embedded_seeds.json")
    lines = ["\n### How the rivals were tuned\n", "| rival | points tried | chosen |\n|---|---|---|"]
    for method in dict.fromkeys(row.method for row in document.tuning):
        points = {json.dumps(row.parameters) for row in document.tuning if row.method == method}
        chosen = next((row.parameters for row in document.tuning if row.method == method and row.chosen), {})
        lines.append(f"| {label_of(method, None)} | {len(points)} | {parameters_text(chosen) or 'nothing to choose'} |")
    return lines


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
            is_there = any(r["alpha"] == alpha for r in merged)
            cells.append(f"{100 * score_of(merged, alpha=alpha, domain=domain):.1f}" if is_there else "")
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
        "Made by the first, short version of `eval/real` (at commit 5eef6fc); accuracies are not measured here."
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


def domains_table() -> list[str]:
    """Base and expert on each of the further domains."""
    document = json.loads((RESULTS / "domains.json").read_text())
    lines = [
        "\n## Further domains\n",
        f"Accuracy in per cent with 95 % intervals at temperature {document['temperature']:g} on the test questions of the small domains "
        "that merges of many experts are measured with, and what training each expert took on the embedded base. Experts made by "
        f"`python eval/domains/train.py`, measured by `{document['command']}`.\n",
        "| domain | base | expert | n | rank | steps | seconds |\n|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in document["domains"]:
        scores = [f"{100 * r['score']:.1f} ({100 * r['low']:.1f}–{100 * r['high']:.1f})" for r in row["results"]]
        made = " | ".join(str(row["training"][name]) for name in ("rank", "steps", "seconds"))
        lines.append(f"| {row['domain']} | {' | '.join(scores)} | {row['results'][0]['n']:,} | {made} |")
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
        ("embedded_seeds", tuning_table),
        ("target_probe", target_table),
        ("main_command", cost_table),
        ("memory", memory_table),
        ("fuzz_intake", fuzz_text),
        ("rollout", rollout_table),
        ("smollm2", real_table),
        ("smollm2_study", study_tables),
        ("smollm2_study_longer", longer_tables),
        ("smollm2_study_four", four_tables),
        ("interval_coverage", coverage_table),
        ("domains", domains_table),
        ("many_experts", many_experts_table),
        ("side_by_side", side_by_side_tables),
    ):
        if (RESULTS / f"{name}.json").is_file():
            parts += table()
    Path("eval/README.md").write_text("\n".join(parts) + "\n")
    plan = ("plan", "--experts", "adapters/math.lora", "adapters/code.lora", "--memory", "4GB", "--calibrate", "--overwrite")
    page = Path("docs/one-gpu.md")
    page.write_text(replace_between(page.read_text(), "plan", f"```text\n$ gopd-merge {' '.join(plan)}\n{shown(*plan)}\n```"))
    for name, blocks in BLOCKS.items():
        page = Path("docs") / name
        for block, lines in blocks.items():
            page.write_text(replace_between(page.read_text(), block, "\n".join(lines())))
    if (RESULTS / "embedded_seeds.json").is_file():
        Path("README.md").write_text(replace_between(Path("README.md").read_text(), "results", "\n".join(headline())))
    if STUDY.is_file():
        write_scores_picture()
        Path("README.md").write_text(replace_between(Path("README.md").read_text(), "study", "\n".join(study_headline())))
    page = Path("docs/method.md").read_text()
    for name, table in (
        TABLES | {"experts": lambda: many_experts_table()[1:], "real start": start_table}
    ).items():  # the page has a heading of its own
        page = replace_between(page, f"results {name}", "\n".join(table()).strip())
    Path("docs/method.md").write_text(page)
    if (RESULTS / "processes.json").is_file():
        page = Path("docs/scaling.md")
        page.write_text(replace_between(page.read_text(), "processes", "\n".join(processes_table())))
    if (RESULTS / "soak.json").is_file():
        page = Path("docs/runs.md")
        page.write_text(replace_between(page.read_text(), "soak", "\n".join(soak_table())))
    for name, file, section in (("profile", "profile_step", profile_table), ("startup", "startup", startup_table)):
        if (RESULTS / f"{file}.json").is_file():
            Path("docs/speed.md").write_text(replace_between(Path("docs/speed.md").read_text(), name, "\n".join(section()).strip()))
    if (RESULTS / "side_by_side.json").is_file():
        speed = replace_between(Path("docs/speed.md").read_text(), "side by side", "\n".join(side_by_side_tables(PICTURE.name)).strip())
        Path("docs/speed.md").write_text(speed)
        write_picture()
    print("\n".join(parts))
