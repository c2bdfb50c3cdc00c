"""The student samples from its own full distribution, and every column of a rollout speaks of the same token."""

import pytest
import torch
from scipy.stats import chisquare

from gopd_merge.distill.backbone import REFERENCE, STUDENT
from gopd_merge.distill.rollout import answers, encode, generate


def test_the_response_ends_with_its_first_end_token_and_padding_is_masked(float_backbone, questions):
    rollout = generate(float_backbone, STUDENT, *questions, 60, range(4))
    end, pad = float_backbone.tokenizer.eos_token_id, float_backbone.tokenizer.pad_token_id
    response = rollout.ids[:, rollout.prompt_width :]
    assert rollout.response_mask.any(1).all()
    for row, mask, is_capped in zip(response.tolist(), rollout.response_mask.tolist(), rollout.capped.tolist(), strict=True):
        kept = [token for token, keep in zip(row, mask, strict=True) if keep]
        assert row[: len(kept)] == kept
        assert end not in kept[:-1]
        assert is_capped == (kept[-1] != end)
        assert set(row[len(kept) :]) <= {pad}


def test_a_short_limit_is_reported_as_capped(float_backbone, questions):
    rollout = generate(float_backbone, REFERENCE, *questions, 3, range(4))
    assert rollout.capped.all()
    assert answers(float_backbone, rollout).lengths == (3, 3, 3, 3)


def test_the_hidden_states_that_predict_a_response_are_one_column_to_its_left(float_backbone, questions):
    """Greedy decoding is the argmax of what `predicting` picks, at every token; any other column would break that."""
    rollout = generate(float_backbone, STUDENT, *questions, 40, range(4), temperature=0.0)
    hidden = rollout.predicting(float_backbone.hidden(STUDENT, rollout.ids, rollout.attention_mask))
    assert torch.equal(float_backbone.logits(hidden).argmax(-1), rollout.response_ids())


def test_slices_of_a_rollout_hold_the_same_tokens(float_backbone, questions):
    rollout = generate(float_backbone, STUDENT, *questions, 40, range(4))
    parts = [rollout.rows(start, start + 3) for start in (0, 3)]
    assert torch.equal(torch.cat([part.response_ids() for part in parts]), rollout.response_ids())
    assert sum(part.num_tokens for part in parts) == rollout.num_tokens


def test_the_bases_own_generation_settings_do_not_touch_the_distribution(float_backbone, biased_backbone, questions):
    found = []
    for backbone in (float_backbone, biased_backbone):
        found.append(generate(backbone, REFERENCE, questions[0] * 20, questions[1] * 20, 30, range(80)).ids)
    assert torch.equal(*found)
    with biased_backbone.role(REFERENCE) as model:  # the control: those settings do cut, where they are let
        torch.manual_seed(0)
        ids, mask = encode(biased_backbone, questions[0] * 20)
        cut = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=30)
    assert cut.shape != found[0].shape or not torch.equal(cut, found[0])


@pytest.mark.parametrize(("temperature", "right"), [(1.0, True), (0.8, False)])
def test_sampled_tokens_have_the_models_probabilities(float_backbone, temperature, right):
    """2,000 second tokens of one prompt: a chi-square test against the softmax that the target is computed from.

    The control: what was drawn at another temperature does not pass.
    """
    prompt = "Tom has 5 pens. Tom then has twice as many. Tom lends 3 to Ana. How many pens are left?"
    prefix_ids, _ = encode(float_backbone, [prompt])
    worked = torch.tensor([float_backbone.tokenizer("5 ", add_special_tokens=False)["input_ids"][:1]])
    ids, mask = torch.cat([prefix_ids, worked], 1), torch.ones(1, prefix_ids.shape[1] + 1, dtype=torch.long)
    p = float_backbone.logits(float_backbone.hidden(REFERENCE, ids, mask)[:, -1])[0]
    p = (p / (temperature if right else 1.0)).softmax(-1)
    rollout = generate(float_backbone, REFERENCE, [prompt] * 2000, ["math"] * 2000, 2, range(2000), temperature)
    second = rollout.ids[rollout.ids[:, rollout.prompt_width] == worked[0, 0], -1]
    assert len(second) > 1800
    likely = (p * len(second) >= 5).nonzero().squeeze(1)
    observed = torch.tensor([int((second == token).sum()) for token in likely] + [int((~torch.isin(second, likely)).sum())]).double()
    expected = torch.cat([p[likely].double(), (1 - p[likely].double().sum()).reshape(1)]) * len(second)
    keep = expected >= 1
    assert len(likely) >= 2
    chance = chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue
    assert chance > 1e-3 if right else chance < 1e-6


def test_a_response_ends_in_its_first_stop_text_and_the_text_ends_before_it(float_backbone, questions):
    whole = answers(float_backbone, generate(float_backbone, STUDENT, *questions, 60, range(4), temperature=0.0))
    rollout = generate(float_backbone, STUDENT, *questions, 60, range(4), temperature=0.0, stop=["=", "return"])
    cut = answers(float_backbone, rollout, ["=", "return"])
    assert all("=" in text or "return" in text for text in whole.texts)
    for full, text, length, capped in zip(whole.texts, cut.texts, cut.lengths, cut.capped, strict=True):
        first = min(position for position in (full.find("="), full.find("return")) if position >= 0)
        assert text == full[:first]
        tokens = len(float_backbone.tokenizer(full[: first + 1], add_special_tokens=False)["input_ids"])
        assert abs(length - tokens) <= 3  # the token that completes the stop text is the last; tokens may straddle its beginning
        assert not capped
    assert sum(cut.lengths) < sum(whole.lengths)


def test_without_its_stop_text_a_response_is_what_it_was(float_backbone, questions):
    whole = generate(float_backbone, STUDENT, *questions, 30, range(4), temperature=0.0)
    same = generate(float_backbone, STUDENT, *questions, 30, range(4), temperature=0.0, stop=["no model writes this"])
    assert torch.equal(whole.response_mask, same.response_mask)
    assert answers(float_backbone, whole) == answers(float_backbone, same, ["no model writes this"])


def test_a_stop_text_that_begins_in_the_prompt_ends_no_response(float_backbone, questions):
    """Of "?<|assistant|>" the response never holds the beginning."""
    whole = generate(float_backbone, STUDENT, *questions, 30, range(4), temperature=0.0)
    tails = [float_backbone.tokenizer.decode(row[whole.prompt_width - 1 : whole.prompt_width + 1]) for row in whole.ids.tolist()]
    assert all(tail.startswith("<|assistant|>") for tail in tails)
    same = generate(float_backbone, STUDENT, *questions, 30, range(4), temperature=0.0, stop=tails)
    assert torch.equal(whole.ids, same.ids)
    assert torch.equal(whole.response_mask, same.response_mask)
