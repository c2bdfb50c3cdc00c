"""An adapter's tensors by module, as its file holds them."""

from dataclasses import dataclass

from safetensors.torch import load_file
from torch import Tensor

from gopd_merge.experts.deltas import LAYER_PREFIX
from gopd_merge.experts.intake import WEIGHTS, Expert
from gopd_merge.experts.patterns import values_by_pattern


@dataclass(frozen=True)
class Factors:
    """The low-rank update of one module: ΔW = scale · b @ a, or its transpose for an embedding (which is stored as (V, H))."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float
    is_embedding: bool = False
    magnitude: Tensor | None = None  # (out,) DoRA's lengths of the rows of W + ΔW

    def applied_to(self, weight: Tensor) -> Tensor:
        """W with the update, float32, of the shape of W."""
        delta = self.scale * (self.b.float() @ self.a.float())
        changed = weight.float() + (delta.T if self.is_embedding else delta)
        if self.magnitude is None:
            return changed
        lengths: Tensor = changed.norm(dim=1, keepdim=True)  # (out, 1)
        return changed * (self.magnitude.float().unsqueeze(1) / lengths)


def load_factors(expert: Expert) -> dict[str, Factors]:
    """By module, of an adapter that was checked."""
    tensors = load_file(expert.path / WEIGHTS)
    settings = expert.settings
    alpha_of = values_by_pattern(settings.alpha_pattern, settings.lora_alpha)
    found = {}
    for module, (rank, _, _) in expert.modules.items():
        prefix = f"{LAYER_PREFIX}{module}.lora_"
        is_embedding = f"{prefix}embedding_A" in tensors
        names = [f"{prefix}embedding_{side}" if is_embedding else f"{prefix}{side}.weight" for side in "AB"]
        magnitudes = [tensors[name] for name in (f"{prefix}magnitude_vector", f"{prefix}magnitude_vector.weight") if name in tensors]
        found[module] = Factors(
            a=tensors[names[0]],
            b=tensors[names[1]],
            scale=settings.scale(alpha_of(module), rank),
            is_embedding=is_embedding,
            magnitude=magnitudes[0].flatten() if magnitudes else None,
        )
    return found


def load_saved(expert: Expert) -> dict[str, Tensor]:
    """Tensors that the adapter puts in the place of the base's own (`modules_to_save`), by their names there."""
    if not expert.saved:
        return {}
    tensors = load_file(expert.path / WEIGHTS)
    return {name: tensors[f"{LAYER_PREFIX}{name}"] for name in expert.saved}
