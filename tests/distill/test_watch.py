"""Which runs are warned about: real ones, good and bad, and hand-made courses of a single number."""

import json
from pathlib import Path

import pytest

from gopd_merge.distill.watch import Watch

RUNS = Path(__file__).parent.parent / "data" / "runs"
FINE = {
    "response_length": 40.0,
    "capped": 0.0,
    "entropy": 1.0,
    "kl_to_target": 0.01,
    "reward": 0.02,
    "drift": 0.02,
    "alpha": 2.0,
    "clipped_share": None,
}


def course(*windows, **always):
    """Rows of a run in windows of five steps, each fine but for its changes, with a little wobble in KL and reward."""
    rows = []
    for changes in windows:
        for _ in range(5):
            metrics = FINE | always | changes
            wobble = 1 + 0.01 * (-1) ** len(rows)
            for name in ("kl_to_target", "reward"):
                metrics[name] = None if metrics[name] is None else metrics[name] * wobble
            rows.append({"step": len(rows) + 1, "domains": {"math": metrics}})
    return rows


def heard(rows, steps=None, **options):
    watch = Watch(steps or len(rows), **options)
    return [(row["step"], sign.text) for row in rows for sign in watch.look(row)]


def real(name):
    return [json.loads(line) for line in (RUNS / f"{name}.jsonl").read_text().splitlines()]


# real runs


def test_a_healthy_run_hears_nothing():
    assert heard(real("healthy")) == []


def test_a_learning_rate_that_throws_the_student_off_is_heard_after_two_windows():
    warnings = heard(real("too_fast"))
    assert [step for step, _ in warnings] == [10, 10]
    assert warnings[0][1].startswith(
        "code: KL to target rose from 0.0228 to 1.11 nats a token: the student is thrown off; lower --learning-rate"
    )


def test_answers_cut_off_from_the_start_are_no_matter_of_alpha():
    step, warning = heard(real("cut_off"))[0]
    assert step == 5
    assert warning == "code: 100% of the responses end at the limit of their length; raise --max-new-tokens"


def test_experts_that_the_base_is_far_from_are_heard_after_the_first_window():
    """SmolLM2-135M and experts fine-tuned on answers in another form, begun at the base and at the experts' average; 15 steps."""
    warnings = heard(real("far_from_the_base"), 15, could_begin_nearer=True)
    far = [(step, text.split(" (")[0]) for step, text in warnings if "--start average" in text]
    assert far == [(5, f"{domain}: the base is far from the expert") for domain in ("code", "math")]
    assert not any("--start average" in text for _, text in heard(real("far_from_the_base"), 15))
    assert heard(real("from_the_average"), 15, could_begin_nearer=True) == []
    assert heard(real("healthy"), could_begin_nearer=True) == []


def test_how_far_the_base_may_be_goes_by_the_square_of_alpha():
    for alpha, limit in ((0.5, 0.3), (1.0, 0.3), (2.0, 1.2)):
        near, far = (course({"kl_to_target": limit * factor}, alpha=alpha) for factor in (0.9, 1.1))
        assert heard(near, could_begin_nearer=True) == []
        assert [step for step, text in heard(far, could_begin_nearer=True) if "--start average" in text] == [5]


def test_a_target_out_of_reach_is_heard_near_the_end():
    """α = 6, twenty steps: nothing collapses, and the student stays far from what it is asked for."""
    warnings = heard(real("too_far"))
    assert [(step, warning.split(":")[0]) for step, warning in warnings] == [(15, "code"), (15, "math")]
    assert all("does not get to its target" in warning and "lower --alpha" in warning for _, warning in warnings)


# one sign at a time; the control is the same course with a smaller change

SIGNS = [
    ([{}, {"entropy": 0.4}], [{}, {"entropy": 0.6}], "entropy fell from 1 to 0.4 nats a token", "lower --alpha (now 2)"),
    (
        [{}, {"response_length": 70}],
        [{}, {"response_length": 55}],
        "responses grew from 40 to 70 tokens (0% at the limit)",
        "lower --alpha (now 2)",
    ),
    ([{}, {"capped": 0.3}], [{}, {"capped": 0.05}], "responses grew from 40 to 40 tokens (30% at the limit)", "lower --alpha (now 2)"),
    (
        [{}, {"capped": 0.9}],
        [{}, {"capped": 0.05}],
        "90% of the responses end at the limit of their length, 0% did at the start",
        "read some answers",
    ),
    (
        [{}, {"kl_to_target": 0.002}, {"kl_to_target": 0.006}],
        [{}, {"kl_to_target": 0.002}, {"kl_to_target": 0.004}],
        "KL to target rose from 0.002",
        "lower --learning-rate, or lower --alpha (now 2)",
    ),
    ([{}, {}, {}, {}], [{}, {}, {}, {"kl_to_target": 0.004}], "KL to target is 0.01 nats a token after 75% of the run", "more --steps"),
    ([{}, {"clipped_share": 0.2}], [{}, {"clipped_share": 0.05}], "--bound cuts off the reward of 20% of the tokens", "raise --bound"),
    (
        [{}, {}, {"reward": -0.02}, {"reward": -0.02}],
        [{"reward": -0.02}, {"reward": -0.02}, {"reward": -0.02}, {}],
        "the expert likes the student's answers less than its reference does (reward -0.02",
        "prompts of its domain",
    ),
    (
        [{"kl_to_target": 2e-5, "reward": 0.0}],
        [{"kl_to_target": 2e-3, "reward": 0.0}],
        "the expert does not differ from its reference on these prompts (KL to target 2e-05, reward +0 nats a token)",
        "--alpha has no effect",
    ),
]


