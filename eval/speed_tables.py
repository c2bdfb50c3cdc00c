"""The section "Side by side" of docs/speed.md and of eval/README.md, and its picture, out of eval/results/side_by_side.json."""

import json
from pathlib import Path
from typing import Any

from pictures import write_bars

RESULTS = Path("eval/results")
PICTURE = Path("docs/side_by_side.svg")
BOTH, ROLLOUT, WHOLE = "scoring and update", "rollout", "whole step"
EXPERTS_BAR = 1.15  # times the step with two experts that one with eight may take
Row = dict[str, Any]
EXPLAINED = (
    "`gopd_merge` and three others take the same optimiser step: the same prompts, response lengths, adapters on all linear layers of "
    "rank {rank}, float32, threads and optimiser. **A** is `trl`'s `DistillationTrainer` (reverse KL, λ = 1, one expert, merged into "
    "a teacher model of its own). **A′** is a subclass of it of thirty lines: expert and reference are adapters, on and off, of the "
    "student's own base, and the target is the mixed hidden state (λ = 1.5); *compacted*, it leaves out padding before the "
    "projection, as `trl` itself does on a GPU but not on a CPU. **B** has three models and full logits (λ = 1.5). Each has its own "
    "fastest micro-batch; activation checkpointing, `trl`'s default, is off but in **A, checkpointed**. **Ours, lean** "
    "is `gopd_merge` with `--activation-checkpointing --chunk-tokens 64`. Weights are random. Each contender has "
    "a process of its own, they take turns a step at a time, and nothing is timed before all have found the same loss and gradient.\n"
)


def side_by_side_tables(picture: str = f"../{PICTURE}") -> list[str]:
    """Everything that was measured, bars first; `picture` is where it is from the page."""
    document = json.loads((RESULTS / "side_by_side.json").read_text())
    return [
        *what(document),
        f"\n![Seconds of an optimiser step of each contender]({picture})",
        *bar_table(document),
        *speed_table(document),
        *ratio_table(document),
        *memory_tables(document),
        *parity_table(document),
        f"\n{document['environment']['device']}, torch {document['environment']['torch']}. Made by `{document['command']}`.",
    ]


def what(document: Row) -> list[str]:
    """What was measured, in words."""
    lines = [
        "\n## Side by side\n",
        EXPLAINED.format(rank=document["adapter"]["rank"]),
    ]
    for name, sizes in document["sizes"].items():
        full, ragged = (f"{sizes['tokens'][fill]['responses']:,}" for fill in ("full", "ragged"))
        shape = f"H = {sizes['hidden']}, {sizes['layers']} layers, V = {sizes['vocabulary']:,}"
        step = f"{sizes['prompts']} prompts of up to {sizes['longest_prompt']} tokens, responses of up to {sizes['longest_response']}"
        lines.append(
            f"- {name} ({shape}): {step}: {full} response tokens where all are full, {ragged} where lengths are ragged, spread evenly from "
            "0.2 to 1 of the longest."
        )
    return lines


def bar_table(document: Row) -> list[str]:
    """Bar, measured, met."""
    lines = ["\n### What was to be reached\n", "| bar | where | wanted | measured | met |\n|---|---|--:|--:|---|"]
    for bar in [*document["bars"], *experts_bars()]:
        wanted = f"≥ {bar['at_least']:.2f}" if bar["at_least"] is not None else f"≤ {bar['at_most']:.2f}"
        lines.append(f"| {bar['bar']} | {bar['where']} | {wanted} | {bar['measured']:.2f} | {'yes' if bar['met'] else 'no'} |")
    return lines


def experts_bars() -> list[Row]:
    """From eval/many_experts.py on the embedded default: a step with eight experts against one with two."""
    if not (RESULTS / "many_experts.json").is_file():
        return []
    rows = json.loads((RESULTS / "many_experts.json").read_text())["rows"]
    steps = {row["experts"]: row["seconds"]["step"] for row in rows if row["rotation"] in (None, "prompt")}
    ratio = steps[8] / steps[2]
    bar = {"bar": "whole step with eight experts, times that with two", "where": "the embedded default", "at_least": None}
    return [bar | {"at_most": EXPERTS_BAR, "measured": ratio, "met": ratio <= EXPERTS_BAR}]


