"""An adapter as a GGUF file: what llama.cpp, Ollama and LM Studio load with `--lora` beside a GGUF of the base.

The rules are those of llama.cpp's own conversion. A tensor has the name that the architecture gives it; where the rows of the base's q and
k are stored in another order (the two halves of each head interleaved, for the rotary embedding), so are those of lora_B. llama.cpp scales
every update by `adapter.lora.alpha` / rank: another scale, of rsLoRA or of single modules, is multiplied into lora_B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gopd_merge.errors import InputError
from gopd_merge.experts.base import EMBEDDING, HEAD, Base, is_tied, read_settings
from gopd_merge.experts.hub import is_hub_id
from gopd_merge.experts.intake import Expert
from gopd_merge.export.factors import Factors, load_factors


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls a kind of model, and whether it keeps the rows of q and k in its own order."""

    name: str
    permutes: bool


ARCHITECTURES = {  # by `architectures` of config.json; the others rearrange weights in ways of their own
    "LlamaForCausalLM": Architecture("llama", True),
    "MistralForCausalLM": Architecture("llama", True),
    "SmolLM3ForCausalLM": Architecture("smollm3", True),
    "GraniteForCausalLM": Architecture("granite", True),
    "OlmoForCausalLM": Architecture("olmo", True),
    "Qwen2ForCausalLM": Architecture("qwen2", False),
    "Qwen3ForCausalLM": Architecture("qwen3", False),
    "GemmaForCausalLM": Architecture("gemma", False),
    "Gemma2ForCausalLM": Architecture("gemma2", False),
    "Gemma3ForCausalLM": Architecture("gemma3", False),
    "Phi3ForCausalLM": Architecture("phi3", False),
    "Olmo2ForCausalLM": Architecture("olmo2", False),
}


def write_gguf(expert: Expert, base: Base, output: Path) -> int:
    """Write the adapter to the file, in float32; returns how many modules it adapts. The base's config is all that is read of it.

    Raises InputError for an adapter that a GGUF file cannot hold, and for a base of an architecture that is not known here.
    """
    import gguf

    config = read_settings(Path(base.location))
    architecture = _architecture(config, base)
    _check_holdable(expert, base)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture.name], int(config["num_hidden_layers"]))
    alpha = float(expert.settings.lora_alpha)
    partial = output.with_name(output.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(Path(expert.name).name)
    if is_hub_id(base.name):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.name.partition("/")[2])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base.name}")
    for module, factors in load_factors(expert).items():
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise InputError(
                f"{expert.name} adapts {module}, for which llama.cpp's {architecture.name} has no name; use it with PEFT or vLLM"
            )
        a, b = _as_stored(module, factors, alpha, config if architecture.permutes else {})
        writer.add_tensor(f"{name}.lora_a", a.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", b.contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return len(expert.modules)


def permuted(rows: Tensor, heads: int) -> Tensor:
    """(heads · d, …) with each head's two halves of d/2 rows interleaved: row i of the first, row i of the second, and so on."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _as_stored(module: str, factors: Factors, alpha: float, heads: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """lora_a and lora_b as the file has them. `heads` is the base's config where q and k are permuted, else empty."""
    rank = len(factors.a)
    a, b = factors.a.float(), factors.b.float()
    rest = factors.scale * rank / alpha  # what llama.cpp's own α / r leaves of the scale: 1, but for rsLoRA and alpha_pattern
    if rest != 1:
        b = b * rest
    if factors.is_embedding:
        return a.T, b  # llama.cpp takes rows of it by token
    kind = module.rpartition(".")[2]
    if heads and kind in ("q_proj", "k_proj"):
        queries = int(heads["num_attention_heads"])
        b = permuted(b, queries if kind == "q_proj" else int(heads.get("num_key_value_heads") or queries))
    return a, b


def _architecture(config: Mapping[str, Any], base: Base) -> Architecture:
    found = (config.get("architectures") or ["no architecture"])[0]
    if found not in ARCHITECTURES:
        raise InputError(
            f"{base.name}: is a {found}, whose conversion to GGUF is not known here; known are {', '.join(ARCHITECTURES)}. "
            "Write the whole model with --format merged-bf16 and convert that with llama.cpp"
        )
    return ARCHITECTURES[found]


def _check_holdable(expert: Expert, base: Base) -> None:
    """Raises InputError for what is more than scale · B · A, or sits where llama.cpp would take it for something else."""
    tied = is_tied(base) and [name for name in (EMBEDDING, HEAD) if name in expert.modules]
    for wrong, what in (
        (expert.uses_dora, "uses DoRA"),
        (expert.settings.lora_bias, "has a bias on lora_B"),
        (expert.saved, f"saves whole copies of {', '.join(expert.saved_modules)}"),
        (tied, f"adapts {' and '.join(tied or [])}, and embeddings and head of this base are one tensor"),
    ):
        if wrong:
            raise InputError(f"{expert.name}: {what}, which a GGUF adapter cannot hold; write the whole model with --format merged-bf16")
