"""Merging by arithmetic on the experts' updates: the rivals.

Everything works on the exact update ΔW = scale · B · A, never on A and B apart: averaging those is not averaging the updates.
A weighted sum of low-rank updates is exact as one adapter whose A and B are the experts' stacked.
"""

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


def load_updates(expert: Expert) -> dict[str, Update]:
    """The updates of a plain LoRA by module (`expert.is_plain`: a weight decomposition or an adapted embedding is none)."""
    tensors = load_file(expert.path / WEIGHTS)
    settings = expert.settings
    alpha_of = values_by_pattern(settings.alpha_pattern, settings.lora_alpha)
    updates = {}
    for module, (rank, _, _) in expert.modules.items():
        a, b = (tensors[f"{LAYER_PREFIX}{module}.lora_{side}.weight"].float() for side in "AB")
        updates[module] = Update(a, b * settings.scale(alpha_of(module), rank))
    return updates


def weighted_sum(experts: list[dict[str, Update]], weights: list[float]) -> dict[str, Update]:
    """Σ w_i ΔW_i, exactly, as updates of the summed rank (PEFT calls this `cat`).

    Weights 1/n give the exact average; one coefficient for all gives task arithmetic.
    """
    result: dict[str, Update] = {}
    for module in sorted({module for expert in experts for module in expert}):
        parts = [(expert[module], weight) for expert, weight in zip(experts, weights, strict=True) if module in expert]
        result[module] = Update(
            a=torch.cat([update.a for update, _ in parts], dim=0),  # (Σ r, in)
            b=torch.cat([update.b * weight for update, weight in parts], dim=1),  # (out, Σ r)
        )
    return result
