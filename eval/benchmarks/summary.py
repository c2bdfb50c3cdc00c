"""The rows of all repetitions as one document: medians, paired ratios with their spread, and what is to be reached."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from models import RANK, SHAPES, TARGETS, Shape
from recorded import FILLS, make_questions

Row = dict[str, Any]
TIMED = ("scoring", "whole", "experts")
BOTH, ROLLOUT, WHOLE = "scoring and update", "rollout", "whole step"
RATIOS = (
    *((ours, rival) for ours in ("ours, λ = 1", "ours, lean, λ = 1") for rival in ("A, λ = 1", "A, checkpointed, λ = 1")),
    *((ours, rival) for ours in ("ours", "ours, lean") for rival in ("A′", "A′, compacted", "B")),
    ("ours, 2 experts", "ours, 8 experts"),
)
ROLES = {
    "ours, λ = 1": 1,
    "ours, lean, λ = 1": 1,
    "ours": 2,
    "ours, lean": 2,
}  # that are scored for one response: the expert; it and the reference


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The document, less what says where it comes from."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    timed = [row for row in rows if row["work"] in TIMED]
    lines = [line for model in models for work in TIMED for fill in FILLS for line in _lines(model, work, fill, timed)]
    document: dict[str, Any] = {
        "sizes": {name: sizes(SHAPES[name]) for name in dict.fromkeys(shape_of(model) for model in models)},
        "adapter": {"rank": RANK, "targets": list(TARGETS)},
        "weights": [_without(row, "work") | {"bases": bases(row)} for row in rows if row["work"] == "load"],
        "parity": [_without(row, "work") for row in rows if row["work"] == "parity"],
        "tuning": [_without(row, "work") for row in rows if row["work"] == "tuning"],
        "rows": lines,
        "ratios": [ratio for model in models for work in TIMED for fill in FILLS for ratio in _ratios(model, work, fill, timed)],
        "shares": [share for model in models for fill in FILLS for share in _shares(model, fill, timed)],
        "growth": [_without(row, "work") for row in rows if row["work"] == "growth"],
    }
    return document | {"bars": bars(document)}


def shape_of(model: str) -> str:
    """Without the precision."""
    return model.partition(",")[0]


def sizes(shape: Shape) -> dict[str, Any]:
    """Of the model and of a step."""
    fills = {fill: make_questions(shape, fill).lengths for fill in FILLS}
    tokens = {fill: {"prompts": sum(p for p, _ in lengths), "responses": sum(r for _, r in lengths)} for fill, lengths in fills.items()}
    return {
        "hidden": shape.hidden,
        "layers": shape.layers,
        "vocabulary": shape.vocabulary,
        "prompts": shape.prompts,
        "longest_prompt": shape.prompt_tokens,
        "longest_response": shape.response_tokens,
        "tokens": tokens,
    }


def bases(row: Row) -> float:
    """The weights of a contender as a multiple of those of one float32 base."""
    return round(row["weight_bytes"] / SHAPES[shape_of(row["model"])].weight_bytes, 3)


def seconds_of(found: Row) -> dict[str, float]:
    """By phase, with their sum."""
    seconds = found["seconds"]
    return {**seconds, WHOLE: seconds[ROLLOUT] + seconds[BOTH]}


def _lines(model: str, work: str, fill: str, rows: Sequence[Row]) -> list[Row]:
    """One a contender: medians of its repetitions."""
    mine = [row for row in rows if (row["model"], row["work"], row["fill"]) == (model, work, fill)]
    tokens = sum(response for _, response in make_questions(SHAPES[shape_of(model)], fill).lengths)
    lines = []
    for label in dict.fromkeys(label for row in mine for label in row["entries"]):
        found = [row["entries"][label] for row in mine]
        each = {phase: [round(seconds_of(one)[phase], 3) for one in found] for phase in _phases(work)}
        lines.append(
            {
                "model": model,
                "work": work,
                "fill": fill,
                "contender": label,
                "micro_batch": mine[0]["micro_batches"][label],
                "seconds": {phase: round(median(values), 3) for phase, values in each.items()},
                "seconds_of_each": each,
                "tokens_per_second": {phase: round(tokens / median(values), 1) for phase, values in each.items()},
                "peak_bytes": max(one["peak_bytes"] for one in found),
            }
        )
    return lines


def _phases(work: str) -> tuple[str, ...]:
    return (BOTH,) if work == "scoring" else (ROLLOUT, BOTH, WHOLE)


def _ratios(model: str, work: str, fill: str, rows: Sequence[Row]) -> list[Row]:
    """How many times as long the rival takes as ours, in the same repetition."""
    mine = [row["entries"] for row in rows if (row["model"], row["work"], row["fill"]) == (model, work, fill)]
    found = []
    for ours, rival in RATIOS:
        pairs = [(entries[ours], entries[rival]) for entries in mine if ours in entries and rival in entries]
        for phase in _phases(work) if pairs else ():
            each = [round(seconds_of(theirs)[phase] / seconds_of(own)[phase], 3) for own, theirs in pairs]
            key = {"model": model, "work": work, "fill": fill, "ours": ours, "rival": rival, "phase": phase}
            found.append(key | {"ratio": median(each), "low": min(each), "high": max(each), "of_each": each})
    return found


def _shares(model: str, fill: str, rows: Sequence[Row]) -> list[Row]:
    """Useful operations a second of scoring and update, as a share of a large matrix product's in the same repetition."""
    mine = [row for row in rows if (row["model"], row["work"], row["fill"]) == (model, "scoring", fill)]
    found = []
    for label, roles in ROLES.items() if mine else ():
        if label not in mine[0]["entries"]:
            continue
        useful = SHAPES[shape_of(model)].useful_flops(make_questions(SHAPES[shape_of(model)], fill).lengths, roles)
        each = [useful / row["entries"][label]["seconds"][BOTH] / row["matrix_flops"] for row in mine]
        peak = median(row["matrix_flops"] for row in mine)
        key = {"model": model, "fill": fill, "contender": label, "useful_flops": useful, "matrix_flops_per_second": peak}
        found.append(key | {"share": round(median(each), 3), "low": round(min(each), 3), "high": round(max(each), 3)})
    return found


