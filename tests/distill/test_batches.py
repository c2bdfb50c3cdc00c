"""Rows of like length share a micro-batch, and neither that nor their padding changes a step."""

import pytest
import torch

from gopd_merge.distill.backbone import REFERENCE, STUDENT, expert
from gopd_merge.distill.batches import micro_batches
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.rollout import Rollout, generate
from gopd_merge.distill.target import Scale

PROMPTS = (3, 9, 4, 7, 2, 5)  # tokens
RESPONSES = (8, 1, 5, 3, 2, 9)
SCALE = Scale({"math": 2.0, "code": 1.5})


@pytest.fixture(scope="module")
def ragged():
    """Six rows of known lengths and distinct tokens."""
    width, longest = max(PROMPTS), max(RESPONSES)
    ids = torch.arange(6 * (width + longest)).reshape(6, -1) % 500 + 4
    prompt_mask = torch.arange(width) >= width - torch.tensor(PROMPTS).unsqueeze(1)
    response_mask = torch.arange(longest) < torch.tensor(RESPONSES).unsqueeze(1)
    mask = torch.cat([prompt_mask, response_mask], 1)
    return Rollout(ids * mask, mask.long(), response_mask, torch.zeros(6, dtype=torch.bool), ("math", "code") * 3)


def test_rows_of_like_length_come_together_the_longest_ones_first(ragged):
    parts = list(micro_batches(ragged, 2))
    assert [sorted(part.rows.tolist()) for part in parts] == [[0, 5], [1, 3], [2, 4]]  # 11 and 14 tokens; 10 and 10; 9 and 4
    assert [part.ids.shape[1] for part in parts] == [14, 10, 9]  # no wider than its own longest row
    assert [part.domains for part in parts] == [("math", "code"), ("code", "code"), ("math", "math")]


@pytest.mark.parametrize("size", [1, 2, 4, 6, 100])
def test_every_response_token_is_there_once_beside_what_predicts_it(ragged, size):
    """Hidden states that name the token which made them: each response token's is that of the token before it."""
    tokens, ids, before = [], [], []
    for part in micro_batches(ragged, size):
        tokens.append(part.tokens)
        ids.append(part.response_ids())
        before.append(part.predicting(part.ids.unsqueeze(-1).float()).squeeze(-1))
        assert (part.tokens.diff() > 0).all()
    order = torch.cat(tokens).argsort()
    assert torch.equal(torch.cat(tokens)[order], torch.arange(ragged.num_tokens))
    assert torch.equal(torch.cat(ids)[order], ragged.response_ids())
    assert torch.equal(torch.cat(before)[order], ragged.predicting(ragged.ids.unsqueeze(-1).float()).squeeze(-1))


def test_their_number_depends_on_the_number_of_rows_alone(ragged):
    assert len(list(micro_batches(ragged, 4))) == 2
    chosen = list(micro_batches(ragged, 2, range(1, 4)))
    assert [part.rows.tolist() for part in chosen] == [[1, 3], [2]]
    assert list(micro_batches(ragged, 2, range(2, 2))) == []


@pytest.mark.parametrize("role", [STUDENT, REFERENCE, expert("math")])
def test_a_rows_hidden_states_are_those_of_the_padded_rollout(backbone, ragged, role):
    with torch.no_grad():
        expected = ragged.predicting(backbone.hidden(role, ragged.ids, ragged.attention_mask))
        apart = []
        for part in micro_batches(ragged, 4):
            hidden = backbone.hidden(role, part.ids)
            torch.testing.assert_close(part.predicting(hidden), expected[part.tokens], rtol=1e-4, atol=1e-4)
            apart.append((hidden[part.token_row, part.token_column + 1] - expected[part.tokens]).abs().max())
    assert max(apart) > 0.1  # the control: one column further stands something else


def test_a_step_does_not_depend_on_which_rows_share_a_micro_batch(float_backbone, questions, take_step):
    """Rows in the opposite order: other neighbours, other micro-batches, the same tokens."""
    rollout = generate(float_backbone, STUDENT, *questions, 40, range(4))
    cast = plain_cast(float_backbone, ["math", "code"])
    turned = torch.arange(len(rollout.domains) - 1, -1, -1)
    other = Rollout(
        rollout.ids[turned], rollout.attention_mask[turned], rollout.response_mask[turned], rollout.capped[turned], rollout.domains[::-1]
    )
    statistics, gradient, target = take_step(cast, rollout, SCALE, micro_batch_size=3)
    other_statistics, other_gradient, other_target = take_step(cast, other, SCALE, micro_batch_size=2)
    assert (gradient - other_gradient).norm() < 1e-4 * gradient.norm()
    lengths = rollout.response_mask.sum(1).tolist()
    for name in ("kl", "entropy", "log_prob"):
        rows = torch.split(getattr(statistics, name), lengths)
        torch.testing.assert_close(torch.cat(rows[::-1]), getattr(other_statistics, name), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        torch.cat(torch.split(target.mixed["base"], lengths)[::-1]), other_target.mixed["base"], rtol=1e-4, atol=1e-4
    )
    swapped = Rollout(other.ids, other.attention_mask, other.response_mask, other.capped, rollout.domains)  # the control
    assert (take_step(cast, swapped, SCALE)[1] - gradient).norm() > 0.05 * gradient.norm()
