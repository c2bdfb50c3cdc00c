"""The target is sampled as it is defined: against probabilities in float64 out of models that were loaded apart."""

from collections import Counter

import pytest
import torch
from peft import PeftModel
from scipy.stats import chisquare

from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.distill.mixture import expert_and_base, generate_mixture
from gopd_merge.distill.rollout import CHAT, Format, answers, encode, generate
from gopd_merge.errors import GopdError, InputError
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import read_experts

PLAIN = Format(chat=False)
BEGINNING = "<|user|>Is it 7 or 9?<|end|><|assistant|>5"  # from here base and expert go on in many ways, and in different ones


@pytest.fixture(scope="module")
def apart(adapters, load_model):
    """apart(): the base and the math expert in float64, each loaded alone by PEFT and Transformers."""
    base = load_model()[0].double().eval()
    math = PeftModel.from_pretrained(load_model()[0], adapters / "math.lora").double().eval()
    return {"teacher": math, "reference": base}


@torch.no_grad()
def target_by_hand(apart, ids: list[int], alpha: float) -> torch.Tensor:
    """(V,) probabilities of the token after `ids`: π_T^λ · π_0^(1−λ), normalised, in float64."""
    log_p = {name: model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1) for name, model in apart.items()}
    q = (alpha * log_p["teacher"] + (1 - alpha) * log_p["reference"]).exp()
    return q / q.sum()


def chance(apart, prompt: list[int], pairs: Counter, alpha: float) -> float:
    """p of a chi-square test that the sampled pairs of tokens come from the target; rare ones are taken together."""
    first = target_by_hand(apart, prompt, alpha)
    total = sum(pairs.values())
    expected = {}
    for a in (first * total >= 5).nonzero().flatten().tolist():
        second = target_by_hand(apart, [*prompt, a], alpha)
        expected |= {(a, b): float(first[a] * second[b]) * total for b in (first[a] * second * total >= 5).nonzero().flatten().tolist()}
    observed = [pairs[pair] for pair in expected]
    rest = total - sum(expected.values())
    assert len(expected) >= 10
    return chisquare([*observed, total - sum(observed)], [*expected.values(), rest]).pvalue


def beginnings(backbone, alpha: float, max_new_tokens: int, temperature: float = 1.0) -> torch.Tensor:
    """(2000, T) tokens that go on from BEGINNING."""
    roles, mix = expert_and_base("math", alpha)
    prompts, domains, every = [BEGINNING] * 250, ["math"] * 250, [range(start, start + 250) for start in range(0, 2000, 250)]
    parts = [generate_mixture(backbone, roles, mix, prompts, domains, max_new_tokens, seeds, temperature, PLAIN) for seeds in every]
    return torch.cat([part.ids[:, part.prompt_width :] for part in parts])


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_sampled_tokens_have_the_probabilities_of_the_target_by_hand(float_backbone, apart, alpha):
    prompt = float_backbone.tokenizer(BEGINNING)["input_ids"]
    pairs = Counter(map(tuple, beginnings(float_backbone, alpha, max_new_tokens=2).tolist()))
    assert chance(apart, prompt, pairs, alpha) > 1e-3
    for other in (alpha - 0.5, alpha + 0.5, 1.0):  # the test would notice
        assert chance(apart, prompt, pairs, other) < 1e-6


@pytest.mark.parametrize(("alpha", "role"), [(1.0, expert("math")), (0.0, REFERENCE)])
def test_lambda_1_draws_the_tokens_of_the_expert_and_0_those_of_the_base(float_backbone, questions, alpha, role):
    """Token by token from the same seeds, whether the other role runs along with weight 0 or not at all."""
    prompts, domains = (part * 4 for part in questions)
    asked = (prompts, domains, 60, range(len(prompts)))
    alone = generate(float_backbone, role, *asked)
    roles, mix = expert_and_base("math", alpha)
    assert roles == [role]
    short = generate_mixture(float_backbone, roles, mix, *asked)
    both = [expert("math"), REFERENCE]
    full = generate_mixture(float_backbone, both, lambda x: alpha * x[0] + (1 - alpha) * x[1], *asked)
    for found in (short, full):
        assert torch.equal(found.ids, alone.ids)
        assert torch.equal(found.attention_mask, alone.attention_mask)
        assert torch.equal(found.capped, alone.capped)
        assert found.domains == alone.domains
    other = generate_mixture(float_backbone, *expert_and_base("math", 20.0), *asked)
    assert not torch.equal(other.response_ids(), alone.response_ids())


