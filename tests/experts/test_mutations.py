"""Thousands of damaged adapters: each is refused in a line or taken, in time, and what is taken is what PEFT makes of it."""

import copy
import json
import shutil
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.errors import InputError
from gopd_merge.experts.intake import read_expert

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SETTINGS = settings(max_examples=3500, deadline=2000, suppress_health_check=list(HealthCheck), derandomize=True, database=None)

FIELDS = [
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "lora_bias", "use_rslora", "use_dora",
    "init_lora_weights", "modules_to_save", "peft_version", "auto_mapping", "task_type", "layer_replication", "loftq_config", "surprise",
]  # fmt: skip
MODULES = ["q_proj", "k_proj", "up_proj", "model.layers.1.mlp.down_proj", "layers.2.*", "(", "lm_head", "embed_tokens", ".*", ""]
numbers = st.one_of(st.integers(-2, 9), st.integers(), st.floats(), st.sampled_from([4, 8, 16]))
words = st.one_of(st.sampled_from([*MODULES, "LORA", "none", "all", "gaussian", "pissa", "0.99.0"]), st.text(max_size=8))
values = st.one_of(
    st.none(), st.booleans(), numbers, words, st.lists(st.one_of(words, numbers), max_size=3), st.dictionaries(words, numbers, max_size=3)
)
config_changes = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=3)
tensor_changes = st.lists(
    st.tuples(
        st.sampled_from(["drop", "rename", "copy", "transpose", "cut", "flat", "half", "int", "zero", "nan"]),
        st.integers(0, 39),
        st.sampled_from(MODULES),
    ),
    min_size=1,
    max_size=3,
)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = st.one_of(
    st.lists(st.sampled_from([*LINEAR, "layers.1.mlp.up_proj"]), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([*LINEAR, "lm_head", "embed_tokens"]), min_size=1, max_size=3, unique=True),
    st.sampled_from(["all-linear", r".*\.(q|v)_proj", r"model\.layers\.[0-2]\..*(?:mlp|attn).*_proj", ".*layers.3.*down_proj"]),
)
PATTERNS = st.sampled_from(["q_proj", "layers.1.*", r".*\.mlp\..*", "(k|v|up)_proj", "model.layers.0.self_attn.q_proj", "absent"])
adapters_of_peft = st.fixed_dictionaries(
    {
        "r": st.integers(1, 9),
        "lora_alpha": st.sampled_from([1, 3, 7.5, 16]),
        "target_modules": TARGETS,
        "use_rslora": st.booleans(),
        "rank_pattern": st.dictionaries(PATTERNS, st.integers(1, 9), max_size=2),
        "alpha_pattern": st.dictionaries(PATTERNS, st.sampled_from([1, 2.5, 20]), max_size=2),
    },
    optional={
        "use_dora": st.booleans(),
        "lora_bias": st.booleans(),  # PEFT refuses some that are both, or on embeddings
        "layers_to_transform": st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)),
        "exclude_modules": st.sampled_from(["q_proj", ["o_proj"], r".*layers\.2.*", ["model.layers.0.mlp.up_proj"]]),
    },
)
small_changes = st.one_of(
    st.none(),
    st.none(),
    st.sampled_from([
        {"lora_alpha": 5}, {"use_rslora": True}, {"peft_version": "0.99.0", "surprise": 1}, {"lora_dropout": 0.5}, {"target_modules": ".*"},
        {"exclude_modules": ["up_proj"]}, {"alpha_pattern": {".*": 9}}, {"init_lora_weights": "gaussian"}, {"inference_mode": False},
    ]),
    st.tuples(st.sampled_from(["half", "zero", "drop", "transpose"]), st.integers(0, 39), st.just("")).map(lambda change: [change]),
    tensor_changes.map(lambda changes: changes[:1]),
    config_changes.map(lambda changes: dict(list(changes.items())[:1])),
)  # fmt: skip
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
byte_changes = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def original(adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutations")
    (folder / "adapters").mkdir()
    (folder / "adapters" / "tiny-base").symlink_to(adapters / "tiny-base")
    return folder, adapters / "code.lora"


def fresh(original):
    folder, source = original
    target = folder / "adapters" / "code.lora"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(source / name, target / name)
    return target


def taken(folder):
    """The expert, or None where it is refused as it should be; anything else fails the test."""
    try:
        return read_expert("code", str(folder))
    except InputError as error:
        message = str(error)
    assert str(folder) in message
    assert all(line.isprintable() for line in message.splitlines())
    return None


def change_config(folder, changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CHANGES = {
    "drop": lambda name, tensor, module: {},
    "rename": lambda name, tensor, module: {name.replace(name.split(".")[-3], module or "x"): tensor},
    "copy": lambda name, tensor, module: {name: tensor, name.replace(".lora_", ".lora_embedding_"): tensor.clone()},
    "transpose": lambda name, tensor, module: {name: tensor.permute(*reversed(range(tensor.ndim))).contiguous()},
    "cut": lambda name, tensor, module: {name: tensor[:-1].contiguous()},
    "flat": lambda name, tensor, module: {name: tensor.reshape(-1).contiguous()},
    "half": lambda name, tensor, module: {name: tensor.half()},
    "int": lambda name, tensor, module: {name: tensor.nan_to_num().to(torch.int32)},
    "zero": lambda name, tensor, module: {name: torch.zeros_like(tensor)},
    "nan": lambda name, tensor, module: {name: torch.full_like(tensor, float("nan"), dtype=torch.float32)},
}


def change_tensors(folder, changes):
    tensors = load_file(folder / WEIGHTS)
    for kind, index, module in changes:
        name = sorted(tensors)[index % len(tensors)]
        tensors |= CHANGES[kind](name, tensors.pop(name), module)
    save_file(tensors, folder / WEIGHTS)


def change_bytes(path, changes):
    content = bytearray(path.read_bytes())
    for position, new in changes:
        at = position % len(content)
        content[at : at + len(new)] = new
    path.write_bytes(content)


@SETTINGS
@given(changes=config_changes)
def test_any_settings_are_refused_or_taken(original, changes):
    folder = fresh(original)
    change_config(folder, changes)
    taken(folder)


@SETTINGS
@given(changes=tensor_changes)
def test_any_tensors_are_refused_or_taken(original, changes):
    folder = fresh(original)
    change_tensors(folder, changes)
    taken(folder)


@SETTINGS
@given(name=st.sampled_from([CONFIG, WEIGHTS]), changes=byte_changes)
def test_any_bytes_are_refused_or_taken(original, name, changes):
    folder = fresh(original)
    change_bytes(folder / name, changes)
    taken(folder)


@pytest.mark.slow
@settings(SETTINGS, max_examples=500, deadline=None)
@given(changes=st.one_of(config_changes.map(lambda c: ("config", c)), tensor_changes.map(lambda t: ("tensors", t))))
def test_what_is_taken_gives_the_logits_of_plain_peft(original, load_model, changes):
    kind, what = changes
    folder = fresh(original)
    (change_config if kind == "config" else change_tensors)(folder, what)
    found = taken(folder)
    if found is None:
        return
    ids = torch.randint(4, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    try:
        backbone = Backbone(*load_model(), [found])
    except InputError:
        return
    backbone.add_student(2, ["q_proj"], seed=0)
    with torch.no_grad():
        ours = backbone.logits(backbone.hidden(expert("code"), ids, torch.ones_like(ids)), expert("code"))
        plain = PeftModel.from_pretrained(load_model()[0], folder).eval()(input_ids=ids).logits
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def save_with_peft(folder, model, config, dtype):
    """An adapter of PEFT's own with random values, on a copy of the model. Raises ValueError where PEFT refuses the settings."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config))
    peft.peft_config["default"].base_model_name_or_path = "adapters/tiny-base"
    peft.save_pretrained(folder, save_embedding_layers=False)
    save_file({name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def outcome(folder, model, tokenizer, ids):
    """Compares expert and base, as rows of one batch, with plain PEFT and the bare model. Returns what became of the adapter."""
    found = taken(folder)
    if found is None:
        return "refused"
    try:
        backbone = Backbone(copy.deepcopy(model), tokenizer, [found])
    except InputError:
        return "refused with the base"
    backbone.add_student(2, ["q_proj"], seed=0)
    with torch.no_grad():
        hidden = backbone.hidden([expert("code"), REFERENCE], ids, torch.ones_like(ids))
        ours = [backbone.logits(hidden[row], role) for row, role in enumerate((expert("code"), REFERENCE))]
        bare = model(input_ids=ids[1:]).logits[0]
        plain = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()(input_ids=ids[:1]).logits[0]
    torch.testing.assert_close(ours[0], plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1], bare, rtol=1e-5, atol=1e-5)
    return "equal, unlike the base" if (plain - model(input_ids=ids[:1]).logits[0]).abs().max() > 1e-3 else "equal"


@pytest.mark.slow
def test_what_peft_saves_is_taken_with_its_logits_and_so_is_what_is_left_of_it_after_a_change(original, load_model):
    folder = fresh(original)
    model, tokenizer = load_model()
    ids = torch.randint(4, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    counts = Counter()

    @settings(SETTINGS, max_examples=800, deadline=None)
    @given(config=adapters_of_peft, dtype=DTYPES, change=small_changes)
    def compare(config, dtype, change):
        if isinstance(config["target_modules"], str):
            config.pop("layers_to_transform", None)  # PEFT takes it with a list alone
        try:
            save_with_peft(folder, model, config, dtype)
        except (ValueError, TypeError):
            counts["refused by PEFT"] += 1
            return
        if change is not None:
            (change_config if isinstance(change, dict) else change_tensors)(folder, change)
        became = outcome(folder, model, tokenizer, ids)
        counts["changed" if change else "as saved", became] += 1
        if not change and not became.startswith("equal"):
            # Where two rank patterns fit a module, the first counts, and PEFT saves them in order of the alphabet.
            with pytest.raises(RuntimeError, match="size mismatch"):
                PeftModel.from_pretrained(copy.deepcopy(model), folder)

    compare()
    print(dict(counts))
    assert counts["as saved", "equal, unlike the base"] > 200
    assert counts["changed", "equal, unlike the base"] > 50
    assert counts["changed", "refused"] + counts["changed", "refused with the base"] > 50
    assert counts["as saved", "equal"] < 10