def speed_table(document: Row) -> list[str]:
    """Seconds and tokens a second by phase."""
    lines = [
        "\n### Seconds and tokens a second\n",
        "Medians of all repetitions; tokens are response tokens. Scoring and update were measured on recorded responses, whole steps with "
        "the contender's own rollout, whose lengths were planned.\n",
        f"| model | lengths | contender | micro-batch | {' | '.join(f'{name} (s) | tokens/s' for name in (BOTH, ROLLOUT, WHOLE))} |",
        "|---|---|---|" + "--:|" * 7,
    ]
    whole = {(r["model"], r["fill"], r["contender"]): r for r in document["rows"] if r["work"] == "whole"}
    for row in document["rows"]:
        if row["work"] != "scoring":
            continue
        cells = [row["model"], row["fill"], row["contender"], str(row["micro_batch"]), *_speed(row, BOTH)]
        other = whole.get((row["model"], row["fill"], row["contender"]))
        cells += [*_speed(other, ROLLOUT), *_speed(other, WHOLE)] if other else [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _speed(row: Row, phase: str) -> list[str]:
    return [f"{row['seconds'][phase]:.2f}", f"{row['tokens_per_second'][phase]:.0f}"]


def ratio_table(document: Row) -> list[str]:
    """Times as fast, with the spread."""
    lines = [
        "\n### Times as fast\n",
        "How many times as long the rival takes as `gopd_merge` at the same λ, in the same repetition: median (lowest–highest).\n",
        "| model | lengths | | rival | scoring + update | rollout | whole step |\n|---|---|---|---|--:|--:|--:|",
    ]
    found: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for ratio in document["ratios"]:
        if ratio["work"] == "scoring" or (ratio["work"] == "whole" and ratio["phase"] != BOTH):
            cells = found.setdefault((ratio["model"], ratio["fill"], ratio["ours"], ratio["rival"]), {})
            cells[ratio["phase"]] = f"{ratio['ratio']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
    for key, cells in found.items():
        lines.append(f"| {' | '.join([*key, *(cells.get(phase, '') for phase in (BOTH, ROLLOUT, WHOLE))])} |")
    if document["shares"]:
        lines += [
            "\nUseful operations a second of scoring and update (by formula: no padding, nothing computed twice), as a share of what a "
            "large float32 matrix product reaches on the same machine in the same repetition:\n",
            "| model | lengths | contender | operations (10⁹) | matrix product (10⁹/s) | share |\n|---|---|---|--:|--:|--:|",
        ]
        for share in document["shares"]:
            spread = f"{share['share']:.2f} ({share['low']:.2f}–{share['high']:.2f})"
            numbers = f"{share['useful_flops'] / 1e9:,.0f} | {share['matrix_flops_per_second'] / 1e9:,.0f}"
            lines.append(f"| {share['model']} | {share['fill']} | {share['contender']} | {numbers} | {spread} |")
    return lines


def memory_tables(document: Row) -> list[str]:
    """Weights, and peaks above them."""
    lines = [
        "\n### Memory\n",
        "Peak resident memory above the weights, in MB, at each contender's fastest micro-batch.\n",
        "| model | lengths | contender | weights (MB) | in bases | scoring + update | whole step |\n|---|---|---|--:|--:|--:|--:|",
    ]
    weights = {(row["model"], row["process"]): row for row in document["weights"]}
    whole = {(r["model"], r["fill"], r["contender"]): r["peak_bytes"] for r in document["rows"] if r["work"] == "whole"}
    for row in document["rows"]:
        if row["work"] == "scoring":
            process = row["contender"].partition(",")[0] + (", NF4" if row["model"].endswith("NF4") else "")
            held = weights[row["model"], process]
            other = whole.get((row["model"], row["fill"], row["contender"]))
            lines.append(
                f"| {row['model']} | {row['fill']} | {row['contender']} | {held['weight_bytes'] / 1e6:,.0f} | {held['bases']:.2f} | "
                f"{row['peak_bytes'] / 1e6:,.0f} | {'' if other is None else f'{other / 1e6:,.0f}'} |"
            )
    lines += [
        "\nOther settings of the same step: every micro-batch that was tried (ragged lengths), and four times the tokens (full lengths):\n",
        "| model | contender | setting | scoring + update (s) | peak above the weights (MB) |\n|---|---|---|--:|--:|",
    ]
    for row in document["tuning"]:
        lines.append(_setting(row, row["label"], f"micro-batch {row['micro_batch']}", row["seconds"][BOTH]))
    for row in document["growth"]:
        lines.append(_setting(row, row["label"], f"{row['times']} × the tokens", row["seconds"][BOTH]))
    return lines


def _setting(row: Row, label: str, setting: str, seconds: float) -> str:
    return f"| {row['model']} | {label} | {setting} | {seconds:.2f} | {row['peak_bytes'] / 1e6:,.0f} |"


def parity_table(document: Row) -> list[str]:
    """How equal the work is."""
    lines = [
        "\n### Equal work\n",
        "Relative differences to `gopd_merge` at the same λ, on the same responses: of the loss, and of the gradient as a whole.\n",
        "| model | lengths | rival | loss | gradient |\n|---|---|---|--:|--:|",
    ]
    for row in document["parity"]:
        for rival, gap in row["gaps"].items():
            lines.append(f"| {row['model']} | {row['fill']} | {rival} | {gap['loss']:.1e} | {gap['gradient']:.1e} |")
    return lines


def write_picture() -> None:
    """Seconds of each contender's step, rollout and the rest, as bars."""
    groups: dict[str, list[tuple[str, dict[str, float], float]]] = {}
    for row in json.loads((RESULTS / "side_by_side.json").read_text())["rows"]:
        if row["work"] == "whole":
            phases = {phase: row["seconds"][phase] for phase in (ROLLOUT, BOTH)}
            groups.setdefault(f"{row['model']}, {row['fill']} lengths", []).append((row["contender"], phases, row["seconds"][WHOLE]))
    write_bars(PICTURE, "Seconds of an optimiser step", groups)