def test_every_token_follows_the_mixture_of_all_roles_on_the_same_prefix(float_backbone, questions):
    """Greedily, with three roles: each token is the largest of the mixed logits that each role alone gives when it reads the whole."""
    roles, weights = [expert("math"), expert("code"), REFERENCE], [1.5, 1.2, -1.7]

    def mix(logits):
        return sum(w * x for w, x in zip(weights, logits, strict=True))

    rollout = generate_mixture(float_backbone, roles, mix, *questions, 40, range(4), temperature=0.0)
    read = [rollout.predicting(float_backbone.hidden(role, rollout.ids, rollout.attention_mask)) for role in roles]
    logits = torch.stack([float_backbone.logits(hidden, role) for hidden, role in zip(read, roles, strict=True)])
    assert torch.equal(mix(logits).argmax(-1), rollout.response_ids())
    assert all(not torch.equal(alone.argmax(-1), rollout.response_ids()) for alone in logits)


def test_temperature_divides_the_logits_of_the_target(float_backbone, apart):
    prompt = float_backbone.tokenizer(BEGINNING)["input_ids"]
    tokens = beginnings(float_backbone, 2.0, max_new_tokens=1, temperature=0.5)
    q = target_by_hand(apart, prompt, 2.0) ** 2
    token = int(q.argmax())
    share = float((tokens == token).double().mean())
    assert share == pytest.approx(float(q[token] / q.sum()), abs=0.03)
    assert abs(share - float(target_by_hand(apart, prompt, 2.0)[token])) > 0.06


def test_responses_end_and_are_cut_as_those_of_one_role(float_backbone, questions):
    roles, mix = expert_and_base("code", 1.0)
    for options in ({"stop": ["=", "return"]}, {"max_new_tokens": 3}):
        options = {"max_new_tokens": 60, "seeds": range(4), "temperature": 0.0} | options
        alone = generate(float_backbone, expert("code"), *questions, **options)
        mixed = generate_mixture(float_backbone, roles, mix, *questions, **options)
        stop = options.get("stop", ())
        assert answers(float_backbone, mixed, stop) == answers(float_backbone, alone, stop)
        assert alone.capped.all() == (options["max_new_tokens"] == 3)


def test_the_bases_own_generation_settings_do_not_touch_the_target(float_backbone, biased_backbone, questions):
    found = []
    for backbone in (float_backbone, biased_backbone):
        stored = backbone.peft.get_base_model().generation_config
        asked = (questions[0] * 10, questions[1] * 10, 30, range(40))
        found.append(generate_mixture(backbone, *expert_and_base("math", 1.5), *asked).ids)
        assert backbone.peft.get_base_model().generation_config is stored
    assert torch.equal(*found)


def test_a_base_of_less_precision_projects_in_float32(adapters):
    """The logits that are mixed are those of the training's target, not rounded to the base's precision."""
    location = str(adapters / "tiny-base")
    model, tokenizer = load_base(Base(location, location), "none", "cpu")
    backbone = Backbone(model.bfloat16(), tokenizer, read_experts({"math": str(adapters / "math.lora")}))
    backbone.peft.to(torch.bfloat16)
    seen = []

    def mix(logits):
        seen.append(logits)
        return logits[0]

    generate_mixture(backbone, [expert("math"), REFERENCE], mix, ["Add 3 and 4."], ["math"], 1, [0])
    ids, mask = encode(backbone, ["Add 3 and 4."], CHAT)
    hidden = backbone.hidden([expert("math"), REFERENCE], ids.repeat(2, 1), mask.repeat(2, 1))[:, -1]
    exact = backbone.logits(hidden)
    torch.testing.assert_close(seen[0][:, 0], exact, rtol=0, atol=1e-5)
    assert (exact.bfloat16().float() - exact).abs().max() > 1e-3  # what the model's own head would have lost


def test_roles_that_cannot_share_a_batch_are_refused_in_a_line(adapters, load_model, make_expert):
    path, _ = make_expert("dora", r=4, target_modules=["q_proj"], use_dora=True)
    backbone = Backbone(*load_model(), read_experts({"dora": path}))
    assert not backbone.can_mix
    with pytest.raises(InputError, match=r"cannot run in one batch.*; choose α by gopd-merge sweep") as error:
        generate_mixture(backbone, *expert_and_base("dora", 1.5), ["Add."], ["dora"], 4, [0])
    assert len(error.value.lines) == 1


def test_a_target_that_is_no_distribution_is_an_error_in_a_line(float_backbone):
    with pytest.raises(GopdError, match=r"not finite.*; lower α"):
        generate_mixture(float_backbone, [REFERENCE], lambda logits: logits[0] * torch.inf, ["Add."], ["math"], 4, [0])
    with pytest.raises(GopdError, match="not finite"):
        generate_mixture(float_backbone, [REFERENCE], lambda logits: logits[0] * torch.nan, ["Add."], ["math"], 4, [0])
