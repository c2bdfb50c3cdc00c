"""What the study on a real model gave, out of eval/results/smollm2_study.json: for the README and eval/README.md, and as a picture."""

import json
from pathlib import Path
from typing import Any

from pictures import write_scores
from run_tables import RESULTS

from gopd_merge.report.document import Document, read_document
from gopd_merge.report.lines import lines_of
from gopd_merge.report.tables import score_table
from gopd_merge.report.text import markdown_table, markdown_text
from gopd_merge.report.verdict import verdict_of

STUDY, FOUR = RESULTS / "smollm2_study.json", RESULTS / "smollm2_study_four.json"
LONGER = RESULTS / "smollm2_study_longer.json"
START = RESULTS / "smollm2_start.json"
PICTURE = Path("docs/smollm2_study.svg")
OWN = "own"


def headline() -> list[str]:
    """The README's table and picture."""
    document = read_document(STUDY)
    seeds = max(len(row.seeds) for row in document.results)
    return [
        f"![Scores of every method in both domains, with 95 % intervals]({PICTURE})\n",
        f"{verdict_of(document).sentence} Accuracy in per cent at temperature 1 with 95 % intervals over questions; trained merges are the "
        f"mean of {seeds} seeds:\n",
        markdown_table(score_table(document)),
    ]


def study_tables() -> list[str]:
    """What was made and how, the search for learning rates, then the comparison as `gopd-merge report` writes it."""
    document, study = read_document(STUDY), _study()
    return [
        "\n## A real model, two experts and every way to merge them\n",
        f"SmolLM2-135M-Instruct in float32; experts by supervised fine-tuning and then reinforcement learning. {_budget(study)} "
        f"{document.environment['device']}. Made by `{document.command}`.\n",
        f"![Scores of every method in both domains, with 95 % intervals](../{PICTURE})\n",
        "| expert | recipe | steps | examples | validation before (%) | after (%) | minutes |\n|---|---|--:|--:|--:|--:|--:|",
        *(_made(domain, recipe, row) for domain, recipes in study["experts"].items() for recipe, row in recipes.items()),
        "\nThe search: mean accuracy over both domains' validation questions, in per cent; the best rate is that of all seeds.\n",
        *_search(study),
        "",
        markdown_text(document),
    ]


def longer_tables() -> list[str]:
    """What four times the steps give."""
    document = read_document(LONGER)
    return [
        "\n## A real model, four times the steps\n",
        "Merges of the same two experts, of one seed, begun at the experts' average and at the base, beside the same static merges.\n",
        markdown_text(document),
    ]


def four_tables() -> list[str]:
    """The merge of four experts of the same base."""
    document = read_document(FOUR)
    return [
        "\n## A real model, four experts\n",
        "The same base and the same command with two further experts, made by supervised fine-tuning alone; the headline's method at the "
        "rate that the study of two chose.\n",
        markdown_text(document),
    ]


def start_table() -> list[str]:
    """One merge begun at the base and at the experts' average: how far from the target, and what it answers."""
    document = json.loads(START.read_text())
    first = document["rows"][0]
    domains = list(first["domains"])
    titles = [title for d in domains for title in (f"{d}, KL at step 1", f"{d}, last {document['last']} steps", f"{d} (%)")]
    lines = [
        f"SmolLM2-135M, experts by supervised fine-tuning and reinforcement learning, α = {first['alpha']:g}, {first['steps']} steps of "
        f"{first['batch_size']} prompts, one seed: KL to the target on the student's own answers, nats a token, and right answers on "
        f"{first['domains'][domains[0]]['asked']} validation questions a domain with 95 % intervals. Made by `{document['command']}`.\n",
        f"| `--start` | {' | '.join(titles)} | seconds |\n|---|{'--:|' * (len(titles) + 1)}",
    ]
    for row in document["rows"]:
        cells = []
        for found in row["domains"].values():
            score, low, high = (100 * value for value in (found["right"] / found["asked"], found["low"], found["high"]))
            cells += [f"{found['kl_first']:.2f}", f"{found['kl_last']:.2f}", f"{score:.0f} ({low:.0f}–{high:.0f})"]
        lines.append(f"| `{row['start']}` | {' | '.join(cells)} | {row['seconds']:.0f} |")
    return lines


def write_picture() -> None:
    """Both domains' own test questions."""
    document = read_document(STUDY)
    keys = [suite.key for suite in document.suites if suite.key[0] == OWN]
    write_scores(PICTURE, "Every way to merge two experts of SmolLM2-135M", document, lines_of(document), keys, _titles(document, keys))


def _titles(document: Document, keys: list[tuple[str, str]]) -> list[str]:
    counts = [max(row.n for row in document.results if row.key == key) for key in keys]
    return [f"{key[1]}, {count} questions" for key, count in zip(keys, counts, strict=True)]


def _study() -> dict[str, Any]:
    study: dict[str, Any] = json.loads(STUDY.read_text())["study"]
    return study


def _budget(study: dict[str, Any]) -> str:
    budget = study["budget"]
    start = "the base" if budget["start"] == "none" else f"the experts' {budget['start']}"
    return (
        f"Every trained method has the same {budget['steps']} steps of {budget['batch_size']} prompts, begins at {start}, and has the same "
        f"search for a learning rate on {budget['tune']} validation questions a domain, of which none is a test question."
    )


def _made(domain: str, recipe: str, row: dict[str, Any]) -> str:
    before, after = row["scores"][0], row["best"]
    scores = " | ".join(f"{100 * s['score']:.0f} ({100 * s['low']:.0f}–{100 * s['high']:.0f})" for s in (before, after))
    return f"| {domain} | {recipe} | {row['steps']} | {row['examples']['train']:,} | {scores} | {row['seconds']['total'] / 60:.0f} |"


def _search(study: dict[str, Any]) -> list[str]:
    rates = sorted({row["learning_rate"] for row in study["search"]})
    lines = [f"| method | {' | '.join(f'{rate:g}' for rate in rates)} |\n|---|{'--:|' * len(rates)}"]
    for method, chosen in study["learning_rates"].items():
        found = {row["learning_rate"]: 100 * row["mean"] for row in study["search"] if row["method"] == method}
        cells = [f"**{found[rate]:.1f}**" if rate == chosen else f"{found[rate]:.1f}" for rate in rates]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines
