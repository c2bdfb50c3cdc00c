"""Small random models and adapters, made and read by Transformers and PEFT alone."""

import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

PROMPT = torch.arange(3, 40).unsqueeze(0)  # (1, T)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}


@pytest.fixture(scope="session")
def prompt():
    return PROMPT


@pytest.fixture
def make_base(adapters, tmp_path):
    """make_base(kind, **config): a random model with grouped queries and the embedded base's tokenizer, in float32; its folder."""

    def make(kind="llama", shard_size="5GB", **changes):
        folder = shutil.copytree(
            adapters / "tiny-base", tmp_path / f"{kind}-base", ignore=shutil.ignore_patterns("*.safetensors", "config.json")
        )
        config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**(SMALL | changes))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(torch.float32)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # biases and norms that are not trivial
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder

    return make


@pytest.fixture
def make_adapter(tmp_path):
    """make_adapter(base, **config): a random adapter on it, saved by PEFT; its folder."""

    def make(base, **config):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config))
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "merged.lora", save_embedding_layers=False)
        return tmp_path / "merged.lora"

    return make


@pytest.fixture(scope="session")
def load_peft():
    """load_peft(base, adapter): base and adapter by Transformers and PEFT, float32."""

    def load(base, adapter):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).eval()

    return load