def bars(document: dict[str, Any]) -> list[Row]:
    """What was to be reached, what was measured, and whether that is enough; one a model and fill."""
    found = []
    for ratio in document["ratios"]:
        name = f"{ratio['model']}, {ratio['fill']}"
        if ratio["work"] == "scoring" and ratio["rival"].startswith("A′"):
            wanted = 1.5 if ratio["fill"] == "ragged" else 1.1
            lean = ", lean" if "lean" in ratio["ours"] else ""
            found.append(_bar(f"scoring and update{lean}, times as fast as {ratio['rival']}", name, ratio["ratio"], at_least=wanted))
        if ratio["phase"] == WHOLE and ratio["rival"] == "A, λ = 1":
            found.append(_bar("whole step, times as fast as A", name, ratio["ratio"], at_least=1.0))
        if ratio["phase"] == WHOLE and ratio["work"] == "experts":
            found.append(_bar("whole step with eight experts, times that with two", name, ratio["ratio"], at_most=1.15))
    peaks = {(r["model"], r["work"], r["fill"], r["contender"]): r["peak_bytes"] for r in document["rows"]}
    for (model, work, fill, contender), peak in peaks.items():
        if contender in ("ours, λ = 1", "ours, lean, λ = 1") and (theirs := peaks.get((model, work, fill, "A, λ = 1"))):
            what = "peak memory above the weights" + (", lean" if "lean" in contender else "")
            phase = BOTH if work == "scoring" else WHOLE
            found.append(_bar(f"{what}, as a share of A's, {phase}", f"{model}, {fill}", peak / theirs, at_most=1 / 3))
    found += _leanest(document["tuning"])
    for row in document["weights"]:
        if row["process"] == "ours":
            found.append(_bar("weights, in bases (A: two)", row["model"], row["bases"], at_most=1.2))
    grown = {(r["model"], r["label"], r["times"]): r["peak_bytes"] for r in document["growth"]}
    for (model, label, times), peak in grown.items():
        if label.startswith("ours") and times == 4:
            what = "peak memory with four times the tokens, times that with one"
            found.append(_bar(what, f"{model}, {label}", peak / grown[model, label, 1], at_most=1.05))
    for share in document["shares"]:
        if share["model"] == "qwen2.5-0.5b":
            name = f"{share['model']}, {share['fill']}, {share['contender']}"
            found.append(_bar("share of the matrix product's peak, scoring and update", name, share["share"], at_least=0.6))
    return found


def _leanest(tuning: Sequence[Row]) -> list[Row]:
    """The lean step with as many rows at a time as hold a third of A's memory, beside A's fastest."""
    found = []
    for model in dict.fromkeys(row["model"] for row in tuning):
        tried = {label: [r for r in tuning if (r["model"], r["label"]) == (model, label)] for label in ("ours, lean, λ = 1", "A, λ = 1")}
        if not all(tried.values()):
            continue
        ours, theirs = ({row["micro_batch"]: row for row in rows} for rows in tried.values())
        rival = min(theirs.values(), key=lambda row: float(row["seconds"][BOTH]))
        small = [size for size, row in ours.items() if row["peak_bytes"] <= rival["peak_bytes"] / 3]
        row = ours[max(small)] if small else min(ours.values(), key=lambda row: int(row["peak_bytes"]))
        what, where = f"lean with micro-batch {row['micro_batch']}", f"{model}, ragged, one step each"
        share, times = row["peak_bytes"] / rival["peak_bytes"], rival["seconds"][BOTH] / row["seconds"][BOTH]
        found.append(_bar(f"peak memory above the weights, {what}, as a share of A's, {BOTH}", where, share, at_most=1 / 3))
        found.append(_bar(f"{BOTH}, {what}, times as fast as A", where, times, at_least=1.0))
    return found


def _bar(what: str, where: str, measured: float, at_least: float | None = None, at_most: float | None = None) -> Row:
    met = measured >= at_least if at_least is not None else measured <= at_most  # type: ignore[operator]
    return {"bar": what, "where": where, "at_least": at_least, "at_most": at_most, "measured": round(measured, 3), "met": met}


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in (*names, "commit")}
