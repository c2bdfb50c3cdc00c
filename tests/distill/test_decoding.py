"""Every row draws from its own random numbers, whatever rows are beside it, and rows that have ended are not computed any further."""

import math
from contextlib import contextmanager

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM

from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone, expert
from gopd_merge.distill.decoding import ENDED, Draw, cache_of
from gopd_merge.distill.mixture import expert_and_base, generate_mixture
from gopd_merge.distill.rollout import answers, generate, row_seeds
from gopd_merge.errors import GopdError

SEEDS = row_seeds("run", "step", 1, count=24)


@pytest.fixture(scope="module")
def asked(questions):
    """24 prompts of very different lengths, and their domains."""
    prompts, domains = questions
    return [f"{'Please. ' * (row % 5)}{prompt}" for row, prompt in enumerate(prompts * 6)], domains * 6


def responses(rollout):
    """The tokens of each response."""
    return [row[mask].tolist() for row, mask in zip(rollout.ids[:, rollout.prompt_width :], rollout.response_mask, strict=True)]


def picked(asked, seeds, rows):
    return [asked[0][row] for row in rows], [asked[1][row] for row in rows], 60, [seeds[row] for row in rows]


@contextmanager
def passes(backbone):
    """(rows, tokens) of every pass of the model inside the block."""
    seen = []
    handle = backbone._decoder.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output[0].shape[:2])))
    yield seen
    handle.remove()


def test_an_answer_does_not_depend_on_the_rows_beside_it(float_backbone, asked):
    everybody = range(24)
    whole = responses(generate(float_backbone, STUDENT, *picked(asked, SEEDS, everybody)))
    mixed = [7 * row % 24 for row in everybody]
    permuted = responses(generate(float_backbone, STUDENT, *picked(asked, SEEDS, mixed)))
    assert permuted == [whole[row] for row in mixed]
    split = [responses(generate(float_backbone, STUDENT, *picked(asked, SEEDS, range(a, b)))) for a, b in ((0, 1), (1, 9), (9, 24))]
    assert [row for part in split for row in part] == whole
    assert len({tuple(row) for row in whole}) > 18  # the control: they are not all alike


def test_equal_seeds_give_equal_answers_whatever_torchs_own_generator_holds(float_backbone, asked):
    rows, state = range(8), torch.get_rng_state()
    first = generate(float_backbone, STUDENT, *picked(asked, SEEDS, rows))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(generate(float_backbone, STUDENT, *picked(asked, SEEDS, rows)).ids, first.ids)


def test_every_seed_step_and_row_draws_anew(float_backbone):
    batches = [row_seeds(seed, "step", step, count=64) for seed in (0, 1) for step in (0, 1, 2)]
    assert len({seed for batch in batches for seed in batch}) == 6 * 64
    assert all(0 <= seed < 2**31 for batch in batches for seed in batch)
    assert row_seeds(0, "step", 1, count=3) == batches[1][:3]  # a longer batch begins as a shorter one
    prompt = ["Tom has 5 pens. Tom loses 2. How many pens are left?"] * 8
    found = [responses(generate(float_backbone, STUDENT, prompt, ["math"] * 8, 60, batch[:8])) for batch in batches]
    assert len({str(rows) for rows in found}) == 6
    assert all(len({tuple(row) for row in rows}) > 4 for rows in found)


def test_a_temperature_of_zero_takes_the_likeliest_token_and_no_random_number(float_backbone, asked):
    prompts, domains, limit, _ = picked(asked, SEEDS, range(4))
    one, other = (generate(float_backbone, STUDENT, prompts, domains, limit, seeds, temperature=0.0) for seeds in (range(4), range(4, 8)))
    assert torch.equal(one.ids, other.ids)


