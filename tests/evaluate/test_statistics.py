"""Intervals and tests, against values worked out elsewhere."""

import math

import pytest

from gopd_merge.evaluate.statistics import compare, holm, mcnemar_p, wilson_interval


def test_wilsons_interval_is_its_formula():
    n, p, z = 50, 0.4, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson_interval(20, 50) == pytest.approx((centre - half, centre + half))


def test_the_exact_paired_p_counts_only_the_questions_where_the_two_differ():
    """Ten differ, nine for the first: p = 2 · (1 + 10) / 2¹⁰."""
    first = [True] * 9 + [False] + [True] * 30
    second = [False] * 9 + [True] + [True] * 30
    assert mcnemar_p(first, second) == pytest.approx(22 / 1024)
    assert mcnemar_p(first, first) == 1.0


def test_holm_multiplies_the_smallest_most():
    assert holm([0.04, 0.01, 0.5]) == pytest.approx([0.08, 0.03, 0.5])
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])


def test_better_is_said_only_where_chance_is_excluded():
    clear = ([True] * 30, [False] * 30)
    thin = ([True] * 3 + [False] * 27, [False] * 30)
    one, other = compare("exopd", "average", {"math": clear, "code": thin})
    assert (one.better, other.better) == (True, False)
    assert other.difference == pytest.approx(0.1)
