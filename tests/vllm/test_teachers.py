"""An expert behind a real vLLM server: its scores are those of the same expert here, and a merge learns from it.

The expert is served as a whole model. As an adapter of a served base it cannot teach with this build of vLLM for CPUs, which ends with an
error at the log-probs of a prompt that an adapter reads.
"""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone, expert
from gopd_merge.distill.remote import RemoteTeacher
from gopd_merge.distill.rollout import generate, tokenize, written
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import read_experts

TOP_K = 64
PROMPTS = ["Tom has 5 pens. Tom loses 2. How many pens are left?", "Ana has 12 books. Ana gives 3 to Ben. How many books does Ana have?"]


@pytest.fixture(scope="module")
def expert_url(adapters, serve, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expert") / "math"
    model = AutoModelForCausalLM.from_pretrained(adapters / "tiny-base", dtype=torch.float32)
    PeftModel.from_pretrained(model, adapters / "math.lora").merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(adapters / "tiny-base").save_pretrained(folder)
    return serve(folder, "--served-model-name", "math", "--max-logprobs", TOP_K)


@pytest.fixture(scope="module")
def backbone(adapters):
    location = str(adapters / "tiny-base")
    experts = read_experts({"math": str(adapters / "math.lora")})
    backbone = Backbone(*load_base(Base(location, location), "none", "cpu"), experts)
    backbone.add_student(8, experts[0].targets, seed=0)
    return backbone


@pytest.fixture
def teacher(expert_url, backbone):
    teacher = RemoteTeacher(f"{expert_url}#math", backbone.tokenizer, backbone.vocabulary, k=TOP_K, patience=30.0)
    yield teacher
    teacher.close()


@torch.no_grad()
def log_probs_here(backbone, rollout, role):
    """(N, V)"""
    return backbone.logits(rollout.predicting(backbone.hidden(role, rollout.ids, rollout.attention_mask)), role).log_softmax(-1)


def test_its_scores_are_those_of_the_expert_here(teacher, backbone):
    teacher.check(150)
    assert teacher.k == TOP_K
    rollout = generate(backbone, STUDENT, PROMPTS, ["math"] * 2, 40, [1, 2])
    sequences = [ids[mask.bool()].tolist() for ids, mask in zip(rollout.ids, rollout.attention_mask, strict=True)]
    starts = [len(ids) - int(mask.sum()) for ids, mask in zip(sequences, rollout.response_mask, strict=True)]
    scores = teacher.score(sequences, starts)
    here = log_probs_here(backbone, rollout, expert("math"))
    sampled = here.gather(1, rollout.response_ids().unsqueeze(1)).squeeze(1)
    assert float((scores.log_probs - sampled).abs().max()) < 5e-3
    assert float((scores.log_probs - sampled).abs().mean()) < 2e-4
    assert float((scores.top_log_probs - here.gather(1, scores.top_ids)).abs().mean()) < 1e-3
    base = log_probs_here(backbone, rollout, REFERENCE).gather(1, rollout.response_ids().unsqueeze(1)).squeeze(1)
    assert float((scores.log_probs - base).abs().mean()) > 0.02  # the control: the base without the expert


def test_what_it_writes_is_the_experts(teacher, backbone):
    teacher.check_answers(150)
    count = 16
    said = teacher.answer(tokenize(backbone.tokenizer, PROMPTS * count)["input_ids"], 64, list(range(2 * count)))
    assert sum(one.ended for one in said) > count
    rollout = written(backbone, PROMPTS * count, [one.text for one in said], ["math"] * 2 * count, 64, [one.ended for one in said])
    likelihood = {
        role: float(log_probs_here(backbone, rollout, role).gather(1, rollout.response_ids().unsqueeze(1)).mean())
        for role in (REFERENCE, expert("math"))
    }
    assert likelihood[expert("math")] > likelihood[REFERENCE]


def test_a_merge_learns_from_it_what_it_learns_from_the_expert_here(expert_url, run_cli, adapters, tmp_path):
    rows = {}
    for name, where in (("there", f"{expert_url}#math"), ("here", adapters / "math.lora")):
        experts = ["--experts", f"math={where}", adapters / "code.lora", "--base", adapters / "tiny-base"]
        options = ["--prompts", f"math={adapters / 'math.lora/prompts/train.jsonl'}", "--estimator", "topk", "--top-k", TOP_K]
        options += ["--quantize", "none", "--steps", 1, "--warmup-steps", 0, "--batch-size", 8, "--max-new-tokens", 32, "--no-eval"]
        done = run_cli(*experts, *options, "--lora-rank", 8, "--output", f"{name}.lora")
        assert done.returncode == 0, done.stderr
        rows[name] = json.loads((tmp_path / f"{name}.lora" / "metrics.jsonl").read_text())
    assert rows["there"]["kl_to_target"] == pytest.approx(rows["here"]["kl_to_target"], rel=0.1)
    for quantity in ("reward", "drift", "response_length"):
        assert rows["there"]["domains"]["math"][quantity] == pytest.approx(rows["here"]["domains"]["math"][quantity], rel=1e-3, abs=1e-3)
