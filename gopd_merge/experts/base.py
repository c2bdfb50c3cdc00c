"""The one base that all experts share: which one it is, whether they fit it, and loading it."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from gopd_merge.errors import GopdError, InputError, Refused
from gopd_merge.experts.fingerprint import chat_template_warning, check_tokenizer
from gopd_merge.experts.hub import BASE_FILES, BASE_SETTINGS, fetch, fetch_shapes, is_hub_id
from gopd_merge.experts.intake import CONFIG, Expert
from gopd_merge.experts.licence import licence_of
from gopd_merge.experts.patterns import check_patterns
from gopd_merge.experts.quantization import LARGEST, NF4_STATE, check_stored, training_warning, unpacked_shapes

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"  # Transformers' names


@dataclass(frozen=True)
class Base:
    """`name` is what the experts' configs say (and the merged adapter's will); `location` is where it is loaded from."""

    name: str
    location: str  # a folder on this machine
    commit: str | None = None  # of the Hub, if it came from there
    warnings: tuple[str, ...] = ()
    weight_bytes: int = 0  # of its files
    licence: str | None = None  # as its card says


def resolve_base(
    experts: Sequence[Expert], override: str | None, fetched: Literal["all", "headers", "nothing"] = "all", quantize: str = "nf4"
) -> Base:
    """The base of all experts, to be held in memory as `quantize` says. Without experts, the one that `override` names.

    One that is on the Hub is fetched: all of it, or only what says whether the experts fit it (the headers of its weights,
    its config and tokenizer), or nothing, its location being its name then.
    Raises InputError when the experts name different ones, or when their shapes do not fit it.
    """
    if not experts and override is None:
        raise InputError("base: none given, and no adapter here says which one the student is for; name it with --base")
    for first, expert in pairwise(experts):
        if override is None and _find(expert) != _find(first):
            same = expert.base_name == first.base_name  # of two commits
            raise InputError(
                f"{expert.name} was trained on {_named(expert)}, {first.name} on {_named(first)}; experts must share one base. "
                f"Train {expert.name} on {_named(first)}, or merge it with experts of its own base"
                + (f". If both commits are the same model, say which to use with --base {_pinned(expert, first)}" if same else "")
            )
    _check_saved_apart(experts)
    found = _locate(override, Path.cwd()) if override else _find(experts[0])
    if not os.path.isdir(found):
        if not is_hub_id(found):
            whose = "" if override else ", but the experts name it as their base"
            raise InputError(f"{found}: no such folder{whose}; say where it is with --base FOLDER")
        if fetched == "nothing":
            return Base(found, found)
        snapshot = fetch(found, BASE_FILES if fetched == "all" else BASE_SETTINGS, "config.json")
        base = Base(snapshot.repo, str(snapshot.folder), snapshot.commit)
        folder = snapshot.folder
        is_here = fetched == "all" or any(folder.glob("*.safetensors"))
        shapes, size = _read_shapes(folder) if is_here else fetch_shapes(snapshot)
    else:
        base = Base(override or experts[0].base_name, found)
        folder = Path(found)
        shapes, size = _read_shapes(folder)
    config = read_settings(folder)
    check_stored(base.name, config, quantize)
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    names = _module_names(shapes)
    for expert in experts:
        _check_shapes(expert, shapes, base)
        _check_saved(expert, shapes, vocabulary, base)
        check_patterns_on(expert, names)
        check_tokenizer(expert.name, expert.path, folder)
    warnings = [chat_template_warning(e.name, e.path, folder) for e in experts]
    warnings += [training_warning(e.name, e.path, quantize) for e in experts]
    found_warnings = tuple(warning for warning in warnings if warning)
    return replace(base, warnings=found_warnings, weight_bytes=size, licence=licence_of(folder))


def linear_kinds(base: Base) -> tuple[str, ...]:
    """Last parts of the names of the linear layers in a local base's blocks, sorted: what a student adapts where no expert says."""
    shapes, _ = _read_shapes(Path(base.location))
    names = [name.removesuffix(".weight").split(".") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2]
    return tuple(sorted({parts[-1] for parts in names if any(part.isdigit() for part in parts)}))


