"""The exact update ΔW = scale · B · A of each module that an expert adapts, and the way back from a dense ΔW to two factors."""

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor

from gopd_merge.experts.intake import WEIGHTS, Expert
from gopd_merge.experts.patterns import values_by_pattern

LAYER_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Update:
    """ΔW of one module as two factors, scale included: ΔW = b @ a with a (r, in) and b (out, r), float32."""

    a: Tensor
    b: Tensor

    @property
    def dense(self) -> Tensor:
        """ΔW itself, (out, in)."""
        return self.b @ self.a


Updates = dict[str, Update]  # by module


def load_updates(expert: Expert) -> Updates:
    """The updates of a plain LoRA by module (`expert.is_plain`: a weight decomposition or an adapted embedding is none)."""
    tensors = load_file(expert.path / WEIGHTS)
    settings = expert.settings
    alpha_of = values_by_pattern(settings.alpha_pattern, settings.lora_alpha)
    updates = {}
    for module, (rank, _, _) in expert.modules.items():
        a, b = (tensors[f"{LAYER_PREFIX}{module}.lora_{side}.weight"].float() for side in "AB")
        updates[module] = Update(a, b * settings.scale(alpha_of(module), rank))
    return updates


def stacked(experts: list[Updates], module: str) -> Tensor:
    """Dense ΔW of one module by expert, (n, out, in). Zero for an expert that does not adapt the module: it leaves the weight as it is."""
    found = [expert[module].dense if module in expert else None for expert in experts]
    zero = torch.zeros_like(next(delta for delta in found if delta is not None))
    return torch.stack([zero if delta is None else delta for delta in found])


def modules_of(experts: list[Updates]) -> list[str]:
    """Every module that any expert adapts, sorted."""
    return sorted({module for expert in experts for module in expert})


def factored(delta: Tensor, max_rank: int) -> tuple[Update, float]:
    """A dense ΔW (out, in) as two factors, and the squared Frobenius norm that they miss.

    Exact where ΔW has no more than `max_rank` rows or columns, else the nearest ΔW of that rank (Eckart and Young, 1936). Its singular
    vectors of the shorter side are the eigenvectors of ΔW ΔWᵀ: cheaper than an SVD, and projecting on them needs no singular values.
    """
    rows, columns = delta.shape
    if rows > columns:
        flipped, missed = factored(delta.T, max_rank)
        return Update(a=flipped.b.T.contiguous(), b=flipped.a.T.contiguous()), missed
    if rows <= max_rank:
        return Update(a=delta, b=torch.eye(rows, device=delta.device)), 0.0
    b = torch.linalg.eigh(delta @ delta.T).eigenvectors[:, -max_rank:].contiguous()  # (out, max_rank), eigenvalues ascend
    a = b.T @ delta
    return Update(a, b), max(0.0, _squared_norm(delta) - _squared_norm(a))


def truncated(update: Update, rank: int) -> tuple[Update, float]:
    """The nearest update of at most `rank`, by an SVD of the factors alone, and the squared Frobenius norm that it misses.

    With QR decompositions b = Q_b R_b and aᵀ = Q_a R_a, the SVD of the small R_b R_aᵀ gives that of ΔW; float64, as R may be
    ill-conditioned.
    """
    q_b, r_b = torch.linalg.qr(update.b.double())
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = Update(a=(vt[:rank] @ q_a.T).float(), b=(q_b @ (u[:, :rank] * s[:rank])).float())
    return kept, float(s[rank:].square().sum())


def _squared_norm(delta: Tensor) -> float:
    return float(delta.square().sum(dtype=torch.float64))
