"""Intervals and tests, against values worked out elsewhere and against chance itself."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from gopd_merge.evaluate.statistics import (
    Comparison,
    bootstrap_interval,
    difference_interval,
    holm,
    mcnemar_p,
    paired,
    permutation_p,
    scores_of,
    summarise,
    wilson_interval,
    with_holm,
)

NAMES = {"suite": "s", "domain": "math", "method": "exopd", "rival": "average", "rival_is": "average"}


def ids(n):
    return [f"q{i}" for i in range(n)]


@st.composite
def two_methods(draw):
    """Scores of two methods on the same 1 to 12 questions, each with seeds and samples of its own number."""
    n = draw(st.integers(1, 12))

    def one():
        seeds, k = draw(st.integers(1, 3)), draw(st.integers(1, 4))
        verdicts = st.lists(st.booleans(), min_size=seeds * n * k, max_size=seeds * n * k)
        return np.array(draw(verdicts), dtype=float).reshape(seeds, n, k)

    return n, one(), one()


def test_wilsons_interval_is_its_formula():
    n, p, z = 50, 0.4, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson_interval(20, 50) == pytest.approx((centre - half, centre + half))


def test_one_verdict_a_question_has_wilsons_interval_and_no_spread_over_seeds():
    found = summarise(scores_of(ids(50), [True] * 20 + [False] * 30))
    assert (found.score, found.n, found.k, found.seed_sd) == (0.4, 50, 1, None)
    assert (found.low, found.high) == wilson_interval(20, 50)
    assert summarise(scores_of(ids(50), [0.4] * 50)).low != found.low


def test_the_interval_of_sampled_scores_is_that_of_the_normal_theory_when_questions_are_many():
    """Mean ± 1.96 standard errors over questions, with the two added questions in both."""
    values = np.random.default_rng(3).binomial(4, 0.6, size=3000) / 4
    padded = [*values, 0, 1]
    half = 1.959964 * np.std(padded, ddof=1) / math.sqrt(len(padded))
    assert bootstrap_interval(values) == pytest.approx((np.mean(padded) - half, np.mean(padded) + half), abs=half / 20)


def test_what_varies_over_seeds_is_told_apart_from_what_varies_over_questions():
    """Seeds at 0.25 and 0.75 differ by a standard deviation of 0.5 / √2; the question means, all 0.5 but two, hardly vary."""
    first, second = np.zeros(100), np.ones(100)
    first[:25], second[75:] = 1, 0
    found = summarise(scores_of(ids(100), first, second))
    assert found.score == 0.5
    assert found.seed_sd == pytest.approx(0.5 / math.sqrt(2))
    same = summarise(scores_of(ids(100), first, first))
    assert same.seed_sd == 0
    assert same.high - same.low == pytest.approx(4 * math.sqrt(0.25 * 0.75 / 100), rel=0.1)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 5, 300])
def test_questions_that_all_score_alike_leave_doubt(value, n):
    low, high = bootstrap_interval([value] * n)
    assert low <= value <= high
    assert high - low > 0.5 / (n + 2)
    low, high = difference_interval([value] * n)
    assert low <= value <= high
    unseen = 1.959964**2 / (n + 1.959964**2)  # Wilson's bound for none in n
    assert (low, high) == pytest.approx((max(-1, value - (1 + value) * unseen), min(1, value + (1 + value) * unseen)))


@pytest.mark.parametrize(("mean", "spread", "n", "k"), [(0.5, 1, 50, 1), (0.9, 1, 20, 16), (0.97, 1, 50, 4), (0.5, 10, 200, 4)])
def test_a_95_percent_interval_holds_the_truth_in_95_of_100_draws_of_questions(mean, spread, n, k):
    """Questions of Beta-distributed difficulty; among them a case where the bare percentile interval holds it in 86 of 100."""
    rng = np.random.default_rng(0)
    draws = 150
    difficulty = rng.beta(mean * spread, (1 - mean) * spread, size=(draws, n))
    scores = rng.binomial(k, difficulty) / k
    intervals = [bootstrap_interval(row, seed) for seed, row in enumerate(scores)]
    held = sum(low <= mean <= high for low, high in intervals)
    assert held >= binom.ppf(0.001, draws, 0.95)
    assert np.mean([high - low for low, high in intervals]) < 6 * scores.mean(axis=1).std() + 2 / n  # not by being wide


def test_the_interval_of_a_difference_holds_the_truth_in_95_of_100_draws():
    rng = np.random.default_rng(1)
    difficulty = rng.uniform(0.1, 0.8, size=(150, 100))
    differences = rng.binomial(4, difficulty + 0.1) / 4 - rng.binomial(4, difficulty) / 4
    held = sum(low <= 0.1 <= high for low, high in map(difference_interval, differences))
    assert 150 > held >= binom.ppf(0.001, 150, 0.95)


def test_the_exact_paired_p_counts_only_the_questions_where_the_two_differ():
    """Ten differ, nine for the first: p = 2 · (1 + 10) / 2¹⁰."""
    first = [True] * 9 + [False] + [True] * 30
    second = [False] * 9 + [True] + [True] * 30
    assert mcnemar_p(first, second) == pytest.approx(22 / 1024)
    assert mcnemar_p(first, first) == 1.0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([-1, -0.75, -1 / 3, 0, 0.25, 1 / 3, 1]), min_size=1, max_size=9))
def test_the_permutation_p_is_the_share_of_sign_patterns_that_are_as_far_from_zero(differences):
    values = np.array(differences)
    sums = np.array([np.dot(signs, values) for signs in itertools.product((-1, 1), repeat=len(values))])
    assert permutation_p(values) == pytest.approx(np.mean(np.abs(sums) >= abs(values.sum()) - 1e-9))


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (40, 20), (30, 30)])
def test_on_single_verdicts_the_permutation_p_is_mcnemars(wins, losses):
    differences = [1] * wins + [-1] * losses + [0] * 50
    expected = mcnemar_p(np.array(differences) > 0, np.array(differences) < 0)
    assert permutation_p(differences) == pytest.approx(expected, abs=0.01 if wins > 9 else 1e-12)


def test_of_methods_that_are_equally_good_few_are_called_different():
    rng = np.random.default_rng(5)
    difficulty = rng.beta(1, 1, size=(200, 40))
    ours, theirs = (rng.binomial(4, difficulty) / 4 for _ in range(2))
    found = [paired(scores_of(ids(40), a), scores_of(ids(40), b), **NAMES) for a, b in zip(ours, theirs, strict=True)]
    assert sum(c.p < 0.05 for c in found) <= binom.ppf(0.999, 200, 0.05)
    assert sum(c.p < 0.5 for c in found) >= binom.ppf(0.001, 200, 0.45)  # and p is no constant
    shifted = [
        paired(scores_of(ids(40), np.minimum(a + 0.25, 1)), scores_of(ids(40), b), **NAMES) for a, b in zip(ours, theirs, strict=True)
    ]
    assert sum(c.better for c in shifted) > 150


def test_single_verdicts_get_mcnemars_test_and_anything_else_a_permutation():
    single, other = scores_of(ids(30), [1] * 30), scores_of(ids(30), [0] * 20 + [1] * 10)
    assert paired(single, other, **NAMES).test == "exact McNemar"
    for second in (scores_of(ids(30), [0.5] * 30), scores_of(ids(30), [1] * 30, [0] * 30), scores_of(ids(30), [[1, 0]] * 30)):
        assert paired(single, second, **NAMES).test == "permutation"


@settings(deadline=None, max_examples=25)
@given(two_methods(), st.randoms(use_true_random=False))
def test_the_interval_holds_the_score_order_is_nothing_and_swapping_mirrors(methods, random):
    n, *both = methods
    ours, theirs = (scores_of(ids(n), *values) for values in both)
    found = paired(ours, theirs, **NAMES)
    assert found.low <= found.difference <= found.high
    summary = summarise(ours)
    assert 0 <= summary.low <= summary.score <= summary.high <= 1
    assert summary.score == pytest.approx(both[0].mean())
    order = random.sample(range(n), n)
    shuffled = scores_of([ids(n)[i] for i in order], *both[0][:, order])
    assert summarise(shuffled) == summary
    assert paired(shuffled, theirs, **NAMES) == found
    mirrored = paired(theirs, ours, **NAMES)
    assert mirrored.p == found.p
    assert (-mirrored.difference, -mirrored.high, -mirrored.low) == pytest.approx((found.difference, found.low, found.high))
    assert (mirrored.worse, mirrored.better) == (found.better, found.worse)


def test_questions_are_paired_by_id_and_others_refused():
    ours = scores_of(["a", "b", "c"], [1, 1, 0])
    assert paired(ours, scores_of(["c", "b", "a"], [0, 1, 1]), **NAMES).p == 1.0
    assert paired(ours, scores_of(["c", "b", "a"], [0, 1, 1]), **NAMES).difference == 0
    with pytest.raises(ValueError, match="'c' first"):
        paired(ours, scores_of(["a", "b", "d"], [1, 1, 0]), **NAMES)


@pytest.mark.parametrize(
    ("names", "values", "complaint"),
    [
        (["a", "a"], [0, 1], "1 different ids"),
        (["a"], [0, 1], "for 1 questions"),
        (["a", "b"], [0, 1.5], "from 0.0 to 1.5"),
        (["a", "b"], [0, math.nan], "from nan"),
        ([], [], "for 0 questions"),
    ],
)
def test_scores_that_cannot_be_right_are_refused(names, values, complaint):
    with pytest.raises(ValueError, match=complaint):
        scores_of(names, values)


def test_holm_gives_the_published_example():
    """Wright (1992), Adjusted p-values for simultaneous inference, as in R's p.adjust: each times its remaining number, never falling."""
    assert holm([0.04, 0.01, 0.5]) == pytest.approx([0.08, 0.03, 0.5])
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])  # p.adjust(1:5/100, "holm")


def test_better_needs_the_interval_and_the_test_corrected_for_its_whole_family():
    row = Comparison(**NAMES, n=30, difference=0.2, low=0.05, high=0.35, p=0.02, p_holm=0.02, test="exact McNemar")
    assert row.better
    assert not replace(row, low=-0.01).better
    assert replace(row, low=-0.35, high=-0.05).worse
    family = with_holm([row, replace(row, p=0.03)])
    assert [c.p_holm for c in family] == [0.04, 0.04]
    assert [c.better for c in with_holm([row] * 3)] == [False] * 3
    assert with_holm([]) == []