def is_model(name: str) -> bool:
    """Whether a folder holds a model, not an adapter."""
    return os.path.isfile(os.path.join(name, "config.json")) and not os.path.isfile(os.path.join(name, CONFIG))


def find_folder(name: str, adapter: Path) -> Path | None:
    """The folder of the base that an adapter's config names; None where none is here."""
    found = Path(_locate(name, adapter))
    return found if found.is_dir() else None


def check_patterns_on(expert: Expert, modules: Iterable[str]) -> None:
    """Raises Refused when a pattern of the expert takes too long on a module of the base: PEFT matches against all of them."""
    if findings := check_patterns(expert.settings, modules):
        raise Refused(expert.name, [(f"{CONFIG}: {problem}", remedy) for problem, remedy in findings])


def load_base(base: Base, quantize: str, device: str, on_host: bool = False) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The frozen base and its tokenizer, in evaluation mode: NF4 with double quantisation, or as stored (float32 on CPU).

    `on_host` leaves the weights in the host's memory, for a device that cannot hold them all.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype, compute_dtype = load_dtypes(quantize, device)
    quantization = None
    if quantize == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute_dtype
        )
    tokenizer = load_tokenizer(base)
    place = "cpu" if on_host else f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.location, quantization_config=quantization, dtype=dtype or "auto", device_map={"": place}, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:300]
        raise GopdError(f"{base.location}: the base cannot be loaded ({cause}); copy it again, or name another with --base") from error
    keep_gradients(model)
    model.requires_grad_(False)
    return model.eval(), tokenizer


def load_tokenizer(base: Base) -> "PreTrainedTokenizerBase":
    """The base's tokenizer, padding on the left. Raises GopdError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.location)
    except (OSError, ValueError) as error:
        raise GopdError(f"{base.location}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:300]}); copy it again") from error
    tokenizer.padding_side = "left"  # responses are appended on the right
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length(base: Base) -> int | None:
    """The most tokens that the base can read, prompt and response; None where it does not say. Raises GopdError."""
    return getattr(_text_config(base), "max_position_embeddings", None)


def is_tied(base: Base) -> bool:
    """Whether embeddings and head are one tensor. Raises GopdError."""
    return bool(getattr(_text_config(base), "tie_word_embeddings", False))


def _text_config(base: Base) -> Any:
    """Transformers' own, with the defaults that config.json leaves out."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.location).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        cause = " ".join(str(error).split())[:300]
        raise GopdError(f"{base.location}: its config.json cannot be used ({cause}); is it a model that Transformers knows?") from error


def load_dtypes(quantize: str, device: str) -> "tuple[torch.dtype | None, torch.dtype]":
    """What the base's unquantised weights are loaded as (None: as they are stored), and what 4-bit layers compute in."""
    import torch

    compute_dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return compute_dtype if device == "cpu" or quantize == "nf4" else None, compute_dtype


def keep_gradients(model: "Module") -> None:
    """Turn off bitsandbytes' CPU inference kernel, which has no backward: gradients through it are silently lost.

    On processors with AVX512-BF16, a 4-bit layer in evaluation mode repacks its weights for that kernel at its first forward
    (bitsandbytes 0.50, Linear4bit.forward) and computes in bfloat16 from then on. The roles need evaluation mode and the student
    its gradient. Without the kernel a layer also computes the same on every CPU.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no attribute of Module


def _named(expert: Expert) -> str:
    """The base as the expert's config names it, with the revision if it names one."""
    revision = expert.settings.revision
    return f"{expert.base_name}@{revision}" if revision else expert.base_name


def _pinned(*experts: Expert) -> str:
    """The base of experts that name different commits of it: that of the first which names one."""
    return next(_named(expert) for expert in experts if expert.settings.revision)


def _find(expert: Expert) -> str:
    """A folder, else a Hub id with its revision."""
    found = _locate(expert.base_name, expert.path)
    return found if os.path.isdir(found) else _named(expert)


def _locate(name: str, adapter: Path) -> str:
    """A folder of that name below the working directory or beside one of the adapter's parents, else the name as a Hub id."""
    for parent in (Path(), *adapter.resolve().parents):
        if os.path.isfile(parent / name / "config.json"):  # unlike Path, without an error for names that no file can have
            return str((parent / name).resolve())
    return name