def test_logits_that_are_not_finite_are_an_error_in_a_line():
    draw = Draw([0, 1], 1.0, torch.device("cpu"), "lower --learning-rate")
    with pytest.raises(GopdError, match=r"logits are not finite.*; lower --learning-rate"):
        draw(torch.zeros(2, 1), torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    draw(torch.zeros(2, 1), torch.tensor([[0.0, 1.0], [-torch.inf, 0.0]]))  # a token that is ruled out is no error


def in_one_call(monkeypatch, sample):
    """What `sample` gives if no row is ever dropped."""
    with monkeypatch.context() as patch:
        for module in ("rollout", "mixture"):
            patch.setattr(f"gopd_merge.distill.{module}.cache_of", lambda model: None)
        return sample()


@pytest.mark.parametrize("stop", [[], ["=", "return"]])
def test_dropping_what_has_ended_changes_no_answer_and_saves_most_of_its_rows(float_backbone, asked, monkeypatch, stop):
    """At no token more rows are computed than those that go on and fewer than an eighth that do not."""

    def sample():
        return generate(float_backbone, STUDENT, *picked(asked, SEEDS, range(24)), stop=stop)

    with passes(float_backbone) as seen:
        dropped = sample()
    with passes(float_backbone) as all_rows:
        whole = in_one_call(monkeypatch, sample)
    assert torch.equal(dropped.ids, whole.ids)
    assert torch.equal(dropped.response_mask, whole.response_mask)
    assert torch.equal(dropped.capped, whole.capped)
    assert answers(float_backbone, dropped, stop) == answers(float_backbone, whole, stop)
    longest = whole.response_mask.shape[1]
    assert all_rows == [(24, whole.prompt_width), *[(24, 1)] * (longest - 1)]
    assert [tokens for _, tokens in seen] == [tokens for _, tokens in all_rows]  # as many passes, none of more than the new token
    for (rows, _), going in zip(seen[1:], whole.response_mask.sum(0).tolist()[1:], strict=True):
        assert going <= rows
        assert rows - going < math.ceil(ENDED * rows)
    assert sum(rows for rows, _ in seen) < 0.8 * sum(rows for rows, _ in all_rows)


def test_so_does_a_mixture_of_roles(float_backbone, asked, monkeypatch):
    roles, mix = expert_and_base("math", 1.5)

    def sample():
        return generate_mixture(float_backbone, roles, mix, *picked(asked, SEEDS, range(12)))

    with passes(float_backbone) as seen:
        dropped = sample()
    with passes(float_backbone) as all_rows:
        whole = in_one_call(monkeypatch, sample)
    assert torch.equal(dropped.ids, whole.ids)
    assert torch.equal(dropped.response_mask, whole.response_mask)
    assert {rows for rows, _ in all_rows} == {24}
    assert sum(rows for rows, _ in seen) < 0.8 * sum(rows for rows, _ in all_rows)
    split = [generate_mixture(float_backbone, roles, mix, *picked(asked, SEEDS, part)) for part in (range(5), range(5, 12))]
    assert [row for part in split for row in responses(part)] == responses(whole)


SMALL = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
SLIDING = {"head_dim": 16, "num_hidden_layers": 3, "sliding_window": 12, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
HYBRID = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
MODELS = {
    "full": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=2, initializer_range=0.3)),
    "sliding": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, **SLIDING, initializer_range=0.3)),
    "recurrent": lambda: Lfm2ForCausalLM(Lfm2Config(**SMALL, **HYBRID, initializer_range=0.3)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_other_attention_gives_the_same_answers_too_and_states_that_cannot_be_cut_stay_whole(load_model, asked, monkeypatch, kind):
    """Windows shorter than prompt and answer; a model with recurrent states answers in one call."""
    torch.manual_seed(1)
    backbone = Backbone(MODELS[kind]().eval(), load_model()[1], [])
    ends = backbone.model.generation_config
    ends.eos_token_id = list(range(40))  # random weights end by chance

    def sample():
        return generate(backbone, REFERENCE, *picked(asked, SEEDS, range(12)))

    with passes(backbone) as seen:
        dropped = sample()
    whole = in_one_call(monkeypatch, sample)
    assert responses(dropped) == responses(whole)
    lengths = dropped.response_mask.sum(1)
    assert lengths.max() > lengths.min() + 12
    assert (cache_of(backbone.model) is None) == (kind == "recurrent")
    assert ({rows for rows, _ in seen} == {12}) == (kind == "recurrent")


def test_an_expert_and_the_student_draw_with_the_same_numbers(float_backbone, asked):
    """What pairs the answers of two models: where they agree on a distribution they say the same."""
    rows = picked(asked, SEEDS, range(12))
    student, other = (responses(generate(float_backbone, role, *rows)) for role in (STUDENT, expert("math")))
    same = sum(a[:3] == b[:3] for a, b in zip(student, other, strict=True))
    apart = responses(generate(float_backbone, expert("math"), *rows[:3], row_seeds("other", count=12)))
    assert same > sum(a[:3] == b[:3] for a, b in zip(student, apart, strict=True))
