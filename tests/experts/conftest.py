"""Adapters of any kind on the embedded base, made by PEFT."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from gopd_merge.experts.base import Base, load_base


def delta_weights(model, name):
    return {
        module_name.removeprefix("base_model.model."): module.get_delta_weight(name).detach()
        for module_name, module in model.named_modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    }


@pytest.fixture(scope="session")
def peft_delta():
    """peft_delta(model, adapter): ΔW of every adapted module by PEFT."""
    return delta_weights


@pytest.fixture(scope="session")
def load_model(adapters):
    """load_model(quantize): the embedded base alone, and its tokenizer."""
    location = str(adapters / "tiny-base")
    return lambda quantize="none": load_base(Base(location, location), quantize, "cpu")


@pytest.fixture
def make_expert(adapters, load_model, tmp_path):
    """make_expert(name, **config): a random adapter on the embedded base, saved by PEFT; its path and PEFT's own ΔW.

    Modules that it saves whole differ from the base's.
    """

    def make(name, **config):
        torch.manual_seed(sum(map(ord, name)))
        model = get_peft_model(load_model()[0], LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config))
        for parameter_name, parameter in model.named_parameters():
            if ".modules_to_save." in parameter_name:
                parameter.data += 0.3 * parameter.std().clamp(min=0.1) * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = str(adapters / "tiny-base")
        model.save_pretrained(tmp_path / f"{name}.lora", save_embedding_layers=False)
        return str(tmp_path / f"{name}.lora"), delta_weights(model, "default")

    return make
