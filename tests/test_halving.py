"""How a sweep thins its candidates out, and what that costs. No model."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gopd_merge import halving
from gopd_merge.errors import InputError
from gopd_merge.halving import Candidate, champion, plan
from gopd_merge.options import checked
from gopd_merge.sweep_config import SweepConfig

EXPERTS = {"math": "math.lora", "code": "code.lora"}


def config(**options):
    return checked(SweepConfig, {"experts": EXPERTS, **options})


def spent(field, seed):
    """Steps of each rung and of the winner's full run, with ranks that have nothing to do with the candidates."""
    found, rungs = plan([one.steps for one in field]), []

    def rank(rung, candidates):
        rungs.append([steps for _, steps in candidates])
        return random.Random(f"{seed} {rung}").sample(range(len(candidates)), len(candidates))

    return rungs, champion(field, found, rank).steps


@given(count=st.integers(2, 400), lengths=st.lists(st.integers(1, 400), min_size=1, max_size=4, unique=True), seed=st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_a_sweep_costs_at_most_three_full_runs_whatever_is_chosen(count, lengths, seed):
    field = [Candidate(float(index), None, lengths[index % len(lengths)]) for index in range(count)]
    longest = max(one.steps for one in field)
    try:
        rungs, last = spent(field, seed)
    except InputError:
        return  # too many for so few steps: nothing is spent
    assert sum(map(sum, rungs)) <= 2 * longest
    assert sum(map(sum, rungs)) + last <= 3 * longest
    assert min(map(min, rungs)) >= halving.LEAST
    assert [len(rung) for rung in rungs] == sorted((len(rung) for rung in rungs), reverse=True)


@pytest.mark.parametrize("count", [4, 5, 8, 16, 33, 100])
def test_the_bound_is_not_reached_by_doing_nothing(count):
    """The control: almost all of the budget is spent, each rung costs the same, and each run is longer than those before it."""
    rungs, last = spent([Candidate(float(index), None, 10_000) for index in range(count)], 0)
    assert 2.9 * last < sum(map(sum, rungs)) + last <= 3 * last
    assert max(map(sum, rungs)) - min(map(sum, rungs)) < count
    assert [max(rung) for rung in rungs] == sorted({max(rung) for rung in rungs})
    assert count * last > 3 * last  # what a full run of each would cost


@pytest.mark.parametrize(
    ("count", "sizes", "steps"),
    [
        (2, (2,), [25]),  # half a full run each: all of it would be the full run itself
        (3, (3,), [25]),
        (4, (4, 2), [12, 25]),
        (5, (5, 2), [10, 25]),
        (10, (10,), [10]),  # two rungs would leave five steps each in the first: all but one go at once
    ],
)
def test_the_rungs_of_fifty_steps_worked_out_by_hand(count, sizes, steps):
    found = plan([50] * count)
    assert found.sizes == sizes
    assert [found.steps([50] * size) for size in sizes] == [[n] * size for n, size in zip(steps, sizes, strict=True)]


def test_a_sharper_cut_saves_rungs_where_half_of_the_candidates_would_be_too_many():
    found = plan([150] * 12)
    assert found.sizes == (12, 4)  # of 300 steps: three rungs (12, 6, 3) would leave 8 steps each in the first
    assert found.steps([150] * 12)[0] == 12
    assert plan([200] * 12).sizes == (12, 6, 3)


def test_runs_of_different_length_are_shortened_by_the_same_share():
    found = plan([100, 200, 400, 100, 200, 400])
    assert found.sizes == (6, 3)
    assert found.steps([100, 200, 400, 100, 200, 400]) == [28, 57, 114, 28, 57, 114]  # 400 of 1,400 steps
    assert found.steps([400, 400, 400]) == [133, 133, 133]


@pytest.mark.parametrize("full", [[50] * 21, [9, 9], [25, 50] * 10, [8, 400]])
def test_too_many_candidates_are_refused_with_the_steps_that_would_do(full):
    with pytest.raises(InputError, match=r"sweep over fewer values, or let the longest have \d+ steps") as refused:
        plan(full)
    needed = int(str(refused.value).split()[-2])
    factor = needed / max(full)
    assert plan([round(steps * factor) for steps in full])
    with pytest.raises(InputError):
        plan([int(steps * (needed - 1) / max(full)) for steps in full])


def by_alpha(rung, candidates):
    return sorted(range(len(candidates)), key=lambda index: candidates[index][0].alpha)


def against_it(rung, candidates):
    return by_alpha(rung, candidates)[::-1]


@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_with_scores_that_do_not_lie_the_best_candidate_wins_wherever_it_stands(count):
    for best in range(count):
        field = [Candidate(float((index - best) % count), None, 1000) for index in range(count)]  # the best has α = 0
        assert champion(field, plan([1000] * count), by_alpha).alpha == 0
        assert champion(field, plan([1000] * count), against_it).alpha == count - 1  # the control


def test_candidates_are_all_combinations_in_one_order_with_a_name_each():
    found = config(alphas=["2,1", "1.5"], learning_rates=["0.002,0.001"], steps_grid=["100", "50"])
    assert found == config(alphas="1,1.5,2", learning_rates="0.001,0.002", steps_grid="50,100")
    assert [(c.alpha, c.learning_rate, c.steps) for c in found.candidates] == [
        (a, r, s) for a in (1, 1.5, 2) for r in (0.001, 0.002) for s in (50, 100)
    ]
    close = halving.candidates([1.0, 1.0 + 2**-52], [1e-3, 1e-3 + 2**-60], [50])
    assert len({one.slug for one in close}) == 4


def test_a_short_run_is_a_whole_run_and_a_full_one_is_the_plain_merge():
    swept = config(alphas="1,2", steps=50, warmup_steps=4, seed=3)
    (first, second), steps = swept.candidates, swept.halving.steps([50, 50])[0]
    short, full = swept.short_run(second, steps, 0.002), swept.full_run(second)
    assert (full.alpha, full.steps, full.warmup_steps, full.seed, full.eval) == (2.0, 50, 4, 3, True)
    assert (short.alpha, short.steps, short.warmup_steps, short.seed, short.eval) == (2.0, 25, 2, 3, False)
    assert (full.learning_rate, short.learning_rate) == (None, 0.004)  # as far in half the steps
    assert swept.full_run(first).alpha == 1.0
    assert type(full).__name__ == "MergeConfig"
    assert config(alphas="1,2", warmup_steps=0).short_run(second, 5, 0.002).warmup_steps == 0
    assert config(alphas="1,2").short_run(second, 5, 0.002).warmup_steps == 1  # of four: not none


def test_a_method_without_alpha_is_swept_over_the_other_options():
    found = config(method="seqkd", learning_rates="0.001,0.002")
    assert [(one.alpha, one.learning_rate) for one in found.candidates] == [(1.0, 0.001), (1.0, 0.002)]
    assert found.full_run(found.candidates[1]).method == "seqkd"


@pytest.mark.parametrize(
    ("options", "named", "remedy"),
    [
        ({"alphas": "1,two"}, "--alphas two", "write numbers"),
        ({"alphas": "1,-2"}, "--alphas -2", "0 or more"),
        ({"alphas": "1,nan"}, "--alphas nan", "write numbers"),
        ({"alphas": ["1,2", "2.0"]}, "--alphas 1,2,2.0", "name each once"),
        ({"alphas": "2"}, "--alphas 2", "merge with --alpha"),
        ({"alphas": ","}, "--alphas", "such as 1,1.25"),
        ({"alpha": "2"}, "--alpha 2.0", "name the values with --alphas"),
        ({"alphas": "1,2", "alpha": "2"}, "--alpha 2.0", "leave it out"),
        ({"learning_rates": "0.001,0"}, "--learning-rates 0", "leave it out"),
        ({"learning_rates": "0.001", "learning_rate": 0.1}, "--learning-rate 0.1", "name the values with --learning-rates"),
        ({"steps_grid": "50,75.5"}, "--steps-grid 75.5", "such as 50"),
        ({"steps_grid": "50", "steps": 50}, "--steps 50", "name the values with --steps-grid"),
        ({"method": "seqkd"}, "--alphas 1", "name two values"),
        ({"method": "seqkd", "alphas": "1,2"}, "--alpha 2.0 means nothing", "leave it out"),
        ({"adaptive": "run", "alphas": "1,4"}, "--alpha-max 3", "between 1 and"),
        ({"alphas": "1,2", "steps": 19}, "19 steps", "let the longest have 20 steps"),
        ({"tune_limit": 0}, "--tune-limit 0", "see gopd-merge --help"),
    ],
)
def test_values_that_cannot_be_chosen_among_are_refused(options, named, remedy):
    with pytest.raises(InputError) as refused:
        config(**options)
    (line,) = str(refused.value).splitlines()
    assert named in line
    assert remedy in line
