"""Adapters that would merge wrongly are refused with the reason; those that PEFT runs are taken."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from gopd_merge.errors import InputError, Refused
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.intake import read_expert, read_experts

WEIGHTS = "adapter_model.safetensors"


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)


def set_value(tensors, part, value, dtype=torch.float32):
    """The tensors with one value of one of them replaced."""
    name = next(n for n in tensors if part in n)
    tensor = tensors[name].to(dtype)
    tensor.view(-1)[-1] = value
    return tensors | {name: tensor}


def refusal(folder):
    """The one line in which the folder is refused."""
    with pytest.raises(InputError) as caught:
        read_expert("math", str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert "; " in message  # what was found; what to do
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
        ({"peft_type": "LOHA"}, "only a LoRA can be merged"),
        ({"peft_type": None}, "peft_type is None"),
        ({"bias": "all"}, "bias='none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, of which the file holds no copy; take it out"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
        ({"modules_to_save": [""]}, "modules_to_save is ['']"),
        ({"trainable_token_indices": [1, 2]}, "it changes the embeddings, which the roles share"),
        ({"ensure_weight_tying": True}, "PEFT would tie the wrong tensors: set it to false"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "it changes the base"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is set"),
        ({"r": 0}, "r is 0"),
        ({"r": 5000}, "less than or equal to 4096"),
        ({"r": "8"}, "r is '8'"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e+300"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"target_modules": []}, "target_modules is []"),
        ({"target_modules": None}, "target_modules is None"),
        ({"target_modules": "(("}, "no regular expression"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern is"),
        ({"rank_pattern": None}, "rank_pattern is None"),  # PEFT fails on it
        ({"use_something": True}, "use_something is no field of PEFT 0.21"),
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
    assert "lora_A of 8 x 128 and lora_B of 128 x 2: the ranks differ" in refusal(math_copy)


def test_a_config_of_another_training_is_refused(math_copy, edit_config):
    """PEFT would skip what the config does not select, and fail without a reason where sizes differ."""
    edit_config(math_copy, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"])
    with pytest.raises(Refused) as caught:
        read_expert("math", str(math_copy))
    assert [problem for problem, _ in caught.value.findings] == [
        f"model.layers.{i}.mlp.down_proj is none of the target_modules of adapter_config.json" for i in range(4)
    ]
    edit_config(math_copy, target_modules=".*_proj", rank_pattern={"layers.3.mlp.down_proj": 4})
    assert "layers.3.mlp.down_proj has rank 8, but adapter_config.json says 4" in refusal(math_copy)
    edit_config(math_copy, rank_pattern={"layers.3.mlp.down_proj": 8, "nothing": 2}, use_dora=False)  # the control
    assert read_expert("math", str(math_copy)).rank == 8


def test_an_option_that_the_tensors_do_not_show_is_refused(code_copy, edit_config):
    for option, part in (("use_dora", "magnitude_vector"), ("lora_bias", "B.bias")):
        edit_config(code_copy, **{"use_dora": False, "lora_bias": False, option: True})
        with pytest.raises(Refused) as caught:
            read_expert("code", str(code_copy))
        assert len(caught.value.findings) == 20
        assert f"has no {part}, but {option} is true" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 2.0**32])
def test_a_value_that_is_not_finite_or_absurd_is_refused_by_the_name_of_its_tensor(math_copy, value, dtype):
    part = "layers.2.mlp.up_proj.lora_A"
    change_tensors(math_copy, lambda tensors: set_value(tensors, part, -6e4, dtype))  # the control: large is finite
    read_expert("math", str(math_copy))
    change_tensors(math_copy, lambda tensors: set_value(tensors, part, value, dtype))
    assert f"{part}.weight holds NaN, infinity or a value beyond 4e+09" in refusal(math_copy)


def test_a_type_that_is_no_float_is_refused(math_copy):
    change_tensors(math_copy, lambda t: {n: v.to(torch.int8) if "layers.2.mlp.up_proj.lora_A" in n else v for n, v in t.items()})
    assert "has the type I8" in refusal(math_copy)


def test_an_adapter_that_changes_nothing_is_refused_unless_that_is_meant(math_copy):
    change_tensors(math_copy, lambda t: {n: -torch.zeros_like(v) if "lora_B" in n else v for n, v in t.items()})
    assert "changes nothing" in refusal(math_copy)
    assert read_expert("math", str(math_copy), allow_noop=True).rank == 8
    change_tensors(math_copy, lambda t: set_value(t, "lora_B", 1e-30))  # the control
    assert read_expert("math", str(math_copy)).rank == 8


@pytest.fixture
def with_saved(math_copy, edit_config):
    """with_saved(modules_to_save, lm_head=tensor, …): the math expert with such copies in its file; its folder."""

    def make(entries, **copies):
        change_tensors(math_copy, lambda t: t | {f"base_model.model.{name}": v.clone() for name, v in copies.items()})
        edit_config(math_copy, modules_to_save=entries)
        return math_copy

    return make


HEAD, NORM = torch.full((512, 128), 0.5), torch.ones(128)
NORMS = {f"model.layers.{i}.{name}_layernorm.weight": NORM for i in range(4) for name in ("input", "post_attention")}


@pytest.mark.parametrize(
    ("entries", "copies"),
    [
        (["lm_head"], {"lm_head.weight": HEAD}),
        (["embed_tokens", "model.norm"], {"model.embed_tokens.weight": HEAD.half(), "model.norm.weight": NORM}),
        (["norm"], NORMS | {"model.norm.weight": NORM}),
    ],
)
def test_copies_of_embeddings_head_and_norms_are_taken(with_saved, entries, copies):
    plain = read_expert("math", str(with_saved(None)))
    found = read_expert("math", str(with_saved(entries, **copies)))
    assert plain.saved == {}
    assert plain.is_plain
    assert found.saved == {name: tuple(tensor.shape) for name, tensor in copies.items()}
    assert not found.is_plain
    assert found.modules == plain.modules
    assert found.parameters == plain.parameters + sum(tensor.numel() for tensor in copies.values())
    resolve_base([found], None)


@pytest.mark.parametrize(
    ("entries", "copies", "named"),
    [
        (None, {"model.norm.weight": NORM}, "model.norm.weight is not a LoRA tensor, and none of modules_to_save"),
        (None, {"lm_head.weight": HEAD}, "lm_head.weight is a copy of a layer of the base"),
        (["lm_head"], {"lm_head.weight": HEAD, "model.embed_tokens.weight": HEAD}, "embed_tokens.weight is a copy of a layer of the base"),
        (["lm_head"], {"lm_head.weight": HEAD, "lm_head.original_module.weight": HEAD}, "lm_head.original_module.weight is a copy of a"),
        (["lm_head"], {"lm_head.weight": HEAD, "lm_head.scale": NORM}, "lm_head.scale is not a LoRA tensor"),
        (["lm_head", "score"], {"lm_head.weight": HEAD}, "modules_to_save names score, of which the file holds no copy"),
        (["lm_head"], {"lm_head.weight": HEAD / 0}, "lm_head.weight holds NaN, infinity or a value beyond"),
        (["lm_head"], {"lm_head.weight": HEAD.to(torch.int8)}, "lm_head.weight has the type I8"),
    ],
)
def test_copies_that_the_file_and_its_config_tell_differently_are_refused(with_saved, entries, copies, named):
    assert named in refusal(with_saved(entries, **copies))


@pytest.mark.parametrize(
    ("entries", "copies", "named"),
    [
        (["lm_head"], {"lm_head.weight": torch.ones(520, 128)}, r"lm_head.weight of 520 x 128, that of \S+ has 512 x 128; .*added tokens"),
        (["embed_tokens"], {"model.embed_tokens.weight": torch.ones(512, 64)}, r"tokens.weight of 512 x 64, that of \S+ has 512 x 128"),
        (["up_proj"], {"model.layers.0.mlp.up_proj.weight": torch.ones(384, 128)}, r"saves a whole up_proj .* has a LoRA on up_proj"),
        (["extra"], {"model.extra.weight": NORM}, r"model\.extra\.weight, which \S+ does not have"),
        (["lm_head"], {"lm_head.weight": HEAD, "lm_head.bias": torch.ones(512)}, r"lm_head\.bias, which \S+ does not have"),
        (["norm"], {"model.norm.weight": NORM}, r"names model\.layers\.0\.input_layernorm\.weight in modules_to_save, but"),
    ],
)  # fmt: skip
def test_copies_that_do_not_fit_the_base_are_refused(with_saved, entries, copies, named):
    found = read_expert("math", str(with_saved(entries, **copies)))
    with pytest.raises(InputError, match=named) as caught:
        resolve_base([found], None)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def test_a_copy_of_a_linear_layer_is_refused(code_copy, edit_config):
    """Whether it is named itself or with the block that it is a part of: quantised, it could not be replaced."""
    copies = {f"base_model.model.model.layers.{i}.self_attn.k_proj.weight": torch.ones(128, 128) for i in range(4)}
    change_tensors(code_copy, lambda tensors: tensors | copies)
    for entry in ("k_proj", "self_attn"):
        edit_config(code_copy, modules_to_save=[entry])
        with pytest.raises(InputError, match=r"k_proj\.weight, which is neither embeddings nor head nor norm.*train a LoRA on it instead"):
            resolve_base([read_expert("code", str(code_copy))], None)


def test_a_whole_module_of_one_expert_and_a_lora_of_another_on_it_are_refused(with_saved, code_copy, edit_config):
    """PEFT cannot put both on one base, in either order."""
    change_tensors(code_copy, lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 128)})
    change_tensors(code_copy, lambda t: t | {"base_model.model.lm_head.lora_B.weight": torch.ones(512, 4)})
    edit_config(code_copy, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"])
    plain = read_expert("math", str(with_saved(None)))
    code = read_expert("code", str(code_copy))
    resolve_base([code, plain], None)  # the control
    saving = read_expert("math", str(with_saved(["lm_head"], **{"lm_head.weight": HEAD})))
    for experts in ([code, saving], [saving, code]):
        with pytest.raises(
            InputError, match=r"math\.lora saves a whole lm_head of its own and \S+code\.lora has a LoRA on lm_head: PEFT cannot"
        ):
            resolve_base(experts, None)


def test_a_saved_module_is_a_change_where_every_lora_b_is_zero(with_saved):
    zero = with_saved(None)
    change_tensors(zero, lambda t: {n: torch.zeros_like(v) if "lora_B" in n else v for n, v in t.items()})
    assert "changes nothing" in refusal(zero)  # the control
    assert read_expert("math", str(with_saved(["lm_head"], **{"lm_head.weight": HEAD}))).rank == 8


def test_saved_modules_without_a_lora_are_refused(with_saved):
    folder = with_saved(["lm_head"], **{"lm_head.weight": HEAD})
    change_tensors(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if ".lora_" not in name})
    assert "holds saved modules, but no LoRA" in refusal(folder)


def header_of(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def damaged(path, how):
    header, data = header_of(path)
    names = [n for n in header if n != "__metadata__"]
    if how == "overlapping":
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    elif how == "gap":
        begin, end = header[names[-1]]["data_offsets"]
        header[names[-1]]["data_offsets"] = [begin + 4, end + 4]
    elif how == "wrong shape":
        header[names[0]]["shape"] = [3, 3]
    elif how == "not an object":
        header = [header]
    elif how == "bare tensor":
        header[names[0]] = 7
    text = json.dumps(header).encode()
    if how == "no json":
        text = b"{" * len(text)
    size = {"endless header": 1 << 60, "header beyond the file": len(text) + len(data) + 1000}.get(how, len(text))
    content = size.to_bytes(8, "little") + text + data
    return {"truncated": content[:-100], "empty": b"", "five bytes": content[:5]}.get(how, content)


@pytest.mark.parametrize(
    "how",
    ["truncated", "empty", "five bytes", "overlapping", "gap", "wrong shape", "not an object", "bare tensor", "no json", "endless header",
     "header beyond the file"],
)  # fmt: skip
def test_a_damaged_file_is_refused(math_copy, how):
    path = math_copy / WEIGHTS
    path.write_bytes(damaged(path, ""))
    read_expert("math", str(math_copy))  # the control: written again without damage it is taken
    path.write_bytes(damaged(path, how))
    assert "not a readable safetensors file" in refusal(math_copy)


def test_everything_that_is_wrong_is_said_at_once(math_copy, code_copy, edit_config, run_cli):
    edit_config(math_copy, bias="all")
    change_tensors(
        math_copy,
        lambda t: set_value({n: v for n, v in t.items() if "layers.0.mlp.up_proj.lora_B" not in n}, "1.mlp.up_proj", float("nan")),
    )
    (code_copy / "adapter_config.json").write_text("{")
    done = run_cli("--experts", "adapters/math.lora", "adapters/code.lora")
    assert done.returncode == 2
    code, heading, *findings = done.stderr.splitlines()
    assert code.startswith("gopd-merge: adapters/code.lora: adapter_config.json: not valid JSON")
    assert heading == "gopd-merge: adapters/math.lora: 3 problems"
    assert [line.split("  ")[1] for line in findings] == [
        "adapter_config.json: bias is 'all'",
        "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight holds NaN, infinity or a value beyond 4e+09",
        "model.layers.0.mlp.up_proj has no lora_B",
    ]
    assert len({line.rindex("  ") for line in findings}) == 1  # the remedies stand in one column


def test_a_field_of_a_newer_peft_is_a_warning(math_copy, edit_config):
    edit_config(math_copy, use_something=True, peft_version="0.99.0")
    (warning,) = read_expert("math", str(math_copy)).warnings
    assert "use_something is a field of PEFT 0.99.0" in warning
    edit_config(math_copy, use_something=None, peft_version="0.21.2")
    assert read_expert("math", str(math_copy)).warnings == ()


def test_a_class_that_the_config_names_is_never_imported(math_copy, edit_config, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    edit_config(math_copy, auto_mapping={"base_model_class": "Evil", "parent_library": "evil"})
    read_expert("math", str(math_copy))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_a_link_that_leaves_the_folder_is_refused(math_copy, adapters, name):
    (math_copy / name).unlink()
    (math_copy / name).symlink_to(adapters / "math.lora" / name)
    assert f"{name} is a link that leaves the folder" in refusal(math_copy)


def test_the_links_of_a_hub_cache_are_followed(adapters, tmp_path):
    snapshot, blobs = tmp_path / "models--you--math" / "snapshots" / "abc", tmp_path / "models--you--math" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("adapter_config.json", WEIGHTS):
        (blobs / name).write_bytes((adapters / "math.lora" / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert read_expert("math", str(snapshot)).rank == 8


def test_a_pickle_beside_the_tensors_is_passed_over_with_a_warning(math_copy):
    (math_copy / "adapter_model.bin").write_bytes(b"anything")
    (warning,) = read_expert("math", str(math_copy)).warnings
    assert "only safetensors is read" in warning


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


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_a_link_to_itself_is_refused(math_copy, name):
    (math_copy / name).unlink()
    (math_copy / name).symlink_to(name)
    assert name in refusal(math_copy)
