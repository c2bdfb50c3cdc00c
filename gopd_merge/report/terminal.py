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
WITHOUT_ALPHA = ("seqkd", "sft")


def label_of(method: str, alpha: float | None, parameters: Mapping[str, Any] | None = None) -> str:
    """A method's name for people: `math expert`, `merged, α = 2`, `merged, α = code 1, math 2`."""
    kind, _, name = method.partition(":")
    if name:
        return f"{name} expert" if kind == "expert" else name
    name = NAMES.get(method, method.replace("_", " "))
    if method in WITHOUT_ALPHA:
        return name
    by_domain = (parameters or {}).get("alpha", {})
    text = ", ".join(f"{domain} {value:g}" for domain, value in by_domain.items()) if alpha is None else f"{alpha:g}"
    return f"{name}, α = {text}" if text else name


def byte_text(size: float) -> str:
    """`12.3 GB`, `840 MB`, `0.4 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text with their columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
