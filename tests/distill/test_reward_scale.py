"""λ by token, by step and by what the run shows, against independent calculations and hand-made series."""

import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from gopd_merge.distill.objective import target_log_probs
from gopd_merge.distill.reward_scale import Controller, bounded_log_ratio, guarded_alpha, schedule, token_alpha
from gopd_merge.errors import InputError

N, V = 7, 11


def log_probs(seed, scale=2.0):
    """(N, V) normalised, float64, as numpy and torch see them."""
    values = log_softmax(scale * np.random.default_rng(seed).normal(size=(N, V)), axis=1)
    return values, torch.from_numpy(values)


# by token


def test_the_bounded_log_ratio_is_the_ratio_cut_off_on_both_sides():
    (teacher, log_teacher), (ref, log_ref) = log_probs(0), log_probs(1)
    found = bounded_log_ratio(log_teacher, log_ref, 1.5).numpy()
    expected = np.array([[max(-1.5, min(1.5, teacher[n, v] - ref[n, v])) for v in range(V)] for n in range(N)])
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    assert (found == 1.5).any()
    assert (found == -1.5).any()
    assert np.abs(teacher - ref).max() > 1.5  # the control: without the bound they would differ


def test_a_bound_beyond_every_ratio_leaves_the_target_as_it_is():
    (_, log_teacher), (_, log_ref) = log_probs(0), log_probs(1)
    plain = target_log_probs(log_ref, [log_teacher], [log_ref], [2.0])

    def bounded(bound):
        return (log_ref + 2.0 * bounded_log_ratio(log_teacher, log_ref, bound)).log_softmax(-1)

    torch.testing.assert_close(bounded(100.0), plain, rtol=1e-13, atol=1e-13)
    assert (bounded(1.0) - plain).abs().max() > 0.5


def test_the_guard_puts_lambda_at_one_exactly_where_the_teacher_is_certain():
    rows = np.array([[0.98, 0.01, 0.01], [0.995, 0.003, 0.002], [0.4, 0.3, 0.3], [0.003, 0.002, 0.995]])
    found = guarded_alpha(torch.tensor([2.0, 2.0, 1.5, 1.5], dtype=torch.float64), torch.from_numpy(np.log(rows)), 0.99)
    assert found.tolist() == [2.0, 1.0, 1.5, 1.0]
    lenient = guarded_alpha(torch.tensor([2.0] * 4, dtype=torch.float64), torch.from_numpy(np.log(rows)), 0.999)
    assert lenient.tolist() == [2.0] * 4


def test_the_guard_never_raises_a_lambda():
    """λ = 0 is the control experiment: it must stay at the base also where the teacher is certain."""
    certain = torch.tensor([[0.998, 0.001, 0.001]], dtype=torch.float64).log().expand(2, 3)
    assert guarded_alpha(torch.tensor([0.0, 0.5]), certain, 0.99).tolist() == [0.0, 0.5]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.25, 3.0])
def test_token_alpha_follows_the_total_variation_distance(alpha):
    (teacher, log_teacher), (ref, log_ref) = log_probs(0), log_probs(1)
    found = token_alpha(torch.full((N,), alpha, dtype=torch.float64), log_teacher, log_ref).numpy()
    more = np.exp(teacher) > np.exp(ref)  # another form of the distance: the largest difference in probability of any set of tokens
    distance = [(np.exp(teacher[n]) - np.exp(ref[n]))[more[n]].sum() for n in range(N)]
    np.testing.assert_allclose(found, 1 + (alpha - 1) * np.array(distance), rtol=1e-13)
    assert np.ptp(distance) > 0.1  # the control: one λ for all tokens would not do


def test_token_alpha_is_one_where_nothing_was_learnt_and_lambda_where_everything_was():
    same = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    assert token_alpha(torch.tensor([3.0]), same, same).tolist() == [1.0]
    opposite = torch.tensor([[200.0, 0.0], [0.0, 200.0]], dtype=torch.float64).log_softmax(-1)
    found = token_alpha(torch.tensor([3.0], dtype=torch.float64), opposite[:1], opposite[1:])
    torch.testing.assert_close(found, torch.tensor([3.0], dtype=torch.float64))


# by step


def test_the_schedule_is_a_straight_line_through_both_ends():
    found = [schedule(1.0, 2.0, step, 5) for step in range(5)]
    np.testing.assert_allclose(found, np.linspace(1.0, 2.0, 5))
    assert schedule(2.0, 1.0, 4, 5) == 1.0
    assert schedule(1.5, 3.0, 0, 1) == 1.5  # one step: its start


# by what the run shows

