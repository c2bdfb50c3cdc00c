"""The precision that an expert was trained at, and that a base is stored in, against the run's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from gopd_merge.distill.backbone import Backbone, expert
from gopd_merge.errors import InputError
from gopd_merge.experts.base import load_base, resolve_base
from gopd_merge.experts.intake import read_expert, read_experts

# As PEFT wrote it into a card.
CARD = """---
library_name: peft
---
## Training procedure

The following `bitsandbytes` quantization config was used during training:
- quant_method: {method}
- load_in_8bit: {eight}
- load_in_4bit: {four}
- llm_int8_threshold: 6.0
- bnb_4bit_quant_type: {kind}
"""
NF4 = {"method": "bitsandbytes", "eight": False, "four": True, "kind": "nf4"}


def warnings_of(folder, quantize):
    return resolve_base([read_expert("math", str(folder))], None, quantize=quantize).warnings


@pytest.mark.parametrize(
    ("card", "trained"),
    [
        (NF4, "4-bit NF4"),
        (NF4 | {"method": "QuantizationMethod.BITS_AND_BYTES", "kind": "fp4"}, "4-bit FP4"),
        (NF4 | {"eight": True, "four": False}, "8 bits"),
        (NF4 | {"method": "gptq"}, "GPTQ"),
    ],
)
def test_an_expert_trained_at_another_precision_is_a_warning_with_both(math_copy, card, trained):
    (math_copy / "README.md").write_text(CARD.format(**card))
    expected = (f"{math_copy} was trained on the base in {trained}, this run holds it in full precision: its answers may differ a little",)
    assert warnings_of(math_copy, "none") == expected
    assert bool(warnings_of(math_copy, "nf4")) == (trained != "4-bit NF4")  # the control: at the same one there is nothing to say


def test_a_merge_says_in_its_manifest_what_it_was_trained_at(math_copy):
    (math_copy / "merge.json").write_text(json.dumps({"base": {"quantization": "none"}}))
    (math_copy / "README.md").write_text(CARD.format(**NF4))  # less certain than the manifest
    assert "in full precision, this run holds it in 4-bit NF4" in warnings_of(math_copy, "nf4")[0]
    assert warnings_of(math_copy, "none") == ()


@pytest.mark.parametrize("manifest", ["{", "[]", '{"base": 3}', '{"base": {"quantization": ["nf4"]}}', "[" * 100_000])
def test_files_that_say_nothing_are_no_warning(math_copy, manifest):
    (math_copy / "merge.json").write_text(manifest)
    (math_copy / "README.md").write_bytes(b"\xff\xfe no card")
    assert warnings_of(math_copy, "nf4") == warnings_of(math_copy, "none") == ()


@pytest.fixture(scope="module")
def stored_in_nf4(adapters, tmp_path_factory):
    """The embedded base as bitsandbytes stores it."""
    folder = tmp_path_factory.mktemp("stored") / "tiny-base"
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    AutoModelForCausalLM.from_pretrained(adapters / "tiny-base", quantization_config=how, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(adapters / "tiny-base").save_pretrained(folder)
    return folder


def test_a_base_stored_in_nf4_gives_the_logits_of_one_that_is_quantised_when_it_loads(stored_in_nf4, adapters):
    assert any(t.dtype == torch.uint8 for t in load_file(stored_in_nf4 / "model.safetensors").values())
    experts = read_experts({"math": str(adapters / "math.lora")})
    ids = torch.randint(4, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for place in (stored_in_nf4, adapters / "tiny-base"):
        base = resolve_base(experts, str(place), quantize="nf4")
        backbone = Backbone(*load_base(base, "nf4", "cpu"), experts)
        backbone.add_student(2, ["q_proj"], seed=0)
        with torch.no_grad():
            found.append(backbone.logits(backbone.hidden(expert("math"), ids, torch.ones_like(ids)), expert("math")))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_an_expert_that_does_not_fit_a_base_stored_in_nf4_is_still_refused(stored_in_nf4, math_copy):
    tensors = load_file(math_copy / "adapter_model.safetensors")
    save_file({n: t[:, :64].contiguous() if "lora_A" in n else t for n, t in tensors.items()}, math_copy / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"trained on another base: its .*mlp.down_proj is 64 -> 128, .* has the shape 128 x 384;"):
        resolve_base(read_experts({"math": str(math_copy)}), str(stored_in_nf4))


def test_a_base_stored_in_nf4_cannot_be_held_at_full_precision(stored_in_nf4, adapters):
    with pytest.raises(InputError, match="is stored in 4-bit NF4; use --quantize nf4, or name the unquantised model with --base"):
        resolve_base(read_experts({"math": str(adapters / "math.lora")}), str(stored_in_nf4), quantize="none")


@pytest.mark.parametrize(("method", "named"), [({"quant_method": "gptq", "bits": 4}, "GPTQ"), ({"load_in_8bit": True}, "8 bits")])
def test_a_base_stored_in_another_way_is_refused(math_copy, adapters, tmp_path, method, named):
    base = shutil.copytree(adapters / "tiny-base", tmp_path / "stored")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    with pytest.raises(InputError, match=f"is stored in {named}, which cannot be loaded as NF4; name the unquantised model with --base"):
        resolve_base(read_experts({"math": str(math_copy)}), str(base))
