"""Whether contenders do the same: their losses and gradients on the same responses."""

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCE = 1e-4  # relative: float32, summed in another order
Found = tuple[float, Mapping[str, Tensor]]  # loss, gradient by parameter
AT_ONE = "λ = 1"  # in the labels of those that copy the expert; all others have another λ


def gap(found: Found, other: Found) -> dict[str, float]:
    """Relative difference of loss and gradient, the latter as the norm of the difference against the norm of `other`'s."""
    (loss, gradient), (other_loss, other_gradient) = found, other
    if gradient.keys() != other_gradient.keys():
        odd = min(gradient.keys() ^ other_gradient.keys())
        raise ValueError(f"gradients of different parameters: {odd} is in one of them alone")
    ours, theirs = (torch.cat([g[name].flatten().double() for name in sorted(other_gradient)]) for g in (gradient, other_gradient))
    return {"loss": abs(loss - other_loss) / abs(other_loss), "gradient": float((ours - theirs).norm() / theirs.norm())}


def check_parity(found: Mapping[str, Found]) -> dict[str, dict[str, float]]:
    """The gaps between ours (else the first of all) and every rival of the same λ, by rival.

    Raises SystemExit where one is above TOLERANCE.
    """
    gaps = {}
    for label, rival in found.items():
        mine = "ours, λ = 1" if AT_ONE in label else "ours" if "ours" in found else next(iter(found))
        if label == mine or mine not in found:
            continue
        gaps[label] = gap(found[mine], rival)
        if not max(gaps[label].values()) <= TOLERANCE:  # a NaN is no match
            raise SystemExit(f"{mine} and {label} do different work, so nothing is timed: {gaps[label]}")
    return gaps
