"""Which α is taken, on made-up scores, against a calculation of its own."""

import re

import numpy as np
import pytest

from gopd_merge.evaluate.statistics import scores_of
from gopd_merge.scaling.choice import choose

N = 800


def made_up(shares: dict[float, float], seed: int, n: int = N):
    """Right and wrong answers whose questions are easy or hard for every α alike."""
    random = np.random.default_rng(seed)
    ease = random.normal(0, 0.15, n)
    return {alpha: (random.random(n) < np.clip(share + ease, 0, 1)).astype(float) for alpha, share in shares.items()}


def scores(answers: dict[float, np.ndarray]):
    return {alpha: scores_of([f"q{i}" for i in range(len(right))], right) for alpha, right in answers.items()}


def by_hand(answers: dict[float, np.ndarray]) -> tuple[float, float]:
    """The largest α whose mean difference from the best is within 1.96 standard errors, and how close any came to that."""
    best = max(sorted(answers), key=lambda alpha: answers[alpha].mean())
    distances = {}
    for alpha, right in answers.items():
        difference = answers[best] - right
        if difference.any():
            distances[alpha] = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(right)))
        else:
            distances[alpha] = 0.0
    return max(alpha for alpha, z in distances.items() if z < 1.96), min(abs(z - 1.96) for z in distances.values())


def test_the_largest_that_is_not_worse_than_the_best_is_taken():
    """On many made-up curves, those left out where the normal approximation and the bootstrap might fall on either side."""
    shares = {0.0: 0.45, 1.0: 0.7, 1.25: 0.74, 1.5: 0.75, 2.0: 0.72, 3.0: 0.6}
    taken = []
    for seed in range(25):
        answers = made_up(shares, seed)
        expected, margin = by_hand(answers)
        if margin > 0.15:
            assert choose(scores(answers)).alpha == expected
            taken.append(expected)
    assert len(taken) > 12
    assert {1.5, 2.0} <= set(taken) <= {1.25, 1.5, 2.0}  # chance decides between these, and no curve takes 1 or 3


def test_answers_are_paired():
    """An α that loses 12 questions of 300 and wins none is worse, though the intervals of the two scores overlap widely."""
    base = np.repeat([1.0, 0.0], [210, 90])
    fewer = base.copy()
    fewer[:12] = 0
    assert choose(scores({1.5: base, 2.0: fewer})).alpha == 1.5
    elsewhere = np.roll(base, 45)  # the same score as `base`, out of other questions
    elsewhere[45:57] = 0
    same_loss = base.mean() - elsewhere.mean()
    assert same_loss == pytest.approx(base.mean() - fewer.mean())
    assert choose(scores({1.5: base, 2.0: elsewhere})).alpha == 2.0


def test_of_equally_good_ones_the_largest_is_taken():
    right = np.repeat([1.0, 0.0], [6, 4])
    assert choose(scores({1.0: right, 1.5: right.copy(), 2.0: np.zeros(10)})).alpha == 1.5


def test_the_reason_has_the_numbers_and_says_what_lies_beyond():
    answers = made_up({1.0: 0.55, 1.5: 0.8, 2.0: 0.78, 3.0: 0.4}, seed=3)
    choice = choose(scores(answers))
    assert choice.alpha == 2.0
    n, best = N, answers[1.5].mean()
    lost = 100 * (answers[1.5] - answers[3.0]).mean()
    assert f"the best, α = 1.5 with {best:.1%} of {n} questions" in choice.why
    assert f"α = 3 is behind the best by +{lost:.1f} (+" in choice.why
    interval = re.search(r"best minus it is \+([\d.]+) \(−([\d.]+) to \+([\d.]+)\) points", choice.why)
    assert interval, choice.why
    difference = 100 * (answers[1.5] - answers[2.0])
    assert float(interval[1]) == pytest.approx(difference.mean(), abs=0.051)
    half = 1.96 * difference.std(ddof=1) / np.sqrt(N)
    assert float(interval[3]) == pytest.approx(difference.mean() + half, abs=0.3)
    assert "\n" not in choice.why


@pytest.mark.parametrize(
    ("shares", "alpha", "ending"),
    [
        ({1.0: 0.4, 1.5: 0.8}, 1.5, "; it is the largest that was tried, so a larger one may do as well"),
        ({1.0: 0.8, 1.5: 0.4}, 1.0, "points, and no smaller one was tried"),
        ({0.0: 0.8, 1.5: 0.4}, 0.0, " points"),
    ],
)
def test_the_edge_of_the_grid_is_said(shares, alpha, ending):
    choice = choose(scores(made_up(shares, seed=0)))
    assert choice.alpha == alpha
    assert choice.why.endswith(ending)


def test_scores_of_different_questions_are_not_compared():
    found = scores({1.0: np.ones(4)}) | {2.0: scores_of(["a", "b", "c", "d"], np.ones(4))}
    with pytest.raises(ValueError, match="cannot be paired"):
        choose(found)
