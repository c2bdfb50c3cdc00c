"""The memory that is predicted without loading anything is the memory that the real thing takes, run without values or counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone, expert
from gopd_merge.distill.counted import Counted
from gopd_merge.distill.footprint import Footprint, LiveBytes
from gopd_merge.distill.fused import backward_in_chunks, normalise_
from gopd_merge.distill.objective import ESTIMATORS, HIDDEN, gradient_of
from gopd_merge.distill.sizes import Sizes
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.decoder import read_decoder
from gopd_merge.experts.intake import read_experts

SIZES = Sizes(batch_size=16, micro_batch_size=8, chunk_tokens=128, prompt_tokens=40, max_new_tokens=60)


@pytest.fixture(scope="module", params=["none", "nf4"])
def loaded(request, adapters):
    """The embedded default loaded, the bytes of its base, and what it was made of."""
    location = str(adapters / "tiny-base")
    experts = read_experts({d: str(adapters / f"{d}.lora") for d in ("math", "code")})
    targets = sorted({t for e in experts for t in e.targets})
    model, tokenizer = load_base(Base(location, location), request.param, "cpu")
    base_bytes = model.get_memory_footprint()
    backbone = Backbone(model, tokenizer, experts)
    backbone.add_student(8, targets, seed=0)
    return backbone, base_bytes, (location, experts, 8, targets, request.param, "cpu")


@pytest.fixture(scope="module", params=["run without values", "counted"])
def pair(request, loaded):
    """The same with the footprint, found in either way."""
    backbone, base_bytes, (location, *others) = loaded
    made = Counted(read_decoder(Path(location)), *others) if request.param == "counted" else Footprint(location, *others)
    return backbone, base_bytes, made


def allocated_at_most(run, folder):
    """The most bytes that PyTorch's allocator had given out during `run`, by its own profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    assert len(events) > 100
    return peak


def some_ids(rows):
    return torch.randint(4, 500, (rows, SIZES.prompt_tokens + SIZES.max_new_tokens), generator=torch.Generator().manual_seed(0))


def test_a_storage_counts_from_the_operation_that_makes_it_until_its_last_reference_goes():
    live = LiveBytes()
    with FakeTensorMode(), live:
        a = torch.empty(1000)  # 4,000 bytes
        b = a * 2  # 8,000
        view = b[:10]
        del a, b  # the view keeps its storage
        assert (live.now, live.peak) == (4000, 8000)
        del view
        assert (live.now, live.peak) == (0, 8000)


def test_base_and_adapters_take_what_the_loaded_ones_take(pair):
    backbone, base_bytes, footprint = pair
    assert footprint.base == pytest.approx(base_bytes, rel=0.02)
    for part, found in (("expert-", footprint.experts), (f".{STUDENT}.", footprint.student)):
        assert found == sum(p.nbytes for name, p in backbone.peft.named_parameters() if part in name)


def real_update(backbone, estimator):
    """An update of one micro-batch, without looking at values."""
    count = SIZES.micro_batch_size * SIZES.max_new_tokens
    for parameter in backbone.student_parameters():
        parameter.grad = None

    def update():
        target = torch.zeros(SIZES.batch_size * SIZES.max_new_tokens, backbone.hidden_size)
        with backbone.training():
            hidden = backbone.hidden(STUDENT, some_ids(SIZES.micro_batch_size)).flatten(0, 1)[torch.arange(count)]
            ids = torch.zeros(count, dtype=torch.long)
            log_q = lambda rows, _: normalise_(backbone.logits(target[:count][rows]))  # noqa: E731
            backward_in_chunks(hidden, ids, backbone.logits, log_q, gradient_of(estimator, 64), count, SIZES.chunk_tokens)

    return update


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != HIDDEN])
def test_an_update_takes_what_is_predicted(pair, tmp_path, estimator):
    backbone, _, footprint = pair
    assert footprint.update(SIZES, estimator) == pytest.approx(allocated_at_most(real_update(backbone, estimator), tmp_path), rel=0.05)


