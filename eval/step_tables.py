"""The sections of docs/speed.md on the step's profile and on start-up, out of eval/results/{profile_step,startup}.json."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path("eval/results")
PHASES = ("score", "update")


def profile_table() -> list[str]:
    """Seconds, and their shares by kind of operation."""
    document = json.loads((RESULTS / "profile_step.json").read_text())
    lines = [
        "## Where the time goes\n",
        f"Scoring and update of {document['prompts']} prompts of up to {document['prompt_tokens']} tokens with responses of up to "
        f"{document['response_tokens']}: random weights in the shapes of published models, two experts on all linear layers, α = 1.25, "
        f"micro-batches of {document['micro_batch']}, chunks of {document['chunk']}. Medians of {document['steps']} steps.\n",
        "| model, base, lengths | score (s) | update (s) | share of the matrix product's peak | peak above the weights (MB) |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in document["rows"]:
        cells = [f"{row['seconds'][phase]:.2f}" for phase in PHASES]
        cells += [f"{row['share_of_matrix_peak']:.2f}", f"{row['peak_bytes'] / 1e6:,.0f}"]
        lines.append(f"| {row['case']} | {' | '.join(cells)} |")
    kinds = list(document["rows"][0]["shares"]["score"])
    lines += ["\nShares of a phase's time by kind of operation, in per cent, under torch.profiler (one step):\n"]
    lines += [f"| model, base, lengths | phase | {' | '.join(kinds)} |", "|---|---|" + "--:|" * len(kinds)]
    for row in document["rows"]:
        for phase in PHASES:
            shares = [f"{100 * row['shares'][phase][kind]:.0f}" for kind in kinds]
            lines.append(f"| {' | '.join([row['case'], phase, *shares])} |")
    return [*lines, made_by(document)]


def startup_table() -> list[str]:
    """From the command to its end."""
    document = json.loads((RESULTS / "startup.json").read_text())
    lines = [
        "Seconds from the command, on the embedded default; medians of five.\n",
        "| until | seconds | at most | met |\n|---|--:|--:|---|",
    ]
    for row in document["rows"]:
        lines.append(f"| {row['until']} | {row['seconds']:.2f} | {row['at_most']:g} | {'yes' if row['met'] else 'no'} |")
    return [*lines, made_by(document)]


def made_by(document: dict[str, Any]) -> str:
    """Where it comes from."""
    return f"\n{document['environment']['device']}, torch {document['environment']['torch']}. Made by `{document['command']}`."
