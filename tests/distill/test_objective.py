"""The mathematics, against independent float64 calculations that share no code with it."""

import pytest
import torch

from gopd_merge.distill.fused import backward_in_chunks
from gopd_merge.distill.objective import (
    ESTIMATORS,
    HIDDEN,
    Aim,
    Reward,
    estimator_of,
    reverse_kl,
    reverse_kl_gradient,
    sampled,
    target_log_probs,
)

ALPHAS = (0.0, 0.5, 1.0, 1.25, 2.0, 3.0)
N, H, V = 7, 5, 11
PLAIN = Aim("reference", (Reward("teacher", "reference"),))


def plain_loss(student, kl, teachers, rewards, alphas):
    """The formula of the paper, token by token and entry by entry, in float64 autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(student)):
        log_p = student[n] - torch.logsumexp(student[n], 0)
        log_q = kl[n] - torch.logsumexp(kl[n], 0)
        for alpha, teacher, reward in zip(alphas, teachers, rewards, strict=True):
            log_q = log_q + alpha * ((teacher[n] - torch.logsumexp(teacher[n], 0)) - (reward[n] - torch.logsumexp(reward[n], 0)))
        log_q = log_q - torch.logsumexp(log_q, 0)
        total = total + sum(log_p[v].exp() * (log_p[v] - log_q[v]) for v in range(len(log_p)))
    return total / len(student)


def random_logits(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_teachers", [1, 2, 3])
def test_loss_and_gradient_equal_a_plain_float64_implementation(alpha, num_teachers):
    student = random_logits(N, V).requires_grad_()
    kl = random_logits(N, V, seed=1)
    teachers = [random_logits(N, V, seed=2 + i) for i in range(num_teachers)]
    alphas = [alpha / (i + 1) for i in range(num_teachers)]
    expected = plain_loss(student, kl, teachers, [kl] * num_teachers, alphas)
    (expected_gradient,) = torch.autograd.grad(expected, student)

    log_q = target_log_probs(kl, teachers, [kl] * num_teachers, alphas)
    loss = reverse_kl(student, log_q, torch.zeros(N, dtype=torch.long)).mean()
    (gradient,) = torch.autograd.grad(loss, student)

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_the_plain_implementation_notices_a_forward_kl():
    """The control of the test above: the KL the other way round is another number."""
    student, kl, teacher = (random_logits(N, V, seed=seed) for seed in range(3))
    log_q, log_p = target_log_probs(kl, [teacher], [kl], [2.0]), student.log_softmax(-1)
    forward = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    assert abs(forward - plain_loss(student, kl, [teacher], [kl], [2.0])) > 0.1


def test_decoupled_references_keep_the_student_near_one_and_measure_reward_against_another():
    student, kl, teacher, reward_ref = (random_logits(N, V, seed=seed) for seed in range(4))
    log_q = target_log_probs(kl, [teacher], [reward_ref], [1.5])
    found = reverse_kl(student, log_q, torch.zeros(N, dtype=torch.long)).mean()
    torch.testing.assert_close(found, plain_loss(student, kl, [teacher], [reward_ref], [1.5]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_chunks_give_the_loss_and_gradient_of_the_whole(alpha, chunk_tokens):
    """Seven tokens are no multiple of three; the gradient reaches whatever made the hidden states."""
    made_from = random_logits(N, H).requires_grad_()
    weight, teacher, reference = random_logits(V, H, seed=1), random_logits(N, H, seed=2), random_logits(N, H, seed=3)
    student = torch.tanh(made_from) @ weight.T
    expected = plain_loss(student, reference @ weight.T, [teacher @ weight.T], [reference @ weight.T], [alpha])
    (expected_gradient,) = torch.autograd.grad(expected, made_from)

    mixed = alpha * teacher + (1 - alpha) * reference
    statistics = backward_in_chunks(
        hidden=torch.tanh(made_from),
        ids=torch.arange(N) % V,
        head=lambda h: h @ weight.T,
        target_log_probs=lambda rows, logits: (mixed[rows] @ weight.T).log_softmax(-1),
        gradient_of_logits=reverse_kl_gradient,
        num_tokens=N,
        chunk_tokens=chunk_tokens,
    )
    torch.testing.assert_close(statistics.kl.mean(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(made_from.grad, expected_gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(statistics.log_prob, student.log_softmax(-1)[torch.arange(N), torch.arange(N) % V])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_descent_on_a_free_policy_reaches_the_closed_form(alpha):
    """One state, free logits: the optimum is softmax(λ log π_T + (1 − λ) log π_0), here by numpy's own arithmetic."""
    import numpy as np

    teacher, reference = (random_logits(1, V, seed=seed) / 2 for seed in (4, 5))  # so that no token is lost on the way at λ = 3
    log_t, log_0 = (x.numpy()[0] - np.log(np.exp(x.numpy()[0]).sum()) for x in (teacher, reference))
    closed = np.exp(alpha * log_t + (1 - alpha) * log_0)
    closed /= closed.sum()

    free = torch.zeros(1, V, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = reverse_kl(free, target_log_probs(reference, [teacher], [reference], [alpha]), torch.zeros(1, dtype=torch.long)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    p = free.detach().softmax(-1).numpy()[0]
    assert float((p * np.log(p / closed)).sum()) < 1e-6


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_mean_of_the_sampled_gradient_converges_to_the_full_gradient(alpha):
    """400,000 draws: within five standard errors in every entry. The gradient without the advantage's sign would be far out."""
    draws = 400_000
    student = random_logits(1, V).requires_grad_()
    teacher, reference = random_logits(1, V, seed=6), random_logits(1, V, seed=7)
    log_q = target_log_probs(reference, [teacher], [reference], [alpha])
    (full,) = torch.autograd.grad(reverse_kl(student, log_q, torch.zeros(1, dtype=torch.long)).sum(), student)

    ids = torch.multinomial(student.detach().softmax(-1)[0], draws, replacement=True, generator=torch.Generator().manual_seed(0))
    rows = student.detach().expand(draws, V).clone().requires_grad_()
    (per_draw,) = torch.autograd.grad(sampled(rows, log_q.expand(draws, V), ids).sum(), rows)  # (draws, V)
    standard_error = per_draw.std(0) / draws**0.5
    assert ((per_draw.mean(0) - full[0]).abs() < 5 * standard_error).all()
    assert ((per_draw.mean(0) + full[0]).abs() > 5 * standard_error).any()


def test_the_sampled_advantage_is_the_papers_up_to_a_constant_of_the_state():
    alpha = 1.5
    student, teacher, reference = (random_logits(1, V, seed=seed).log_softmax(-1) for seed in (0, 6, 7))
    log_q = target_log_probs(reference, [teacher], [reference], [alpha])
    papers = alpha * (teacher - reference) - (student - reference)  # (1, V): A of every token
    ours = log_q - student
    difference = (papers - ours)[0]
    torch.testing.assert_close(difference, difference[0].expand(V))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_mixed_hidden_state_gives_the_target_of_three_separate_projections(alpha):
    weight, bias, teacher, reference = (
        random_logits(V, H),
        random_logits(V, seed=1),
        random_logits(N, H, seed=2),
        random_logits(N, H, seed=3),
    )
    separate = target_log_probs(reference @ weight.T + bias, [teacher @ weight.T + bias], [reference @ weight.T + bias], [alpha])
    parts = PLAIN.coefficients([alpha])
    mixed = parts.get("teacher", 0) * teacher + parts.get("reference", 0) * reference
    assert (separate - (mixed @ weight.T + bias).log_softmax(-1)).abs().max() < 1e-12


def test_a_role_that_the_target_does_not_need_is_not_run():
    assert PLAIN.coefficients([1.0]) == {"teacher": 1.0}
    assert PLAIN.coefficients([0.0]) == {"reference": 1.0}
    assert PLAIN.coefficients([2.0]) == {"teacher": 2.0, "reference": -1.0}
    its_own_reference = Aim("teacher", (Reward("teacher", "teacher"),))
    assert its_own_reference.coefficients([3.0]) == {"teacher": 1.0}


def test_a_worked_example():
    """Two tokens. Base 1:1, expert 3:1, so λ = 2 aims at 9:1; a student at 1:1 is at KL ½ln(5/9) + ½ln 5 = ½ ln(25/9)."""
    base, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 1.0]]).log()
    log_q = target_log_probs(base, [teacher], [base], [2.0])
    torch.testing.assert_close(log_q.exp(), torch.tensor([[0.9, 0.1]]))
    kl = reverse_kl(torch.zeros(1, 2), log_q, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(kl, torch.tensor([0.5 * torch.log(torch.tensor(25 / 9))]))


def test_every_estimator_stands_still_at_the_target():
    teacher, reference = random_logits(N, V), random_logits(N, V, seed=1)
    log_q = target_log_probs(reference, [teacher], [reference], [2.0])
    for name in [name for name in ESTIMATORS if name != HIDDEN]:
        student = log_q.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(estimator_of(name, 3)(student, log_q, torch.arange(N) % V).sum(), student)
        assert gradient.abs().max() < 1e-12, name
