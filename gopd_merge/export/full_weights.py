"""Base plus adapter as one model in bfloat16, a file at a time, and what rounding costs."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gopd_merge.disk import as_os_error, whole_folder, write_json
from gopd_merge.errors import InputError
from gopd_merge.experts.base import EMBEDDING, HEAD, Base, is_tied, read_settings
from gopd_merge.experts.intake import Expert
from gopd_merge.export.factors import load_factors, load_saved

INDEX = "model.safetensors.index.json"


@dataclass
class Rounding:
    """How far the bfloat16 weights of what the adapter changes are from its sums in float32."""

    largest: float = 0.0
    total: float = 0.0  # of absolute errors
    count: int = 0  # values
    squared: float = 0.0  # Frobenius norm of the error, squared
    update_squared: float = 0.0  # and of the update

    def add(self, exact: Tensor, rounded: Tensor, before: Tensor) -> None:
        """One weight: the float32 sum, what is written of it, and the base's own."""
        error = (rounded.float() - exact).abs()
        self.largest = max(self.largest, error.max().item())
        self.total += error.sum(dtype=torch.float64).item()
        self.count += error.numel()
        self.squared += error.square().sum(dtype=torch.float64).item()
        self.update_squared += (exact - before.float()).square().sum(dtype=torch.float64).item()

    def document(self) -> dict[str, float]:
        """Largest and mean error, and the error's norm as a share of the update's."""
        return {
            "largest": self.largest,
            "mean": self.total / max(1, self.count),
            "share_of_update": (self.squared / self.update_squared) ** 0.5 if self.update_squared else 0.0,
        }


def write_full_weights(expert: Expert, base: Base, output: Path) -> Rounding:
    """Write the model to a folder that Transformers and vLLM load, tokenizer included. Memory: one file of the base at a time.

    Raises InputError for a base that is stored quantised, and for a LoRA bias, which has no place in the base's layers.
    """
    config = read_settings(Path(base.location))
    if config.get("quantization_config"):
        raise InputError(f"{base.name}: is stored quantised, so a sum with it would be too; name the original with --base")
    if expert.settings.lora_bias:
        raise InputError(f"{expert.name}: has a bias on lora_B, for which the base's layers have no place; use it with PEFT")
    sums = Sums(expert, is_tied(base))
    with whole_folder(output) as folder:
        places: dict[str, str] = {}
        size = 0
        for file in sorted(Path(base.location).glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                tensors = dict(sums.of_file(stored))
            size += sum(tensor.nbytes for tensor in tensors.values())
            places |= dict.fromkeys(tensors, file.name)
            with as_os_error(folder / file.name):
                save_file(tensors, folder / file.name, metadata={"format": "pt"})
        if len(set(places.values())) > 1:
            write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
        untied = {"tie_word_embeddings": False} if sums.unties else {}
        write_json(folder / "config.json", {**config, "dtype": "bfloat16", **untied})
        _copy_rest(Path(base.location), folder)
    return sums.rounding


class Sums:
    """The weights of base plus adapter, and the rounding of those that the adapter changes."""

    def __init__(self, expert: Expert, tied: bool) -> None:
        self._factors, self._saved = load_factors(expert), load_saved(expert)
        changes = [self._changes(name) for name in (EMBEDDING, HEAD)]
        self.unties = tied and any(changes)  # one of the two goes its own way, so each needs a tensor of its own
        self.rounding = Rounding()

    def of_file(self, stored: Any) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of an open file, as it is written. A head that was tied comes after the embeddings."""
        for name in stored.keys():  # noqa: SIM118 - not a dict
            tensor = stored.get_tensor(name)
            yield name, self._written(name, tensor)
            if self.unties and name == f"{EMBEDDING}.weight":
                yield f"{HEAD}.weight", self._written(f"{HEAD}.weight", tensor)

    def _written(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        module = name.removesuffix(".weight")
        if name in self._saved:
            exact = self._saved[name].float()
        elif module in self._factors and name.endswith(".weight"):
            exact = self._factors[module].applied_to(tensor)
        else:
            return tensor.to(torch.bfloat16).clone()  # the head that is untied shares the embeddings' memory
        rounded = exact.to(torch.bfloat16)
        self.rounding.add(exact, rounded, tensor)
        return rounded

    def _changes(self, module: str) -> bool:
        return module in self._factors or f"{module}.weight" in self._saved


def _copy_rest(source: Path, folder: Path) -> None:
    """Tokenizer, chat template, generation settings: what lies beside the weights and is no code, no card."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".jinja", ".txt", ".model") and path.name not in ("config.json", INDEX):
            shutil.copyfile(path, folder / path.name)