CALM = {"entropy": 1.0, "response_length": 40.0, "capped": 0.0, "kl_to_target": 0.01, "reward": 0.02}


def series(steps, **changes):
    """Rows of a domain: calm, with a little wobble, and from the sixth step on with `changes`."""
    for step in range(steps):
        row = CALM | (changes if step >= 5 else {})
        yield row | {"reward": None if row["reward"] is None else row["reward"] + 0.001 * (-1) ** step}


def run(controller, rows, domain="math"):
    return [controller.update({domain: row})[domain] for row in rows]


def test_lambda_rises_by_a_small_step_after_every_calm_window_up_to_the_highest():
    found = run(Controller({"math": 1.25}, highest=1.5), series(20))
    np.testing.assert_allclose(found, [1.25] * 4 + [1.35] * 5 + [1.45] * 5 + [1.5] * 6)


@pytest.mark.parametrize(
    "trouble",
    [
        {"entropy": 0.49},
        {"response_length": 61.0},
        {"capped": 0.1},
        {"reward": -0.05},
    ],
    ids=lambda trouble: next(iter(trouble)),
)
def test_lambda_is_lowered_by(trouble):
    found = run(Controller({"math": 2.0}, highest=3.0), series(10, **trouble))
    np.testing.assert_allclose([found[4], found[9]], [2.1, 1.55])


@pytest.mark.parametrize(
    "wobble",
    [{"entropy": 0.51}, {"response_length": 59.0}, {"capped": 0.09}, {"reward": 0.0195}],
    ids=lambda wobble: next(iter(wobble)),
)
def test_lambda_is_not_lowered_by_a_smaller_change_of(wobble):
    """The control of the test above."""
    found = run(Controller({"math": 2.0}, highest=3.0), series(10, **wobble))
    np.testing.assert_allclose([found[4], found[9]], [2.1, 2.2])


def test_trouble_without_end_takes_lambda_to_the_lowest_and_not_below():
    found = run(Controller({"math": 2.0}, highest=3.0), series(100, entropy=0.1))
    assert 1.0 <= found[-1] < 1.001
    assert found[5:] == sorted(found[5:], reverse=True)


def test_the_lower_reward_that_a_lower_lambda_brings_is_no_new_trouble():
    """A calm window, one of trouble, one of less reward. Without the trouble before, less reward is a reason to lower λ."""
    calm, less = [*series(5)], [*series(10, reward=-0.1)][5:]
    after_trouble = run(Controller({"math": 2.0}, highest=3.0), [*calm, *[*series(10, entropy=0.4)][5:], *less])
    assert after_trouble[-1] == pytest.approx(after_trouble[9] + 0.1)
    after_calm = run(Controller({"math": 2.0}, highest=3.0), [*calm, *calm, *less])
    assert after_calm[-1] < after_calm[9]


@pytest.mark.parametrize(("entropy", "expected"), [(1.0, 2.2), (0.4, 1.55)])
def test_an_unknown_reward_leaves_the_other_signs_to_decide(entropy, expected):
    assert run(Controller({"math": 2.0}, highest=3.0), series(10, reward=None, entropy=entropy))[-1] == pytest.approx(expected)


def test_each_domain_has_its_own_lambda_and_its_own_windows():
    """`code` is in trouble, `math` has prompts in every other step only."""
    controller = Controller({"math": 1.5, "code": 1.5}, highest=3.0)
    for step, row in enumerate(series(10, response_length=100.0)):
        controller.update({"code": row} | ({"math": CALM} if step % 2 else {}))
    assert controller.alphas == pytest.approx({"math": 1.6, "code": 1.3})


@pytest.mark.parametrize("stop", [3, 5, 8, 13])
def test_a_controller_that_was_saved_goes_on_as_if_it_had_not_been(stop):
    rows = [*series(12), *series(8, entropy=0.4), *series(12)]
    whole = run(Controller({"math": 1.5}, highest=3.0), rows)
    first = Controller({"math": 1.5}, highest=3.0)
    begun = run(first, rows[:stop])
    second = Controller({"math": 1.5}, highest=3.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + run(second, rows[stop:]) == whole
    assert len(set(whole)) > 3


def test_a_start_outside_its_limits_and_a_state_of_other_domains_are_refused():
    with pytest.raises(InputError, match=r"adaptive α of math starts at 4; it must lie between 1 and 3"):
        Controller({"math": 4.0}, highest=3.0)
    state = Controller({"code": 1.5}, highest=3.0).state_dict()
    with pytest.raises(InputError, match="the saved α is of code; this run has math"):
        Controller({"math": 1.5}, highest=3.0).load_state_dict(state)
