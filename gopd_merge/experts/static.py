"""Merging by arithmetic on the experts' updates: the rivals.

Everything works on the exact update ΔW = scale · B · A, never on A and B apart: averaging those is not averaging the updates.
A weighted sum of low-rank updates is exact as one adapter whose A and B are the experts' stacked.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from gopd_merge.errors import InputError
from gopd_merge.experts.intake import CONFIG, WEIGHTS, Expert

LAYER_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Update:
    """ΔW of one module as two factors, scale included: ΔW = b @ a with a (r, in) and b (out, r), float32."""

    a: Tensor
    b: Tensor


def check_values(expert: Expert) -> None:
    """Raises InputError on NaN, infinity or an adapter that changes nothing; reads one tensor at a time."""
    changes = False
    with safe_open(expert.path / WEIGHTS, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            tensor = tensors.get_tensor(name)
            if not tensor.isfinite().all():
                raise InputError(f"{expert.path / WEIGHTS}: {name} holds NaN or infinity; its training diverged, train it again")
            changes = changes or (("lora_B" in name or "lora_embedding_B" in name) and bool(tensor.any()))
    if not changes:
        raise InputError(f"{expert.path}: every lora_B is zero, so the adapter changes nothing; train it first")


def load_updates(expert: Expert) -> dict[str, Update]:
    """The updates of a plain LoRA by module (`expert.is_plain`: a weight decomposition or an adapted embedding is none)."""
    tensors = load_file(expert.path / WEIGHTS)
    config = json.loads((expert.path / CONFIG).read_text(encoding="utf-8"))
    updates = {}
    for module, (rank, _, _) in expert.modules.items():
        a, b = (tensors[f"{LAYER_PREFIX}{module}.lora_{side}.weight"].float() for side in "AB")
        updates[module] = Update(a, b * _scale(config, module, rank))
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


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """α/r, or α/√r for rsLoRA; α may have a pattern for this module, matched as PEFT matches it."""
    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
