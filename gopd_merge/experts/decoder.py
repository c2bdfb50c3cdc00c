"""The shape of a plain decoder, as its config.json alone tells it. No torch.

Plain is what most bases are: layers of attention and a gated MLP, each behind a norm, with a residual around it. What is built otherwise
has no shape here, and must be asked of Transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gopd_merge.experts.fingerprint import read_json

PLAIN = ("llama", "mistral", "qwen2", "qwen3")  # by `model_type`; a test holds them to what Transformers makes of them
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a value
SIZES = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"),
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block."""

    inputs: int
    outputs: int
    has_bias: bool

    @property
    def weights(self) -> int:
        """Without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Decoder:
    """A plain decoder. Its token embeddings and its head have no bias."""

    kind: str  # `model_type`
    layers: int
    hidden: int  # H
    heads: int
    key_heads: int  # of keys and values
    head_size: int
    intermediate: int
    vocabulary: int  # V
    context: int  # the most tokens that it reads
    is_tied: bool  # whether embeddings and head are one
    value_bytes: int  # as it is stored
    attention_bias: bool
    mlp_bias: bool

    @cached_property
    def linear(self) -> Mapping[str, Linear]:
        """The linear layers of a block by the last part of their name."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        joint = self.attention_bias or self.kind == "qwen2"
        return {
            "q_proj": Linear(self.hidden, queries, joint),
            "k_proj": Linear(self.hidden, keys, joint),
            "v_proj": Linear(self.hidden, keys, joint),
            "o_proj": Linear(queries, self.hidden, self.attention_bias and self.kind != "qwen2"),
            "gate_proj": Linear(self.hidden, self.intermediate, self.mlp_bias),
            "up_proj": Linear(self.hidden, self.intermediate, self.mlp_bias),
            "down_proj": Linear(self.intermediate, self.hidden, self.mlp_bias),
        }

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys pass a norm of their own, head by head."""
        return self.kind == "qwen3"

    @property
    def block_vectors(self) -> int:
        """Values of a block that are no matrix's: norms and biases."""
        biases = sum(one.outputs for one in self.linear.values() if one.has_bias)
        return 2 * self.hidden + biases + (2 * self.head_size if self.norms_heads else 0)

    @property
    def block_weights(self) -> int:
        """Values of a block's linear layers, without biases."""
        return sum(one.weights for one in self.linear.values())

    @property
    def parameters(self) -> int:
        """Values of all parameters."""
        outside = (1 if self.is_tied else 2) * self.vocabulary * self.hidden + self.hidden
        return self.layers * (self.block_weights + self.block_vectors) + outside


def read_decoder(folder: Path) -> Decoder | None:
    """The shape of the model in a folder, of which config.json must be there. None for one that is not plain, or leaves a size out."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    sizes = [size for name in SIZES if isinstance(size := config.get(name), int) and size > 0]
    stored = BYTES.get(str(config.get("dtype", config.get("torch_dtype"))))
    if kind not in PLAIN or stored is None or len(sizes) < len(SIZES) or not _is_plain(kind, config):
        return None
    layers, hidden, heads, key_heads, intermediate, vocabulary, context = sizes
    if hidden % heads or heads % key_heads:
        return None
    return Decoder(
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        key_heads=key_heads,
        head_size=config.get("head_dim") or hidden // heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        context=context,
        is_tied=config.get("tie_word_embeddings") is True,
        value_bytes=stored,
        attention_bias=config.get("attention_bias") is True and kind in ("llama", "qwen3"),
        mlp_bias=config.get("mlp_bias") is True and kind == "llama",
    )


def _is_plain(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether it has nothing that changes what a pass holds: another activation, attention over a window, heads of unknown size."""
    window = config.get("sliding_window", 4096) if kind == "mistral" else config.get("use_sliding_window")
    head_size = config.get("head_dim")
    return (
        config.get("hidden_act") == "silu"
        and not window
        and set(config.get("layer_types") or ()) <= {"full_attention"}
        and (isinstance(head_size, int) or (head_size is None and kind != "qwen3"))
        and "text_config" not in config
        and "attn_implementation" not in config
    )
