"""Whatever PEFT runs correctly is a teacher with exactly PEFT's logits, beside experts of another kind, and merges."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from gopd_merge import MergeConfig, merge
from gopd_merge.artefacts import verify_adapter
from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone, expert
from gopd_merge.errors import InputError
from gopd_merge.experts.intake import read_experts

KINDS = {
    "rslora": {"r": 8, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterned": {
        "r": 2, "target_modules": "model.layers.[01].*(q|down)_proj", "rank_pattern": {"layers.1.*q_proj": 6},
        "alpha_pattern": {"down_proj": 9},
    },
    "some_layers": {"r": 2, "target_modules": ["k_proj", "gate_proj"], "layers_to_transform": [1, 3]},
    "excluding": {"r": 2, "target_modules": ["k_proj", "gate_proj"], "exclude_modules": ["model.layers.0.self_attn.k_proj"]},
    "everything": {"r": 1, "target_modules": "all-linear"},
    "dora": {"r": 4, "target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "biased": {"r": 4, "target_modules": ["o_proj"], "lora_bias": True},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "head": {"r": 4, "target_modules": ["lm_head", "q_proj"]},
}  # fmt: skip
SAVED = {
    "saved_head": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved_embeddings": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved_final_norm": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["model.norm"]},
    "saved_norms": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm"], "use_rslora": True},  # all whose name ends so
    "saved_all": {"r": 4, "target_modules": ["up_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"], "use_dora": True},
}
KINDS |= SAVED


def tokens():
    ids = torch.randint(4, 500, (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding
    return ids, mask


def plain_logits(model, ids, mask):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[mask.bool()]


@pytest.mark.parametrize(("kind", "quantize"), [*((kind, "none") for kind in KINDS), *((kind, "nf4") for kind in SAVED)])
def test_as_a_teacher_it_gives_the_logits_of_plain_peft(make_expert, load_model, adapters, kind, quantize):
    path, _ = make_expert(kind, **KINDS[kind])
    ids, mask = tokens()
    model, _ = load_model(quantize)
    bare = plain_logits(model, ids, mask)
    expected = plain_logits(PeftModel.from_pretrained(model, path).eval(), ids, mask)
    experts = read_experts({kind: path, "math": str(adapters / "math.lora")})
    backbone = Backbone(*load_model(quantize), experts)
    backbone.add_student(4, sorted({t for e in experts for t in e.targets}), seed=0)
    for roles in (expert(kind), [expert(kind), REFERENCE, expert("math")]):  # alone, and in a batch of all roles
        with torch.no_grad():
            hidden = backbone.hidden(roles, ids, mask)
            found = backbone.logits(hidden[mask.bool()], expert(kind))
        own = mask.bool().sum() if isinstance(roles, str) else mask[0].sum()
        torch.testing.assert_close(found[:own], expected[:own], rtol=1e-5, atol=1e-5)
        assert (found[:own] - bare[:own]).abs().max() > 1e-2  # it is not simply the base
    assert torch.equal(plain_logits(backbone.peft, ids, mask), bare) or backbone.head_is_shared is False


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("kind", SAVED)
def test_what_an_expert_saved_is_on_in_its_own_role_alone(make_expert, load_model, adapters, kind, quantize, tmp_path):
    path, _ = make_expert(kind, **SAVED[kind])
    ids, mask = tokens()
    everywhere = mask.bool()
    bare = plain_logits(load_model(quantize)[0], ids, mask)
    plain = {
        REFERENCE: bare,
        STUDENT: bare,  # its adapter is fresh
        expert("math"): plain_logits(PeftModel.from_pretrained(load_model(quantize)[0], adapters / "math.lora").eval(), ids, mask),
        expert(kind): plain_logits(PeftModel.from_pretrained(load_model(quantize)[0], path).eval(), ids, mask),
    }
    backbone = Backbone(*load_model(quantize), read_experts({kind: path, "math": str(adapters / "math.lora")}))
    backbone.add_student(4, ["q_proj", "v_proj"], seed=0)
    assert backbone.head_is_shared == ("lm_head" not in SAVED[kind]["modules_to_save"])

    def check(role):
        with torch.no_grad():
            assert torch.equal(backbone.logits(backbone.hidden(role, ids, mask), role)[everywhere], plain[role]), role
            with backbone.role(role) as model:  # what answers are sampled from
                assert torch.equal(plain_logits(model, ids, mask), plain[role]), role

    for role in (*plain, *reversed(plain)):
        check(role)
    mixed = [expert("math"), REFERENCE, expert(kind)]
    hidden = backbone.hidden(mixed, ids, mask)
    starts = [0, *mask.sum(1).cumsum(0).tolist()]
    for row, role in enumerate(mixed):
        with torch.no_grad():
            found = backbone.logits(hidden[row][everywhere[row]], role)
        torch.testing.assert_close(found, plain[role][starts[row] : starts[row + 1]], rtol=1e-5, atol=1e-4)
    assert all(p.requires_grad == (f".{STUDENT}." in name) for name, p in backbone.peft.named_parameters())

    backbone.save_student(tmp_path / "student", "base", None)
    assert all(".lora_" in name for name in load_file(tmp_path / "student" / "adapter_model.safetensors"))
    verify_adapter(backbone, tmp_path / "student", ["1 + 1?"])
    backbone.remove(expert(kind))
    assert not any(f".{expert(kind)}." in name for name, _ in backbone.peft.named_parameters())
    for role in (REFERENCE, STUDENT, expert("math")):
        check(role)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_experts_that_save_different_modules_each_have_their_own(make_expert, load_model, quantize):
    """In either order: PEFT puts the second's copies beside the first's, or around modules that the first left alone."""
    paths = {kind: make_expert(kind, **SAVED[kind])[0] for kind in ("saved_all", "saved_embeddings", "saved_head", "saved_norms")}
    ids, mask = tokens()
    plain = {k: plain_logits(PeftModel.from_pretrained(load_model(quantize)[0], path).eval(), ids, mask) for k, path in paths.items()}
    for order in (list(paths), list(reversed(paths))):
        experts = {e.domain: e for e in read_experts(paths)}
        backbone = Backbone(*load_model(quantize), [experts[kind] for kind in order])
        backbone.add_student(4, ["q_proj"], seed=0)
        with torch.no_grad():
            for kind in paths:
                found = backbone.logits(backbone.hidden(expert(kind), ids, mask), expert(kind))
                assert torch.equal(found[mask.bool()], plain[kind])
            reference = backbone.logits(backbone.hidden(REFERENCE, ids, mask), REFERENCE)
        assert torch.equal(reference[mask.bool()], plain_logits(load_model(quantize)[0], ids, mask))


@pytest.mark.parametrize("config", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_embeddings_that_peft_ties_are_taken_as_the_refusal_says(make_expert, load_model, adapters, edit_config, tmp_path, config):
    """With the flag PEFT is right alone; beside another adapter it is not, and says nothing."""
    config = {"r": 4, "target_modules": ["q_proj"]} | config
    path, _ = make_expert("tied", **config, ensure_weight_tying=True)
    ids, mask = tokens()
    expected = plain_logits(PeftModel.from_pretrained(load_model()[0], path).eval(), ids, mask)
    with pytest.raises(InputError, match=r"ensure_weight_tying is set.*set it to false and name the head too"):
        read_experts({"tied": path})
    names = "modules_to_save" if "modules_to_save" in config else "target_modules"
    edit_config(tmp_path / "tied.lora", **{"ensure_weight_tying": False, names: [*config[names], "lm_head"]})
    backbone = Backbone(*load_model(), read_experts({"tied": path, "math": str(adapters / "math.lora")}))
    with torch.no_grad():
        found = backbone.logits(backbone.hidden(expert("tied"), ids, mask), expert("tied"))
    torch.testing.assert_close(found[mask.bool()], expected, rtol=1e-5, atol=1e-3)


def test_peft_overwrites_the_base_where_it_ties_beside_another_adapter(make_expert, load_model):
    """Why ensure_weight_tying is refused. When a newer PEFT makes this fail, the refusal can go."""
    first, _ = make_expert("first", **SAVED["saved_embeddings"])
    second, _ = make_expert("second", **SAVED["saved_embeddings"], ensure_weight_tying=True)
    model = PeftModel.from_pretrained(load_model()[0], first, adapter_name="first")
    model.load_adapter(second, adapter_name="second")
    ids, mask = tokens()
    with model.eval().disable_adapter():
        assert not torch.equal(plain_logits(model, ids, mask), plain_logits(load_model()[0], ids, mask))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_merges_with_another_expert(make_expert, adapters, tmp_path, kind):
    path, _ = make_expert(kind, **KINDS[kind])
    config = MergeConfig(
        experts={kind: path, "math": str(adapters / "math.lora")}, prompts={kind: str(adapters / "code.lora" / "prompts" / "train.jsonl")},
        output=tmp_path / "out.lora", steps=1, batch_size=4, max_new_tokens=8, eval=False,
    )  # fmt: skip
    assert (merge(config).output / "merge.json").is_file()


@pytest.mark.slow
def test_eight_experts_merge(make_expert, adapters, tmp_path):
    ranks = {f"expert{rank}": rank for rank in range(1, 9)}
    paths = {name: make_expert(name, r=rank, target_modules=["q_proj", "v_proj"])[0] for name, rank in ranks.items()}
    prompts = dict.fromkeys(paths, str(adapters / "code.lora" / "prompts" / "train.jsonl"))
    config = MergeConfig(experts=paths, prompts=prompts, output=tmp_path / "out.lora", steps=1, batch_size=16, max_new_tokens=8, eval=False)
    result = merge(config)
    assert len(result.document["results"]) == 0
    assert (result.output / "merge.json").is_file()


def test_tensors_that_peft_would_pass_over_are_refused(load_model, adapters, edit_config, math_copy):
    """The config says layers 0 and 1, the file holds all four: PEFT would load half of the expert without a word."""
    edit_config(math_copy, layers_to_transform=[0, 1])
    experts = read_experts({"math": str(math_copy)})
    with pytest.raises(InputError, match=r"28 tensor.s. do not fit .*layers\.2\..* has no place on the base"):
        Backbone(*load_model(), experts)
    edit_config(math_copy, layers_to_transform=None)  # the control
    Backbone(*load_model(), read_experts({"math": str(math_copy)}))


def test_tensors_that_peft_would_leave_at_random_are_refused(load_model, math_copy):
    from safetensors.torch import load_file, save_file

    path = math_copy / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "layers.3." not in n}, path)
    with pytest.raises(InputError, match=r"14 tensor.s. do not fit .*layers\.3\..* is missing from the file"):
        Backbone(*load_model(), read_experts({"math": str(math_copy)}))


def test_an_adapter_that_peft_cannot_load_is_refused_in_one_line(load_model, math_copy, edit_config):
    edit_config(math_copy, layers_to_transform=[99])
    with pytest.raises(InputError, match="PEFT cannot load it") as caught:
        Backbone(*load_model(), read_experts({"math": str(math_copy)}))
    assert "\n" not in str(caught.value)


def test_a_copy_of_the_bases_embeddings_in_the_file_is_refused_with_the_way_out(load_model, adapters, tmp_path):
    """PEFT writes them by default where embeddings or head are adapted, and would load them over the base that all roles share."""
    model = get_peft_model(load_model()[0], LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = str(adapters / "tiny-base")
    model.save_pretrained(tmp_path / "head.lora")
    with pytest.raises(InputError, match=r"lm_head.*is a copy of a layer of the base.*save_embedding_layers=False"):
        read_experts({"head": str(tmp_path / "head.lora")})