def falling(windows):
    """A KL that falls from window to window where the course does not say otherwise, so that only its own sign is left."""
    return [{"kl_to_target": 0.01 if index == 0 else 0.001} | changes for index, changes in enumerate(windows)]


@pytest.mark.parametrize(("bad", "good", "finding", "advice"), SIGNS, ids=lambda value: value[:24] if isinstance(value, str) else "")
def test_a_sign_of_failure_is_one_line_with_numbers_and_advice(bad, good, finding, advice):
    rows = course(*bad) if "is 0.01" in finding else course(*falling(bad))
    warnings = heard(rows)
    assert len(warnings) == 1
    assert warnings[0][1].startswith(f"math: {finding}")
    assert advice in warnings[0][1]
    assert "\n" not in warnings[0][1]
    assert heard(course(*falling(good))) == []


def test_each_warning_is_said_once_for_each_domain():
    rows = course(*falling([{}, {"entropy": 0.3}, {"entropy": 0.3}, {"entropy": 0.3}]))
    for row in rows:
        row["domains"]["code"] = row["domains"]["math"]
    warnings = [warning for _, warning in heard(rows)]
    assert [warning.split(":")[0] for warning in warnings] == ["math", "code"]


def test_a_student_that_becomes_as_sure_as_its_expert_is_no_collapse():
    bad = falling([{}, {"entropy": 0.3}])
    assert heard(course(*bad, alpha=1.0)) == []
    assert len(heard(course(*bad, alpha=1.25))) == 1


def test_without_extrapolation_nobody_is_told_to_lower_alpha():
    rows = course(*falling([{}, {"response_length": 80, "capped": 0.2}]), alpha=1.0)
    assert [warning.endswith("read some answers") for _, warning in heard(rows)] == [True]


def test_a_target_that_a_rising_alpha_moves_away_is_not_a_student_that_stays_behind():
    windows = [{"alpha": alpha, "kl_to_target": 0.01 * alpha**2 / 4} for alpha in (1.0, 1.5, 2.0, 2.5)]
    windows[0]["kl_to_target"] = 0.01
    assert heard(course(*windows)) == []
    assert heard(course(*[window | {"alpha": 1.0} for window in windows])) != []


def test_unknown_numbers_give_no_warnings():
    """λ = 1 runs no reference, the hidden estimator sees no probabilities."""
    unknown = dict.fromkeys(("entropy", "kl_to_target", "reward", "drift", "alpha", "clipped_share"))
    assert heard(course(*[unknown] * 4)) == []


def test_a_domain_is_judged_by_its_own_steps():
    """One domain a step, in turn: ten steps hold one window of each."""
    rows = course(*falling([{}, {}, {"entropy": 0.3}, {"entropy": 0.3}]))
    for row in rows:
        row["domains"] = {"code" if row["step"] % 2 else "math": row["domains"]["math"]}
    assert [(step, warning.split(":")[0]) for step, warning in heard(rows)] == [(19, "code"), (20, "math")]


def test_a_watch_that_has_looked_at_the_earlier_rows_goes_on_where_it_was():
    rows = real("too_fast")
    watch = Watch(len(rows))
    before = [warning for row in rows[:12] for warning in watch.look(row)]
    assert len(before) == 2
    assert [warning for row in rows[12:] for warning in watch.look(row)] == []
    blind = heard(rows[5:], len(rows))  # the control: one that has not seen the start takes what went wrong for normal
    assert not any("KL to target rose" in warning for _, warning in blind)


def test_an_engine_that_no_longer_has_the_student_is_heard_once():
    rows = course(*falling([{"engine_gap": 0.01}, {"engine_gap": 0.025}, {"engine_gap": 0.05}, {"engine_gap": 0.2}]))
    ((step, warning),) = heard(rows)
    assert step == 15
    assert warning.startswith("math: the log-probs of --rollout are 0.05 nats a token from the student's, 0.01 at the start")
    assert heard(course(*falling([{"engine_gap": 1e-6}, {"engine_gap": 1e-3}]))) == []  # the precision of another machine
    assert heard(course(*falling([{}, {}]))) == []
