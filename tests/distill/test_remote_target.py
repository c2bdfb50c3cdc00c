"""The target from a remote teacher's likeliest tokens, against sums written out in float64."""

import math

import pytest
import torch

from gopd_merge.distill.remote_target import TAIL_FLOOR, top_k_target

N, V, K = 5, 40, 6


@pytest.fixture(scope="module")
def roles():
    """log π_T and log π_0, (N, V) float64; the teacher's k likeliest tokens and their log-probs."""
    generator = torch.Generator().manual_seed(0)
    teacher, reference = ((1.5 * torch.randn(N, V, dtype=torch.float64, generator=generator)).log_softmax(-1) for _ in range(2))
    top = teacher.topk(K)
    return teacher, reference, top.indices, top.values


def by_hand(teacher, reference, ids, alpha):
    """The k + 1 buckets of both roles, tilted and normalised, one number at a time."""
    masses = []
    for role in (teacher, reference):
        probabilities = [math.exp(value) for value in role.tolist()]
        inside = [probabilities[i] for i in ids.tolist()]
        masses.append([*inside, math.fsum(p for i, p in enumerate(probabilities) if i not in ids.tolist())])
    tilted = [t**alpha * r ** (1 - alpha) for t, r in zip(*masses, strict=True)]
    return [math.log(value / math.fsum(tilted)) for value in tilted]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.25, 2.0, 3.0])
def test_the_target_on_buckets_equals_sums_written_out(roles, alpha):
    teacher, reference, ids, values = roles
    log_q, log_tail = top_k_target(ids, values, reference, alpha)
    expected = torch.tensor([by_hand(teacher[n], reference[n], ids[n], alpha) for n in range(N)], dtype=torch.float64)
    torch.testing.assert_close(torch.cat([log_q, log_tail[:, None]], 1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_q.exp().sum(1) + log_tail.exp(), torch.ones(N, dtype=torch.float64))


def test_a_target_that_forgets_the_tail_would_be_noticed(roles):
    """The control of the test above."""
    _, reference, ids, values = roles
    without = (1.25 * values - 0.25 * reference.gather(1, ids)).log_softmax(-1)
    assert (without - top_k_target(ids, values, reference, 1.25)[0]).abs().max() > 0.1


def test_lambda_one_is_exactly_the_coarse_grained_teacher_whatever_the_reference(roles):
    teacher, reference, ids, values = roles
    log_q, log_tail = top_k_target(ids, values, reference, 1.0)
    outside = teacher.exp().scatter(1, ids, 0.0).sum(1).log()
    torch.testing.assert_close(log_q, values, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_tail, outside, rtol=0, atol=1e-14)
    log_q, log_tail = top_k_target(ids, values, reference, 0.0)  # and λ = 0 the reference
    torch.testing.assert_close(log_q, reference.gather(1, ids), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("alpha", "sign"), [(0.5, -1), (2.0, 1), (3.0, 1)])
def test_the_full_target_has_more_tail_beyond_the_teacher_and_less_before_it(roles, alpha, sign):
    """What the docstring says of the approximation: k tokens keep their ratios, and the error of the tail has one sign."""
    teacher, reference, ids, values = roles
    full = (alpha * teacher + (1 - alpha) * reference).log_softmax(-1)
    full_tail = full.scatter(1, ids, float("-inf")).logsumexp(1)
    log_q, log_tail = top_k_target(ids, values, reference, alpha)
    torch.testing.assert_close(log_q - log_q[:, :1], full.gather(1, ids) - full.gather(1, ids[:, :1]), rtol=1e-10, atol=1e-12)
    assert ((full_tail - log_tail) * sign > 0).all()


def test_a_tail_that_is_only_rounding_is_no_reward(roles):
    """Σ_k π_T = 1 in float32, a reference that is surer still: without a floor λ = 3 would give everything to the tail."""
    _, _, ids, _ = roles
    one = torch.full((N, V), -40.0, dtype=torch.float64)
    one[torch.arange(N), ids[:, 0]] = 0.0
    reference = one.log_softmax(-1)
    values = torch.full((N, K), -30.0).index_fill_(1, torch.tensor([0]), 1e-7)  # adds up to more than 1
    log_q, log_tail = top_k_target(ids, values, reference.float(), 3.0)
    assert log_q.isfinite().all()
    torch.testing.assert_close(log_tail, torch.full((N,), math.log(TAIL_FLOOR)), rtol=1e-3, atol=0)


def test_lambda_may_differ_from_token_to_token(roles):
    _, reference, ids, values = roles
    alphas = torch.linspace(0, 2, N)
    together = top_k_target(ids, values, reference, alphas)
    for n in range(N):
        alone = top_k_target(ids[n : n + 1], values[n : n + 1], reference[n : n + 1], float(alphas[n]))
        torch.testing.assert_close(together[0][n : n + 1], alone[0])
        torch.testing.assert_close(together[1][n : n + 1], alone[1])
