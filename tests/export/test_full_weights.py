"""Base plus adapter as one model: its logits are PEFT's, but for bfloat16, whatever the adapter is made of and the base stored as."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gopd_merge.cli import main

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS = {
    "plain": {"target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "dora": {"target_modules": ATTENTION, "use_dora": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
}


def export(adapter, output, *options):
    return main(["export", str(adapter), "--format", "merged-bf16", "--output", str(output), *map(str, options)])


@torch.no_grad()
def logits_of(model, prompt):
    return model(input_ids=prompt).logits.float()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_its_logits_are_pefts(kind, tied, make_base, make_adapter, load_peft, prompt, tmp_path):
    base = make_base(tie_word_embeddings=tied)
    adapter = make_adapter(base, r=4, lora_alpha=8, **KINDS[kind])
    assert export(adapter, tmp_path / "model") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    merged, expected = logits_of(model, prompt), logits_of(load_peft(base, adapter), prompt)
    plain = logits_of(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), prompt)
    gap, moved = (merged - expected).abs().mean(), (plain - expected).abs().mean()
    assert gap < 0.03 * expected.abs().mean()  # bfloat16 keeps 8 bits
    assert moved > 10 * gap  # the control: the adapter does something


def test_a_base_in_several_files_stays_in_several_and_loads(make_base, make_adapter, load_peft, prompt, tmp_path):
    base = make_base(shard_size="100KB", tie_word_embeddings=True)
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) > 2
    adapter = make_adapter(base, r=4, target_modules=["q_proj", "down_proj", "lm_head"])
    assert export(adapter, tmp_path / "model") == 0
    assert sorted(path.name for path in (tmp_path / "model").glob("*.safetensors")) == files
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = logits_of(load_peft(base, adapter), prompt)
    assert (logits_of(model, prompt) - expected).abs().mean() < 0.03 * expected.abs().mean()
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["lm_head.weight"] == index["weight_map"]["model.embed_tokens.weight"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for name in files for t in load_file(tmp_path / "model" / name).values())


def test_all_is_bfloat16_and_what_lies_beside_the_weights_comes_along(adapters, tmp_path):
    assert export(adapters / "math.lora", tmp_path / "model") == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "model", adapters / "tiny-base"))
    assert ours.chat_template == theirs.chat_template
    assert not (tmp_path / "model" / "README.md").exists()  # the base's card is not this model's


def test_the_cost_that_is_named_is_the_one_that_is_paid(make_base, make_adapter, load_peft, tmp_path, capsys):
    base = make_base()
    adapter = make_adapter(base, r=4, target_modules=["q_proj"])
    assert export(adapter, tmp_path / "model", "--json") == 0
    said = json.loads(capsys.readouterr().out)["rounding"]
    written, before = load_file(tmp_path / "model" / "model.safetensors"), load_file(base / "model.safetensors")
    merged = load_peft(base, adapter).merge_and_unload().state_dict()
    names = [name for name in written if "q_proj.weight" in name]
    error = torch.stack([(written[name].float() - merged[name]).abs() for name in names])
    update = torch.stack([merged[name] - before[name] for name in names])
    assert said["largest"] == pytest.approx(float(error.max()), rel=1e-3)
    assert said["mean"] == pytest.approx(float(error.mean()), rel=1e-3)
    assert said["share_of_update"] == pytest.approx(float(error.norm() / update.norm()), rel=1e-3)
    assert 0 < said["mean"] < said["largest"] < 0.01


def test_a_base_that_is_stored_quantised_is_refused(make_base, make_adapter, tmp_path, capsys):
    base = make_base()
    adapter = make_adapter(base, target_modules=["q_proj"])
    config = json.loads((base / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    assert export(adapter, tmp_path / "model") == 2
    assert "name the original with --base" in capsys.readouterr().err


def test_a_bias_of_the_adapter_has_no_place(make_base, make_adapter, tmp_path, capsys):
    adapter = make_adapter(make_base(attention_bias=True), target_modules=["q_proj"], lora_bias=True)
    assert export(adapter, tmp_path / "model") == 2
    assert "use it with PEFT" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
