"""The quantised base: gradients through it are those of its dequantised weights, in evaluation mode too."""

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gopd_merge.experts.base import Base, load_base


def gradients(model):
    """Of an adapter whose path back to the loss leads through every quantised layer."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(model, config).eval()
    ids = torch.arange(4, 36).reshape(2, 16)
    with torch.no_grad():
        model(input_ids=ids)  # what repacks weights for inference, where that is not prevented
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def load(adapters, quantize):
    location = str(adapters / "tiny-base")
    return load_base(Base(location, location), quantize, "cpu")[0]


def test_gradients_through_nf4_equal_those_through_its_dequantised_weights(adapters):
    quantised = load(adapters, "nf4")
    dequantised = load(adapters, "none")
    layers = {n: m for n, m in quantised.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(layers) == 28
    for name, layer in layers.items():
        dequantised.get_submodule(name).weight.data = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    found, expected = gradients(quantised), gradients(dequantised)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_the_quantised_base_differs_from_the_full_one(adapters):
    """The control: were nothing quantised, the comparison above would hold for no good reason."""
    found, expected = gradients(load(adapters, "nf4")), gradients(load(adapters, "none"))
    assert (found - expected).norm() > 0.01 * expected.norm()


def test_the_base_is_frozen_in_evaluation_mode_and_held_in_four_bits(adapters):
    model = load(adapters, "nf4")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    weight = model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert weight.dtype == torch.uint8
    assert weight.numel() * 2 == 128 * 384


def test_a_base_that_cannot_be_loaded_is_one_line(tmp_path):
    from gopd_merge.errors import GopdError

    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(GopdError, match="its tokenizer cannot be loaded") as caught:
        load_base(Base("x", str(tmp_path)), "nf4", "cpu")
    assert "\n" not in str(caught.value)
