"""A plain decoder's memory, counted from its sizes, is what its real code takes when it runs on tensors without values."""

import json
from functools import partial

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from gopd_merge.distill.counted import Counted, is_countable
from gopd_merge.distill.footprint import Footprint
from gopd_merge.distill.ledger import Ledger, go_back
from gopd_merge.distill.sizes import Sizes
from gopd_merge.experts.decoder import PLAIN, read_decoder
from gopd_merge.experts.intake import read_experts

SIZES = Sizes(batch_size=10, micro_batch_size=5, chunk_tokens=96, prompt_tokens=30, max_new_tokens=50)
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 160, "num_attention_heads": 8, "num_key_value_heads": 2}
OTHERS = {  # what a kind may have that the others have not
    "llama": {"attention_bias": True, "mlp_bias": True, "dtype": "float32"},
    "mistral": {"sliding_window": None, "head_dim": 16, "dtype": "bfloat16"},
    "qwen2": {"tie_word_embeddings": True, "dtype": "bfloat16"},
    "qwen3": {"head_dim": 16, "dtype": "float16"},
}
HELD = {"llama": ("nf4", "cpu"), "mistral": ("none", "cuda"), "qwen2": ("nf4", "cuda"), "qwen3": ("none", "cpu")}
TARGETS = {"math": (6, ["q_proj", "k_proj", "up_proj", "down_proj"]), "code": (4, ["q_proj", "o_proj"])}
STUDENT = ["down_proj", "k_proj", "o_proj", "q_proj", "up_proj"]  # v_proj and gate_proj have no adapter


@pytest.fixture(scope="module", params=PLAIN)
def both(request, tmp_path_factory):
    """A small model of each kind with two experts: as it is run without values, and as it is counted."""
    kind, base = request.param, tmp_path_factory.mktemp(request.param)
    config = AutoConfig.for_model(kind, **SHAPE | OTHERS[kind], vocab_size=320)
    config.save_pretrained(base)
    for domain, (rank, targets) in TARGETS.items():
        lora = LoraConfig(r=rank, target_modules=targets, init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(base / domain)
    experts = read_experts({domain: str(base / domain) for domain in TARGETS})
    decoder = read_decoder(base)
    assert is_countable(decoder, experts, STUDENT)
    options = (experts, 8, STUDENT, *HELD[kind])
    return Footprint(str(base), *options), Counted(decoder, *options)


def test_what_is_always_there_is_the_same_to_the_byte(both):
    run, counted = both
    for name in ("parameters", "weights", "base", "layers", "experts", "student"):
        assert getattr(counted, name) == getattr(run, name), name


def test_so_is_what_the_answers_take(both):
    run, counted = both
    assert counted.rollout(SIZES) == pytest.approx(run.rollout(SIZES), rel=0.005)
    assert counted.mixture(SIZES) == pytest.approx(run.mixture(SIZES), rel=0.005)


@pytest.mark.parametrize("phase", ["score", "score apart", "update", "update apart", "update recomputed", "update hidden"])
def test_scoring_and_an_update_take_a_little_less(both, phase):
    """A run without values makes masks that a real step does not; tests/distill/test_footprint.py compares with real steps."""
    name, _, how = phase.partition(" ")
    given = ["hidden" if how == "hidden" else "full"] if name == "update" else []
    options = {"apart": how == "apart"} | ({"recompute": how == "recomputed"} if name == "update" else {})
    run, counted = (getattr(one, name)(SIZES, *given, **options) for one in both)
    assert 0.8 * run < counted < 1.03 * run  # of a layer that runs again the last sum is not made: 1-2 % less


def test_a_smaller_head_or_fewer_rows_take_less(both):
    """Controls: a count that left out a size would still be near the truth at one point."""
    counted = both[1]
    for name in ("micro_batch_size", "prompt_tokens", "max_new_tokens"):
        smaller = Sizes(**SIZES.__dict__ | {name: getattr(SIZES, name) // 2})
        assert counted.update(smaller, "full") < 0.9 * counted.update(SIZES, "full"), name


def test_gradients_that_meet_are_summed_and_what_was_kept_goes():
    ledger = Ledger()

    def back(kept, gradient):
        return [ledger.new(100)]

    leaf = ledger.recorded(ledger.new(100), [], None)
    uses = [ledger.recorded(ledger.new(100), [leaf], partial(back, ledger.new(500).storage)) for _ in range(2)]
    both = ledger.recorded(ledger.new(100), uses, lambda gradient: gradient * 2)
    del uses
    assert ledger.now == 1200  # the leaf, what the two steps keep, and their sum; what they made is gone
    found = go_back(ledger, both.step, [ledger.new(100)])
    assert [array.size for array in found] == [100]  # one gradient, of both ways
    del both
    assert ledger.now == 200
    assert ledger.peak == 1400  # before what the two made was gone


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"modules_to_save": ["norm"]},
        {"target_modules": ".*q_proj"},
        {"rank_pattern": {"q_proj": 3}},
        {"lora_bias": True},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_is_no_plain_lora_or_has_patterns_is_run_instead(adapters, make_expert, config):
    path, _ = make_expert("odd", **{"r": 4, "target_modules": ["q_proj"], **config})
    plain, _ = make_expert("plain", r=4, target_modules=["q_proj"])
    decoder = read_decoder(adapters / "tiny-base")
    assert not is_countable(decoder, read_experts({"odd": path}), ["q_proj"])
    assert is_countable(decoder, read_experts({"plain": plain}), ["q_proj"])
    assert not is_countable(decoder, read_experts({"plain": plain}), ["q_proj", "lm_head"])


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gemma2"},
        {"hidden_act": "gelu"},
        {"num_key_value_heads": None},
        {"num_key_value_heads": 3},
        {"vocab_size": 0},
        {"dtype": "float8_e4m3fn"},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"model_type": "mistral", "sliding_window": 4096},
        {"model_type": "qwen2", "use_sliding_window": True},
        {"model_type": "qwen3", "head_dim": None},
    ],
    ids=str,
)
def test_a_model_that_is_not_plain_or_hides_a_size_has_no_shape_here(adapters, tmp_path, changes):
    config = json.loads((adapters / "tiny-base" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_decoder(tmp_path) is not None
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    assert read_decoder(tmp_path) is None
