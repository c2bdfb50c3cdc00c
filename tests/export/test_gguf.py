"""A GGUF file holds the adapter's own updates: read back by the gguf package, put in order again, and compared with PEFT's ΔW."""

import gguf
import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from gopd_merge.cli import main

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NAMES = {  # written down, not asked of the gguf package
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export(adapter, output, *options):
    return main(["export", str(adapter), "--format", "gguf", "--output", str(output), *map(str, options)])


def value(reader, key):
    return reader.get_field(key).contents()


def gguf_name(module):
    if module == "lm_head":
        return "output.weight"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def updates_of(path):
    """ΔW by llama.cpp's name and rule: the file's alpha over the rank (the last dimension of b), times b @ a."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    alpha = value(reader, "adapter.lora.alpha")
    assert {name.rpartition(".")[2] for name in tensors} == {"lora_a", "lora_b"}
    updates = {}
    for name in {name.rpartition(".")[0] for name in tensors}:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        updates[name] = alpha / b.shape[1] * (b.astype(np.float64) @ a.astype(np.float64))
    return updates


def in_transformers_order(rows, heads):
    """llama.cpp keeps the two coordinates that rotate together side by side; Transformers keeps them half a head apart."""
    size = len(rows) // heads
    order = np.empty(len(rows), dtype=int)
    for head in range(heads):
        for pair in range(size // 2):
            order[head * size + pair] = head * size + 2 * pair
            order[head * size + size // 2 + pair] = head * size + 2 * pair + 1
    return rows[order]


def peft_updates(model):
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().double().numpy()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
@pytest.mark.parametrize(("kind", "permutes"), [("llama", True), ("qwen2", False)])
def test_the_updates_in_the_file_are_pefts(kind, permutes, config, make_base, make_adapter, load_peft, tmp_path):
    base = make_base(kind)
    adapter = make_adapter(base, target_modules=ALL, **config)
    assert export(adapter, tmp_path / "m.gguf") == 0
    found, expected = updates_of(tmp_path / "m.gguf"), peft_updates(load_peft(base, adapter))
    assert len(found) == len(expected) == 14
    for module, delta in expected.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(module.rpartition(".")[2])
        rows = found[gguf_name(module)]
        if permutes and heads:
            assert not np.allclose(rows, delta, rtol=0.1)  # the control: in the file they are in another order
            rows = in_transformers_order(rows, heads)
        np.testing.assert_allclose(rows, delta, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_rows_keeps_attention_as_it_was():
    """Rotated as llama.cpp does it (neighbours) after the permutation, queries and keys have the products of Transformers' halves."""
    from gopd_merge.export.gguf_file import permuted

    heads, size, generator = 2, 8, torch.Generator().manual_seed(0)
    q, k = (torch.randn(heads * size, generator=generator) for _ in range(2))

    def halves(x, position):
        x = x.view(heads, 2, size // 2)
        angle = position * 10000.0 ** (-torch.arange(size // 2) * 2 / size)
        return torch.stack([x[:, 0] * angle.cos() - x[:, 1] * angle.sin(), x[:, 1] * angle.cos() + x[:, 0] * angle.sin()], 1).flatten(1)

    def neighbours(x, position):
        x = x.view(heads, size // 2, 2)
        angle = position * 10000.0 ** (-torch.arange(size // 2) * 2 / size)
        turned = [x[..., 0] * angle.cos() - x[..., 1] * angle.sin(), x[..., 1] * angle.cos() + x[..., 0] * angle.sin()]
        return torch.stack(turned, -1).flatten(1)

    expected = (halves(q, 5) * halves(k, 2)).sum(1)
    torch.testing.assert_close((neighbours(permuted(q, heads), 5) * neighbours(permuted(k, heads), 2)).sum(1), expected)
    assert not torch.allclose((neighbours(q, 5) * neighbours(k, 2)).sum(1), expected, rtol=0.1)


def test_the_file_says_what_it_is(adapters, tmp_path, capsys):
    assert export(adapters / "math.lora", tmp_path / "math.gguf", "--json") == 0
    assert '"modules": 28' in capsys.readouterr().out
    reader = gguf.GGUFReader(tmp_path / "math.gguf")
    said = {
        key: value(reader, key) for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha", "general.name")
    }
    assert said == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 16.0,
        "general.name": "math.lora",
    }
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    assert str(adapters).encode() not in (tmp_path / "math.gguf").read_bytes()


def test_embeddings_and_head_have_their_places_where_they_are_two(make_base, make_adapter, tmp_path):
    base = make_base(tie_word_embeddings=False)
    adapter = make_adapter(base, r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head"])
    assert export(adapter, tmp_path / "m.gguf") == 0
    tensors = {tensor.name: tensor.data.shape for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors == {
        "token_embd.weight.lora_a": (512, 4),  # llama.cpp takes its rows by token, and multiplies with b
        "token_embd.weight.lora_b": (64, 4),
        "output.weight.lora_a": (4, 64),
        "output.weight.lora_b": (512, 4),
    }


@pytest.mark.parametrize(
    ("config", "base_config", "named"),
    [
        ({"use_dora": True}, {}, "uses DoRA"),
        ({"lora_bias": True}, {"attention_bias": True}, "a bias on lora_B"),
        ({"modules_to_save": ["lm_head"]}, {}, "saves whole copies of lm_head"),
        ({"target_modules": ["q_proj", "lm_head"]}, {"tie_word_embeddings": True}, "adapts lm_head, and embeddings and head"),
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_refused_in_one_line(config, base_config, named, make_base, make_adapter, tmp_path, capsys):
    adapter = make_adapter(make_base(**base_config), **({"target_modules": ["q_proj"]} | config))
    assert export(adapter, tmp_path / "m.gguf") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert "--format merged-bf16" in line
    assert not list(tmp_path.glob("m.gguf*"))


def test_an_architecture_that_is_not_known_is_refused(make_base, make_adapter, tmp_path, capsys):
    base = make_base()
    adapter = make_adapter(base, target_modules=["q_proj"])
    config = base / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "BloomForCausalLM"))
    assert export(adapter, tmp_path / "m.gguf") == 2
    assert "is a BloomForCausalLM" in capsys.readouterr().err


def test_every_architecture_has_a_name_for_each_of_its_layers():
    from gopd_merge.export.gguf_file import ARCHITECTURES

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    for architecture in ARCHITECTURES.values():
        names = gguf.get_tensor_name_map(kinds[architecture.name], 2)
        for layer in ("self_attn.o_proj", "mlp.down_proj"):
            assert names.get_name(f"model.layers.1.{layer}.weight", try_suffixes=(".weight",)) == f"blk.1.{NAMES[layer]}.weight"


def test_a_file_that_is_there_is_not_replaced(adapters, tmp_path, capsys):
    (tmp_path / "m.gguf").write_text("mine")
    assert export(adapters / "math.lora", tmp_path / "m.gguf") == 2
    assert "exists; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "m.gguf").read_text() == "mine"
    assert export(adapters / "math.lora", tmp_path / "no" / "m.gguf") == 2


@pytest.mark.parametrize(("options", "made"), [(["--format", "gguf"], "math.gguf"), (["--merged-bf16"], "math-bf16")])
def test_what_is_written_has_the_adapters_name(adapters, tmp_path, monkeypatch, options, made):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(adapters / "math.lora"), *options]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [made]


@pytest.mark.parametrize(
    ("options", "named"), [([], "give --format gguf or --merged-bf16"), (["--format", "gguf", "--merged-bf16"], "two files")]
)
def test_one_form_is_asked_for(adapters, tmp_path, monkeypatch, capsys, options, named):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(adapters / "math.lora"), *options]) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
