"""How names, sizes and columns are written for people. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "average": "exact average",
    "ties": "TIES",
    "dare_ties": "DARE-TIES",
    "sce": "SCE",
    "svd": "SVD",
    "expo": "ExPO",
    "opd": "merged",
    "exopd": "merged",
    "seqkd": "sequence-level distillation",
    "sft": "fine-tuned on the data",
    "rkl": "reverse KL on the experts' answers",
    "alternate": "one domain after the other",
}
TRAINED = ("opd", "exopd", "seqkd", "sft", "rkl", "alternate")
WITHOUT_ALPHA = ("seqkd", "sft")


def label_of(method: str, alpha: float | None, parameters: Mapping[str, Any] | None = None) -> str:
    """A method's name for people: `math expert`, `merged, α = 2`, `merged, α = code 1, math 2`, `merged, α = 2, estimator sampled`.

    Of a trained one all options that make it another method are in it; of a path the last part.
    """
    kind, _, name = method.partition(":")
    if name:
        return f"{name} expert" if kind == "expert" else name
    parts = [NAMES.get(method, method.replace("_", " "))]
    given = dict(parameters or {})
    by_domain = given.pop("alpha", {})
    if alpha is not None and method not in WITHOUT_ALPHA:
        parts.append(f"α = {alpha:g}")
    elif by_domain:
        parts.append(f"α = {_value_text(by_domain)}")
    if method in TRAINED and given:
        short = {name: value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value for name, value in given.items()}
        parts.append(parameters_text(short))
    return ", ".join(parts)


def parameters_text(parameters: Mapping[str, Any] | None) -> str:
    """`density 0.5, scale 1`, `estimator sampled, balance, weights code 0.5, math 1`."""
    shown = ((name.replace("_", " "), _value_text(value)) for name, value in (parameters or {}).items())
    return ", ".join(f"{name} {value}".rstrip() for name, value in shown)


def _value_text(value: Any) -> str:
    if value is True:
        return ""  # its name says it
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value_text(part)}" for name, part in value.items())
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def byte_text(size: float) -> str:
    """`12.3 GB`, `840 MB`, `0.4 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text with their columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
