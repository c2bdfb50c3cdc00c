"""The models that are measured: the shapes of two published ones with random weights, an expert, a student, and a tokenizer.

Speed and memory do not depend on what the weights are. A word of the tokenizer is a token, so a prompt has the length that it is given.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

PAD, EOS, FIRST_WORD = 0, 1, 2
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16
COMMON = {"tie_word_embeddings": True, "max_position_embeddings": 2048, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}


@dataclass(frozen=True)
class Shape:
    """A model, and the sizes of the step that is measured on it."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    prompts: int  # in a step
    prompt_tokens: int  # at most
    response_tokens: int  # at most

    def model_config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            **COMMON,
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one block."""
        H, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        return [(H, H), (H, kv), (H, kv), (H, H), (H, self.intermediate), (H, self.intermediate), (self.intermediate, H)]

    @property
    def weight_bytes(self) -> int:
        """Of a float32 base: embeddings, which are the head too, and linear layers; norms and biases are too few to count."""
        return 4 * (self.vocabulary * self.hidden + self.layers * sum(a * b for a, b in self.linears))

    def useful_flops(self, lengths: list[tuple[int, int]], scored_roles: int) -> float:
        """Of scoring and update of responses (prompt, response) tokens long, without padding and with nothing computed twice.

        Each of `scored_roles` and the student pass forward once, the student backward to the inputs of its layers and to its adapter
        alone, as the base is frozen; the loss projects target and student to the vocabulary and its gradient back.
        A multiplication and an addition count as two.
        """
        weights = sum(a * b for a, b in self.linears)
        adapter = sum(RANK * (a + b) for a, b in self.linears)
        flops = 0.0
        for prompt, response in lengths:
            n = prompt + response
            attention = 2 * n * n * self.hidden  # scores and values, half of them masked
            forward = self.layers * (2 * n * weights + attention)
            with_adapter = self.layers * 2 * n * adapter
            flops += scored_roles * forward + with_adapter  # the expert's adapter; the reference has none
            flops += 2 * forward + self.layers * attention  # attention goes back to two inputs of each product
            flops += 3 * with_adapter  # forward, to the input, to the adapter's weights
            flops += 6 * response * self.hidden * self.vocabulary
        return flops


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 576, 30, 9, 3, 1536, 49_152, prompts=8, prompt_tokens=16, response_tokens=64),
        # As a Llama: Qwen2's own tokenizer takes the place of the one below. It lacks the biases of three projections, nothing else.
        Shape("qwen2.5-0.5b", 896, 24, 14, 2, 4864, 151_936, prompts=4, prompt_tokens=32, response_tokens=128),
        Shape("tiny", 64, 2, 4, 2, 128, 512, prompts=8, prompt_tokens=8, response_tokens=12),  # for the tests
    )
}


def make_model(shape: Shape, folder: Path) -> None:
    """`base`, `expert.lora` and `student.lora` in `folder`; nothing where they are already."""
    if (folder / "student.lora").is_dir():
        return
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape.model_config(), dtype=torch.float32)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    model.save_pretrained(folder / "base")
    make_tokenizer(shape.vocabulary).save_pretrained(folder / "base")
    for name in ("expert", "student"):  # the student last: its folder says that all is there
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM", init_lora_weights=False)
        peft = get_peft_model(model, config)
        for parameter_name, parameter in peft.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data *= 0.2  # an update a good deal smaller than the weights, as trained ones are
        peft.peft_config["default"].base_model_name_or_path = str((folder / "base").absolute())
        peft.save_pretrained(folder / f"{name}.lora")
        model = peft.unload()


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word a token: w2 is the token 2."""
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(FIRST_WORD, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left")