def test_activations_that_are_computed_again_take_what_is_predicted_and_less_than_kept_ones(pair, tmp_path):
    backbone, _, footprint = pair
    kept = allocated_at_most(real_update(backbone, "full"), tmp_path)
    backbone.recompute_activations()
    try:
        found = allocated_at_most(real_update(backbone, "full"), tmp_path)
    finally:
        backbone.recompute_activations(False)
    assert footprint.update(SIZES, "full", recompute=True) == pytest.approx(found, rel=0.05)
    assert found < 0.6 * kept


def score_pass(backbone, role):
    """What `target.score` does to a micro-batch, without looking at values."""
    rows = SIZES.micro_batch_size
    own = backbone.hidden([REFERENCE] * rows + [role] * rows, some_ids(2 * rows))
    kept = own.flatten(0, 1)[torch.arange(2 * rows * SIZES.max_new_tokens)]
    normalise_(backbone.logits(kept[: rows * 8], role))


ONE_MICRO_BATCH = replace(SIZES, batch_size=SIZES.micro_batch_size)


def test_the_pass_of_expert_and_reference_takes_what_is_predicted(pair, tmp_path):
    backbone, _, footprint = pair
    found = allocated_at_most(lambda: score_pass(backbone, expert("math")), tmp_path)
    assert footprint.score(ONE_MICRO_BATCH) == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_counted_is_what_a_step_takes_where_heads_of_queries_share_keys(adapters, tmp_path, kind):
    """There the code that is run without values makes a mask, and copies for every head, which a real step does without."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, head_dim=16, vocab_size=512, dtype="float32")
    config.save_pretrained(tmp_path)
    backbone = Backbone(AutoModelForCausalLM.from_config(config), None, [])
    backbone.add_student(8, ["q_proj", "v_proj", "down_proj"], seed=0)
    counted = Counted(read_decoder(tmp_path), [], 8, ["q_proj", "v_proj", "down_proj"], "none", "cpu")
    found = allocated_at_most(real_update(backbone, "full"), tmp_path)
    assert counted.update(SIZES, "full") == pytest.approx(found, rel=0.02)
    assert counted.update(replace(SIZES, micro_batch_size=6), "full") < 0.9 * found  # a control


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True, "target_modules": ["q_proj"]}, {"modules_to_save": ["lm_head", "norm"], "target_modules": ["q_proj"]}],
    ids=["dora", "own head"],
)
def test_so_does_one_that_cannot_share_a_pass_or_a_head(adapters, make_expert, load_model, tmp_path, config):
    experts = read_experts({"special": make_expert("special", r=4, **config)[0]})
    backbone = Backbone(*load_model("nf4"), experts)
    backbone.add_student(8, ["q_proj"], seed=0)
    footprint = Footprint(str(adapters / "tiny-base"), experts, 8, ["q_proj"], "nf4", "cpu")
    found = allocated_at_most(lambda: score_pass(backbone, expert("special")), tmp_path)
    assert footprint.score(ONE_MICRO_BATCH) == pytest.approx(found, rel=0.15)
    assert footprint.experts == sum(p.nbytes for name, p in backbone.peft.named_parameters() if "expert-" in name)


def test_each_size_takes_its_share(pair):
    """Controls: a prediction that ignored a size would still be near the truth at one point."""
    footprint = pair[2]
    full, twice = "full", {name: 2 * getattr(SIZES, name) for name in SIZES.__dataclass_fields__}
    small = footprint.update(SIZES, full)
    assert footprint.update(replace(SIZES, micro_batch_size=16), full) > 1.8 * small
    assert footprint.update(replace(SIZES, chunk_tokens=480), full) > small + 352 * 512 * 4
    assert footprint.rollout(replace(SIZES, batch_size=32)) == pytest.approx(2 * footprint.rollout(SIZES), rel=0.05)
    assert footprint.rollout(Sizes(**twice)) > 3 * footprint.rollout(SIZES)
