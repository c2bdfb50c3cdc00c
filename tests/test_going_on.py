"""A merge that begins at a merged adapter: where it begins, what it refuses to begin at, and that it can grow."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gopd_merge.config import make_config
from gopd_merge.errors import InputError
from gopd_merge.experts.deltas import load_updates
from gopd_merge.experts.intake import read_expert
from gopd_merge.plan import read_inputs


@pytest.fixture
def first_kl(merge_until, tmp_path):
    """first_kl(**options): KL to the target before anything was learnt, by domain."""

    def merged(**options):
        merge_until(output=tmp_path / "first.lora", overwrite=True, steps=1, **options)
        return {d: m["kl_to_target"] for d, m in json.loads((tmp_path / "first.lora" / "metrics.jsonl").read_text())["domains"].items()}

    return merged


def test_a_student_that_begins_at_its_teacher_is_at_its_target(first_kl, adapters):
    math = {"experts": {"math": str(adapters / "math.lora")}, "alpha": 1}
    assert first_kl(**math, start=str(adapters / "math.lora"))["math"] < 1e-6
    assert first_kl(**math)["math"] > 1e-3  # the control: at the base


def test_a_merge_grows_by_an_expert_that_comes_later(merge_until, adapters, tmp_path):
    """The first merge teaches what it knows, the new expert its own; the student begins at the first one and moves."""
    math, code = (str(adapters / f"{domain}.lora") for domain in ("math", "code"))
    merge_until(experts={"math": math}, output=tmp_path / "old.lora", steps=2)
    old = str(tmp_path / "old.lora")
    prompts = {"old": str(adapters / "math.lora" / "prompts" / "train.jsonl")}
    config = make_config({"experts": {"old": old, "code": code}, "start": old, "prompts": prompts, "eval": False})
    inputs = read_inputs(config)
    assert inputs.lora_rank == max(read_expert("old", old).rank, read_expert("code", code).rank)
    assert set(inputs.targets) >= set(read_expert("old", old).targets)
    merge_until(experts={"code": code}, start=old, output=tmp_path / "grown.lora", steps=1, learning_rate=1e-6)
    before, after = (load_updates(read_expert("one", str(tmp_path / name))) for name in ("old.lora", "grown.lora"))
    for module, update in before.items():
        torch.testing.assert_close(after[module].dense, update.dense, rtol=0.05, atol=1e-4)  # it went on from there
    assert any(not torch.equal(after[module].dense, update.dense) for module, update in before.items())
    manifest = json.loads((tmp_path / "grown.lora" / "merge.json").read_text())
    assert manifest["settings"]["start adapter"] == read_expert("old", old).sha256  # so that it can be made again


def refused(adapters, **options):
    """The one line with which it is refused, before anything loads."""
    experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
    with pytest.raises(InputError) as caught:
        read_inputs(make_config({"experts": experts, "eval": False} | options))
    return str(caught.value)


def test_a_start_that_no_student_can_have_is_refused(adapters, make_expert):
    dora, _ = make_expert("dora", r=4, target_modules=["q_proj"], use_dora=True)
    assert "is no plain LoRA" in refused(adapters, start=dora)
    wide, _ = make_expert("wide", r=32, target_modules=["q_proj"])
    assert "--lora-rank 16 is below the rank 32 of --start" in refused(adapters, start=wide, lora_rank=16)
    assert read_inputs(make_config({"experts": {"math": str(adapters / "math.lora")}, "start": wide, "eval": False})).lora_rank == 32


def test_a_start_is_looked_at_as_closely_as_an_expert(adapters, math_copy):
    file = math_copy / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] * float("nan")}, file)
    assert "NaN" in refused(adapters, start=str(math_copy))
    save_file({key: value for key, value in weights.items() if key != name}, file)
    assert "lora_" in refused(adapters, start=str(math_copy))
    assert "no such folder" in refused(adapters, start="nowhere.lora")


def test_a_start_that_the_merge_would_replace_is_refused(adapters, tmp_path):
    """What it began at would be gone, and the merge could not be made again."""
    said = refused(adapters, start=str(adapters / "math.lora"), output=adapters / "math.lora", overwrite=True)
    assert said.endswith("is what the merge begins at, and would be replaced by it; choose another --output")
