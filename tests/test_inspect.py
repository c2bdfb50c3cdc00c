"""`gopd-merge inspect` and `gopd-merge doctor`, from the shell."""

import json
import shutil

import pytest

from gopd_merge.doctor import Check, examine, is_healthy
from gopd_merge.experts.intake import read_experts
from gopd_merge.inspection import inspect
from gopd_merge.report.inspection import bars


def test_inspect_shows_each_adapter_and_whether_they_fit(run_here, code_copy):
    done = run_here("inspect", "adapters/math.lora", "adapters/code.lora")
    assert done.returncode == 0, done.stderr
    for shown in (
        "rank 8, alpha 16",
        "rank 4, alpha 8",
        "down, o, q, up, v: 20 modules",
        "code × math",
        "mergeable: 2 experts of one base",
    ):
        assert shown in done.stdout
    assert done.stderr == ""


def test_inspect_as_json_is_one_document(run_here, code_copy, math_copy):
    from safetensors import safe_open

    document = json.loads(run_here("inspect", "adapters/math.lora", "adapters/code.lora", "--json").stdout)
    code, math = document["experts"]
    with safe_open(math_copy / "adapter_model.safetensors", framework="numpy") as file:
        count = sum(int.__mul__(*file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert math["parameters"] == count
    assert list(code["norm_by_layer"]) == ["0", "1", "2", "3"]
    assert document["overlaps"][0]["modules"] == 20
    assert document["conflict"] is None


def test_inspect_shows_what_it_can_and_then_what_is_wrong(run_here, code_copy, edit_config):
    edit_config(code_copy, base_model_name_or_path="other/base")
    done = run_here("inspect", "adapters/math.lora", "adapters/code.lora")
    assert "not mergeable: adapters/math.lora was trained on adapters/tiny-base, adapters/code.lora on other/base" in done.stdout
    edit_config(code_copy, bias="all", peft_type="LOHA")
    done = run_here("inspect", "adapters/math.lora", "adapters/code.lora")
    assert done.returncode == 2
    assert "rank 8" in done.stdout
    assert done.stderr.startswith("gopd-merge: adapters/code.lora: 2 problems\n  adapter_config.json: peft_type is 'LOHA'")
    done = run_here("inspect")
    assert done.returncode == 2
    assert "none given" in done.stderr


def test_inspect_gives_no_norm_where_the_update_is_no_product(run_here, code_copy, make_dora):
    make_dora("adapters/dora.lora")
    done = run_here("inspect", "adapters/dora.lora", "adapters/math.lora")
    assert done.returncode == 0, done.stderr
    assert "DoRA, rank 2" in done.stdout
    assert "no plain B · A" in done.stdout


def test_inspect_names_the_modules_that_an_adapter_brings_whole(math_copy, edit_config):
    import torch
    from safetensors.torch import load_file, save_file

    path = math_copy / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.ones(512, 128)}, path)
    edit_config(math_copy, modules_to_save=["lm_head"], use_rslora=True)
    document = inspect(read_experts({"math": str(math_copy)}))
    (expert,) = document["experts"]
    assert expert["kind"] == "rsLoRA, saves lm_head"
    assert expert["norm_by_layer"] is None
    assert document["conflict"] is None
    edit_config(math_copy, modules_to_save=["lm_head"], use_rslora=False)
    (expert,) = inspect(read_experts({"math": str(math_copy)}))["experts"]
    assert expert["kind"] == "LoRA, saves lm_head"


@pytest.fixture
def make_dora(adapters, tmp_path):
    from peft import LoraConfig, get_peft_model

    from gopd_merge.experts.base import Base, load_base

    def make(name):
        location = str(adapters / "tiny-base")
        model = get_peft_model(
            load_base(Base(location, location), "none", "cpu")[0], LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
        )
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data += 0.1
        model.peft_config["default"].base_model_name_or_path = "adapters/tiny-base"
        model.save_pretrained(tmp_path / name)

    return make


def test_bars_grow_with_the_values():
    assert bars([0.0, 0.5, 1.0]) == "▁▅█"
    assert bars([0.0, 0.0]) == "▁▁"


def test_doctor_finds_what_a_merge_needs_and_names_what_is_optional(run_cli):
    done = run_cli("doctor", "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("torch", "peft", "bitsandbytes", "NF4 on cpu"):
        assert checks[name]["status"] == "ok"
        assert not checks[name]["optional"]
    assert checks["sandbox"]["optional"]
    assert (checks["sandbox"]["status"] == "ok") == bool(shutil.which("bwrap"))
    text = run_cli("doctor")
    assert text.returncode == 0
    assert "right gradients for the student" in text.stdout
    assert text.stderr == ""


def test_doctor_notices_a_kernel_without_a_gradient(monkeypatch):
    """What bitsandbytes does on some processors, by a forward that is cut from the graph."""
    import bitsandbytes as bnb

    original = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: original(self, x.detach()) + 0 * x.sum())
    (check,) = (c for c in examine() if c.name == "NF4 on cpu")
    assert check.status == "broken"
    assert not is_healthy([check])
    assert is_healthy([Check("gpu", "missing", "", "", optional=True)])
