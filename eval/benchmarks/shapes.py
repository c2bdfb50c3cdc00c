"""Random-weight models of real shapes with two random experts each, and rollouts of given raggedness: what speed and memory depend on."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.rollout import Rollout
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import read_experts

EMBEDDED = Path("adapters/tiny-base")  # whose tokenizer serves: no text is read
RANKS = {"math": 16, "code": 8}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORK = Path("eval/work/shapes")
SHAPES: dict[str, tuple[type[PretrainedConfig], type, dict[str, int]]] = {
    "smollm2-135m": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            **{"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
            **{"num_attention_heads": 9, "num_key_value_heads": 3},
        },
    ),
    "qwen2.5-0.5b": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            **{"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
            **{"num_attention_heads": 14, "num_key_value_heads": 2},
        },
    ),
}


def make(shape: str, work: Path = WORK) -> Path:
    """The folder with `base` and an adapter `DOMAIN.lora` for each of RANKS; made once."""
    folder = work / shape
    if (folder / "base" / "config.json").is_file():
        return folder
    config_class, model_class, sizes = SHAPES[shape]
    torch.manual_seed(0)
    model = model_class(config_class(**sizes, tie_word_embeddings=True, eos_token_id=3, pad_token_id=0)).to(torch.bfloat16)
    for domain, rank in RANKS.items():
        peft = get_peft_model(model, LoraConfig(r=rank, target_modules=TARGETS, task_type="CAUSAL_LM", init_lora_weights=False))
        peft.peft_config["default"].base_model_name_or_path = str(folder / "base")
        peft.save_pretrained(folder / f"{domain}.lora")
        shutil.copytree(f"adapters/{domain}.lora/prompts", folder / f"{domain}.lora" / "prompts", dirs_exist_ok=True)
        model = peft.unload()
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder / "base")
    model.save_pretrained(folder / "base")
    return folder


def load(shape: str, quantize: str, rank: int = 16, device: str = "cpu") -> Backbone:
    """The base of that shape with both experts and a student whose adapter is not zero any more."""
    folder = make(shape)
    experts = read_experts({domain: str(folder / f"{domain}.lora") for domain in RANKS})
    location = str(folder / "base")
    backbone = Backbone(*load_base(Base(location, location), quantize, device), experts)
    backbone.add_student(rank, TARGETS, seed=0)
    with torch.no_grad():
        for parameter in backbone.student_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return backbone


@dataclass(frozen=True)
class Load:
    """How much is asked of a step."""

    prompts: int
    prompt_tokens: int  # the longest prompt
    response_tokens: int  # the limit of a response
    fill: float  # mean share of both that is used; 1: all rows are full

    def rollout(self, vocabulary: int, seed: int = 0) -> Rollout:
        """Random tokens; lengths are evenly spread between 2 · fill − 1 and 1 of the longest, in random order."""
        generator = torch.Generator().manual_seed(seed)

        def lengths(longest: int) -> torch.Tensor:
            shares = torch.linspace(2 * self.fill - 1, 1, self.prompts)[torch.randperm(self.prompts, generator=generator)]
            return (shares * longest).round().long().clamp(min=1)

        prompts, responses = lengths(self.prompt_tokens), lengths(self.response_tokens)  # (B,)
        ids = torch.randint(4, vocabulary, (self.prompts, self.prompt_tokens + self.response_tokens), generator=generator)
        prompt_mask = torch.arange(self.prompt_tokens) >= self.prompt_tokens - prompts.unsqueeze(-1)  # (B, P)
        response_mask = torch.arange(self.response_tokens) < responses.unsqueeze(-1)  # (B, T)
        mask = torch.cat([prompt_mask, response_mask], dim=1)
        fields: dict[str, Any] = {"capped": responses == self.response_tokens}
        domains = tuple(list(RANKS)[row % len(RANKS)] for row in range(self.prompts))
        return Rollout(ids=ids * mask, attention_mask=mask.long(), response_mask=response_mask, domains=domains, **fields)
