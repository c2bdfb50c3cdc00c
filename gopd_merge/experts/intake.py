"""Checked reads of adapter folders, from their configs and tensor headers alone: no model, no torch."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gopd_merge.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_CONFIG = 1 << 20  # bytes
# Features that change what the other roles see, or that need more than one adapter switched on the shared base.
UNSUPPORTED = {
    "modules_to_save": "it replaces whole modules, which the roles share",
    "trainable_token_indices": "it changes the embeddings, which the roles share",
    "target_parameters": "it adapts bare parameters, which cannot be switched for one row of a batch",
    "layer_replication": "it changes the layers of the base, which the roles share",
    "alora_invocation_tokens": "it is on for a part of the text only",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that rewrite the base's weights
LORA_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>A|B|embedding_A|embedding_B|magnitude_vector)(\.weight|\.bias)?"
)


@dataclass(frozen=True)
class Expert:
    """A checked LoRA adapter. `modules` maps each adapted module to its (rank, in, out)."""

    domain: str
    path: Path
    base_name: str
    rank: int  # the largest over its modules
    targets: tuple[str, ...]  # last parts of the module names, sorted
    sha256: str
    uses_dora: bool
    is_plain: bool  # its update of every weight is scale · B · A and nothing else
    modules: dict[str, tuple[int, int, int]] = field(repr=False)


def read_expert(domain: str, path: str) -> Expert:
    """Raises InputError, one line, when the folder is missing, is no LoRA adapter, or cannot be merged correctly."""
    folder = Path(path)
    config = _read_config(folder)
    _refuse_unsupported(folder, config)
    base_name = config.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise InputError(f"{folder}/{CONFIG}: base_model_name_or_path is {base_name!r}; write the name of the expert's base there")
    modules, is_plain = _read_modules(folder)
    return Expert(
        domain=domain,
        path=folder,
        base_name=base_name,
        rank=max(rank for rank, _, _ in modules.values()),
        targets=tuple(sorted({name.rpartition(".")[2] for name in modules})),
        sha256=file_sha256(folder / WEIGHTS),
        uses_dora=bool(config.get("use_dora")),
        is_plain=is_plain,
        modules=modules,
    )


def read_experts(paths: dict[str, str]) -> list[Expert]:
    """All experts, in order of domain. Raises InputError when one is refused or two are the same bytes."""
    experts = [read_expert(domain, paths[domain]) for domain in sorted(paths)]
    by_content: dict[str, Expert] = {}
    for expert in experts:
        other = by_content.setdefault(expert.sha256, expert)
        if other is not expert:
            raise InputError(f"{other.path} and {expert.path} hold the same adapter; name each expert once")
    return experts


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; name a folder that holds {CONFIG} and {WEIGHTS}")
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: not a LoRA adapter, it has no {CONFIG}; name the folder that PEFT's save_pretrained wrote")
    if path.stat().st_size > LARGEST_CONFIG:
        raise InputError(f"{path}: {path.stat().st_size} bytes, larger than any adapter config; is it the right file?")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); copy or save the adapter again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(config).__name__}; copy or save the adapter again")
    return config


def _refuse_unsupported(folder: Path, config: dict[str, Any]) -> None:
    path = folder / CONFIG
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{path}: peft_type is {kind!r}, but only LORA can be merged; train the expert as a LoRA")
    for name, reason in UNSUPPORTED.items():
        if config.get(name):
            raise InputError(f"{path}: {name} is set, and {reason}; train the expert without it")
    if config.get("bias", "none") != "none":
        raise InputError(f"{path}: bias is {config['bias']!r}, which changes the base's own biases; train the expert with bias='none'")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise InputError(
            f"{path}: init_lora_weights is {init!r}, which changes the base; convert the adapter to a plain LoRA with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value <= 1e5:
            raise InputError(f"{path}: {name} is {value!r}, expected a positive number; copy or save the adapter again")


def _read_modules(folder: Path) -> tuple[dict[str, tuple[int, int, int]], bool]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickle = next(folder.glob("adapter_model.*"), None)
        found = f"found {pickle.name}, but only safetensors is read" if pickle else "the file is missing"
        raise InputError(f"{path}: {found}; save the adapter with safe_serialization=True")
    shapes: dict[str, dict[str, list[int]]] = {}
    is_plain = True
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if not (match := LORA_TENSOR.fullmatch(name)):
                    raise InputError(f"{path}: {name} is not a LoRA tensor; save the adapter again with PEFT")
                is_plain = is_plain and name.endswith(("lora_A.weight", "lora_B.weight"))
                if not name.endswith(".bias"):
                    shapes.setdefault(match["module"], {})[match["side"].removeprefix("embedding_")] = tensors.get_slice(name).get_shape()
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); copy or save the adapter again") from None
    if not shapes:
        raise InputError(f"{path}: holds no tensors; train or save the adapter again")
    modules = {}
    for module, sides in shapes.items():
        if missing := {"A", "B"} - set(sides):
            raise InputError(f"{path}: {module} has no lora_{missing.pop()}; the file is incomplete, copy or train it again")
        if len(sides["A"]) != 2 or len(sides["B"]) != 2:
            raise InputError(
                f"{path}: {module} is no linear layer, its lora_A has {len(sides['A'])} dimensions; train the expert without it"
            )
        (rank, inputs), (outputs, rank_b) = sides["A"], sides["B"]
        if rank != rank_b:
            raise InputError(f"{path}: {module} has rank {rank} in lora_A and {rank_b} in lora_B; save the adapter again")
        modules[module] = (rank, inputs, outputs)
    return modules, is_plain
