"""The embedded default is what its cards say: splits that do not overlap, sizes, experts of different shape."""

import json

import pytest
from safetensors.torch import load_file


def prompts(adapters, domain, split):
    path = adapters / f"{domain}.lora" / "prompts" / f"{split}.jsonl"
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("domain", ["math", "code", "big-math"])
def test_the_splits_do_not_overlap(adapters, domain):
    splits = {split: prompts(adapters, domain, split) for split in ("train", "validation", "test")}
    assert all(len(rows) >= 2000 for rows in splits.values())
    assert all(len(set(rows)) == len(rows) for rows in splits.values())
    names = list(splits)
    assert all(not set(splits[a]) & set(splits[b]) for i, a in enumerate(names) for b in names[i + 1 :])


def test_the_base_is_small_and_holds_no_code(adapters):
    files = {p.name: p.stat().st_size for p in (adapters / "tiny-base").iterdir()}
    assert files["model.safetensors"] < 12e6
    assert not [name for name in files if name.endswith((".py", ".bin", ".pt", ".pkl"))]


def test_the_experts_differ_in_rank_and_targets(adapters):
    math, code = (json.loads((adapters / f"{d}.lora" / "adapter_config.json").read_text()) for d in ("math", "code"))
    assert math["r"] != code["r"]
    assert set(math["target_modules"]) != set(code["target_modules"])
    assert math["base_model_name_or_path"] == code["base_model_name_or_path"] == "adapters/tiny-base"


def test_the_larger_base_has_the_same_tokenizer_and_three_to_four_times_the_parameters(adapters):
    small, large = (adapters / name for name in ("tiny-base", "big-base"))
    assert (small / "tokenizer.json").read_bytes() == (large / "tokenizer.json").read_bytes()
    assert (small / "chat_template.jinja").read_bytes() == (large / "chat_template.jinja").read_bytes()
    counts = []
    for folder in (small, large):
        counts.append(sum(weights.numel() for weights in load_file(folder / "model.safetensors").values()))
    assert 3 <= counts[1] / counts[0] <= 4


def test_the_larger_base_holds_no_code_and_its_expert_names_it(adapters):
    assert not [p.name for p in (adapters / "big-base").iterdir() if p.suffix in (".py", ".bin", ".pt", ".pkl")]
    assert json.loads((adapters / "big-math.lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == "adapters/big-base"