def read_settings(folder: Path) -> dict[str, Any]:
    """The base's config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("text_config", {}), dict):
            raise TypeError("config.json holds no settings")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: the base is not readable ({error}); copy it again") from None
    return config


def _read_shapes(folder: Path) -> tuple[dict[str, list[int]], int]:
    """Shape of every weight of a local base, from the headers of its safetensors files, and the bytes of those."""
    shapes: dict[str, list[int]] = {}
    states: dict[str, bytes] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: holds no .safetensors weights; save the base with save_pretrained")
    try:
        for file in files:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    shapes[name] = tensors.get_slice(name).get_shape()
                    if name.endswith(NF4_STATE) and math.prod(shapes[name]) <= LARGEST:
                        states[name] = tensors.get_tensor(name).tobytes()
        return unpacked_shapes(shapes, states), sum(file.stat().st_size for file in files)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: the base is not readable ({error}); copy it again") from None


def _module_names(tensors: Iterable[str]) -> list[str]:
    """Of the modules that hold a tensor, and of all that these are part of."""
    names = set()
    for name in tensors:
        while name := name.rpartition(".")[0]:
            names.add(name)
    return sorted(names)


def _check_shapes(expert: Expert, shapes: dict[str, list[int]], base: Base) -> None:
    for module, (_, inputs, outputs) in expert.modules.items():
        weight = _shape_of(f"{module}.weight", shapes)
        if weight is None:
            raise InputError(f"{expert.name} adapts {module}, which {base.name} does not have; is it an expert of another base?")
        is_packed = weight[1:] == [1] and 2 * weight[0] == inputs * outputs  # 4 bits a value, where only the header is known
        if sorted(weight) != sorted((inputs, outputs)) and not is_packed:
            raise InputError(
                f"{expert.name} was trained on another base: its {module} is {inputs} -> {outputs}, that of {base.name} "
                f"has the shape {_sizes(weight)}; use experts of one base, or name theirs with --base"
            )


def _check_saved_apart(experts: Sequence[Expert]) -> None:
    """PEFT puts either whole copies or LoRAs on a module, not both. The student adapts what any expert adapts."""
    for expert in experts:
        for other in experts:
            if both := sorted(set(expert.saved_modules) & set(other.targets)):
                raise InputError(
                    f"{expert.name} saves a whole {both[0]} of its own and {other.name} has a LoRA on {both[0]}: PEFT cannot hold both on "
                    "one base; train both the same way"
                )


def _check_saved(expert: Expert, shapes: dict[str, list[int]], vocabulary: int | None, base: Base) -> None:
    """Each role can have its own copy of what is never quantised and fits: embeddings, head and norms."""
    for name, shape in expert.saved.items():
        found = _shape_of(name, shapes)
        if found is None:
            raise InputError(f"{expert.name} saves a copy of {name}, which {base.name} does not have; is it an expert of another base?")
        if list(shape) != found:
            raise InputError(
                f"{expert.name} saves a {name} of {_sizes(shape)}, that of {base.name} has {_sizes(found)}; "
                "use experts of one base, trained without added tokens"
            )
        in_a_block = any(part.isdigit() for part in name.split("."))
        if len(shape) > 1 and (len(shape) > 2 or shape[0] != vocabulary or in_a_block):
            raise InputError(
                f"{expert.name} saves a copy of {name}, which is neither embeddings nor head nor norm: on a quantised base it cannot be "
                "replaced; train a LoRA on it instead"
            )
    for name in sorted(shapes.keys() - expert.saved.keys()):
        if expert.settings.saves(name.rpartition(".")[0]):
            raise InputError(
                f"{expert.name} names {name} in modules_to_save, but its file holds no copy of it; "
                "put the config and the tensors of one training together"
            )


def _shape_of(name: str, shapes: dict[str, list[int]]) -> list[int] | None:
    tied = {f"{HEAD}.weight": f"{EMBEDDING}.weight"}  # tied heads are stored once
    return shapes.get(name) or shapes.get(tied.get(name, ""))


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
