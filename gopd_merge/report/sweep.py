"""What a sweep does and found, as text for the terminal. No torch."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from gopd_merge.halving import Halving
from gopd_merge.report.lines import score_text
from gopd_merge.report.terminal import columns


def candidate_text(alpha: float, learning_rate: float | None) -> str:
    """`α = 1.25`, `α = 1.25, learning rate 0.002`."""
    return f"α = {alpha:g}" + ("" if learning_rate is None else f", learning rate {learning_rate:g}")


def schedule_text(halving: Halving, full: Sequence[int]) -> str:
    """What the sweep will do, in one line; `full` are the steps of the candidates' full runs."""
    rungs = " → ".join(f"{size}" for size in (*halving.sizes, 1))
    first = sorted(set(halving.steps(full)))
    short = f"{first[0]}" if len(first) == 1 else f"{first[0]} to {first[-1]}"
    return (
        f"sweep    {rungs} candidates: {halving.sizes[0]} runs of {short} steps first, the winner in full; "
        f"at most 3 full runs of {halving.longest} steps in all"
    )


def sweep_text(document: Mapping[str, Any]) -> str:
    """All runs of a sweep's scale document by rung, with each domain's score, and what was chosen."""
    points = document["points"]
    domains = sorted({point["domain"] for point in points})
    rows = [["  rung", "α", "learning rate", "steps", *(f"{domain} (%)" for domain in domains), "mean (%)", ""]]
    last = max(point["rung"] for point in points)
    for (rung, alpha, rate, full), same in groupby(points, key=lambda p: (p["rung"], p["alpha"], p["learning_rate"], p["full_steps"])):
        found = {point["domain"]: point for point in same}
        goes_on = any((p["rung"], p["alpha"], p["learning_rate"], p["full_steps"]) == (rung + 1, alpha, rate, full) for p in points)
        chosen = document["chosen_options"]
        is_best = rung == last and (alpha, rate, full) == (
            next(iter(document["chosen"].values())),
            chosen["learning_rate"],
            chosen["steps"],
        )
        steps = next(iter(found.values()))["steps"]
        rows.append(
            [
                f"  {rung}",
                f"{alpha:g}",
                f"{rate:g}",
                f"{steps} of {full}",
                *(_score(found[domain]) for domain in domains),
                f"{100 * sum(point['score'] for point in found.values()) / len(found):.1f}",
                "chosen" if is_best else "goes on" if goes_on else "",
            ]
        )
    n = min(point["n"] for point in points)
    cost = document["cost"]
    return (
        f"Short runs on {n:,} validation questions of each domain (95 % intervals)\n{columns(rows)}\n"
        f"  cost: {cost['steps']:,} steps with the full run, as many as {cost['full_runs']:g} full runs"
    )


def _score(point: Mapping[str, Any]) -> str:
    return score_text((point["score"], point["low"], point["high"]), share=True)
