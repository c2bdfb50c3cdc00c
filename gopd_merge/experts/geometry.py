"""How large the experts' updates are, layer by layer, and how far they point the same way."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import subspace_angles

from gopd_merge.experts.deltas import Update

LAYER = re.compile(r"\.(\d+)\.")
ELSEWHERE = "elsewhere"  # embeddings, head


@dataclass(frozen=True)
class Overlap:
    """Two experts compared on the modules that both adapt; every value is None where there is none."""

    first: str
    second: str
    modules: int
    cosine: float | None  # of the two updates as vectors: 1 the same, 0 independent, -1 opposed
    smallest_angle: float | None  # degrees, median over modules: between the nearest directions that the two write to
    mean_angle: float | None  # degrees, mean over all principal angles of all modules


def norms_by_layer(updates: Mapping[str, Update]) -> dict[str, float]:
    """Frobenius norm of ΔW = B · A by layer number (text), in order of the layers."""
    squares: dict[str, float] = defaultdict(float)
    for module, update in updates.items():
        squares[layer_of(module)] += inner(update, update)
    return {layer: math.sqrt(squares[layer]) for layer in sorted(squares, key=lambda name: (not name.isdigit(), name.zfill(9)))}


def overlap(first: str, updates: Mapping[str, Update], second: str, others: Mapping[str, Update]) -> Overlap:
    """Do two experts conflict? Angles are those between the column spaces of their B (Björck and Golub, 1973)."""
    shared = [module for module in updates if module in others]
    if not shared:
        return Overlap(first, second, 0, None, None, None)
    dot = sum(inner(updates[m], others[m]) for m in shared)
    sizes = [math.sqrt(sum(inner(side[m], side[m]) for m in shared)) for side in (updates, others)]
    both = [m for m in shared if updates[m].b.any() and others[m].b.any()]  # a zero B writes to no direction
    angles = [np.degrees(subspace_angles(updates[m].b.double().numpy(), others[m].b.double().numpy())) for m in both]
    return Overlap(
        first,
        second,
        len(shared),
        cosine=dot / (sizes[0] * sizes[1]) if all(sizes) else None,
        smallest_angle=float(np.median([a.min() for a in angles])) if angles else None,
        mean_angle=float(np.concatenate(angles).mean()) if angles else None,
    )


def inner(one: Update, other: Update) -> float:
    """⟨B₁A₁, B₂A₂⟩ without making either product: Σ (B₁ᵀB₂) ⊙ (A₁A₂ᵀ), in float64."""
    b1, a1, b2, a2 = (t.double() for t in (one.b, one.a, other.b, other.a))
    return float(((b1.T @ b2) * (a1 @ a2.T)).sum())


def layer_of(module: str) -> str:
    """`model.layers.3.mlp.up_proj` is in layer 3."""
    match = LAYER.search(module)
    return match[1] if match else ELSEWHERE
