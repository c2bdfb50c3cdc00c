"""Adapters that would merge wrongly are refused with the reason; those that PEFT runs are taken."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from gopd_merge.errors import InputError
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.intake import read_expert, read_experts
from gopd_merge.experts.static import check_values

WEIGHTS = "adapter_model.safetensors"


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)


def refusal(folder):
    with pytest.raises(InputError) as caught:
        check_values(read_expert("math", str(folder)))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_the_embedded_experts_are_read(adapters):
    code, math = read_experts({"math": str(adapters / "math.lora"), "code": str(adapters / "code.lora")})
    assert (code.domain, code.rank, code.targets) == ("code", 4, ("down_proj", "o_proj", "q_proj", "up_proj", "v_proj"))
    assert (math.domain, math.rank, len(math.targets)) == ("math", 8, 7)
    assert code.is_plain
    assert len(math.modules) == 28
    assert math.modules["model.layers.0.mlp.up_proj"] == (8, 128, 384)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "LOHA"}, "only LORA can be merged"),
        ({"bias": "all"}, "bias='none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
    ],
)
def test_a_config_that_cannot_be_merged_correctly_is_refused(math_copy, edit_config, changes, named):
    edit_config(math_copy, **changes)
    assert named in refusal(math_copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", json.dumps({"a": "x" * (1 << 20)})])
def test_a_config_that_is_no_object_is_refused(math_copy, text):
    (math_copy / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refusal(math_copy)


def test_an_adapter_without_one_half_is_refused(math_copy):
    change_tensors(math_copy, lambda t: {n: v for n, v in t.items() if "layers.1.self_attn.q_proj.lora_A" not in n})
    assert "model.layers.1.self_attn.q_proj has no lora_A" in refusal(math_copy)


def test_two_halves_of_different_rank_are_refused(math_copy):
    change_tensors(math_copy, lambda t: {n: v[:, :2].contiguous() if "layers.1.self_attn.q_proj.lora_B" in n else v for n, v in t.items()})
    assert "rank 8 in lora_A and 2 in lora_B" in refusal(math_copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_refused_by_name(math_copy, value):
    def poison(tensors):
        name = next(n for n in tensors if "layers.2.mlp.up_proj.lora_A" in n)
        tensors[name][3, 5] = value
        return tensors

    change_tensors(math_copy, poison)
    assert "layers.2.mlp.up_proj.lora_A" in refusal(math_copy)


def test_an_adapter_that_changes_nothing_is_refused(math_copy):
    change_tensors(math_copy, lambda t: {n: torch.zeros_like(v) if "lora_B" in n else v for n, v in t.items()})
    assert "changes nothing" in refusal(math_copy)


def test_a_truncated_file_is_refused(math_copy):
    path = math_copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a readable safetensors file" in refusal(math_copy)


def test_a_pickle_is_named_and_never_opened(math_copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (math_copy / WEIGHTS).unlink()
    (math_copy / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "only safetensors is read" in refusal(math_copy)
    assert not (tmp_path / "exploded").exists()


def test_a_module_that_the_base_lacks_is_refused(math_copy):
    change_tensors(math_copy, lambda t: {n.replace("layers.3", "layers.33"): v for n, v in t.items()})
    with pytest.raises(InputError, match=r"layers\.33.*does not have"):
        resolve_base([read_expert("math", str(math_copy))], None)


def test_an_explicit_base_overrides_what_the_experts_name(math_copy, edit_config, adapters):
    edit_config(math_copy, base_model_name_or_path="some/renamed-base")
    found = resolve_base([read_expert("math", str(math_copy))], str(adapters / "tiny-base"))
    assert found.location == str((adapters / "tiny-base").resolve())
