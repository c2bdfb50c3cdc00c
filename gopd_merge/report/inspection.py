"""The text of `gopd-merge inspect`. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from gopd_merge.report.terminal import columns

BARS = "▁▂▃▄▅▆▇█"


def inspection_text(document: Mapping[str, Any]) -> str:
    """One block an adapter, one line a pair, and whether they can be merged."""
    blocks = [_expert_text(expert) for expert in document["experts"]]
    if document["overlaps"]:
        rows = [["do they conflict?", "cosine", "angles: nearest", "mean", "shared modules"], *map(_overlap_row, document["overlaps"])]
        blocks.append(columns(rows) + "\n  cosine 0 and angles of 90° are independent updates; a negative cosine is a conflict")
    if document["conflict"]:
        blocks.append(f"not mergeable: {document['conflict']}")
    elif len(document["experts"]) > 1:
        blocks.append(f"mergeable: {len(document['experts'])} experts of one base")
    return "\n\n".join(blocks)


def bars(values: Sequence[float]) -> str:
    """One block character a value, the largest being the highest."""
    top = max(values, default=0) or 1
    return "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in values)


def _expert_text(expert: Mapping[str, Any]) -> str:
    norms = expert["norm_by_layer"]
    size = "not shown: the update is no plain B · A"
    if norms:
        layers, values = list(norms), list(norms.values())
        size = f"{bars(values)}  norm in layers {layers[0]} to {layers[-1]}: {min(values):.3g} to {max(values):.3g}"
    rows = [
        [expert["domain"], expert["name"] + (f" at {expert['commit']}" if expert["commit"] else "")],
        ["  base", expert["base"]],
        ["  kind", f"{expert['kind']}, rank {expert['rank']}, alpha {expert['lora_alpha']:g}"],
        ["  targets", f"{', '.join(t.removesuffix('_proj') for t in expert['targets'])}: {expert['modules']} modules"],
        ["  parameters", f"{expert['parameters']:,}"],
        ["  sha256", expert["sha256"]],
        ["  update", size],
        *(["  warning", warning] for warning in expert["warnings"]),
    ]
    return columns(rows)


def _overlap_row(pair: Mapping[str, Any]) -> list[str]:
    shown = [f"  {pair['first']} × {pair['second']}"]
    shown.append("–" if pair["cosine"] is None else f"{pair['cosine']:+.3f}")
    shown += ["–" if pair[key] is None else f"{pair[key]:.0f}°" for key in ("smallest_angle", "mean_angle")]
    return [*shown, str(pair["modules"])]


def checks_text(checks: Sequence[Any]) -> str:
    """The text of `gopd-merge doctor`: one line a part."""
    marks = {"ok": "ok", "missing": "missing", "broken": "BROKEN"}
    rows = [[c.name, marks[c.status] + (" (optional)" if c.optional and c.status != "ok" else ""), c.found, c.purpose] for c in checks]
    return columns(rows)
