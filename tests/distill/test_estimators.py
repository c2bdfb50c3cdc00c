"""Every estimator's value and gradient, and the coefficients of every kind of target, against float64 sums written out entry by entry."""

import math
import weakref
from dataclasses import fields

import pytest
import torch
from torch.nn.functional import cross_entropy

from gopd_merge.distill.fused import TokenStatistics, backward_in_chunks, backward_through_hidden
from gopd_merge.distill.objective import Aim, Reward, estimator_of, gradient_of, hidden_distance, reverse_kl, spread_tail, top_k

ALPHAS = (0.0, 0.5, 1.0, 1.25, 2.0, 3.0)
N, H, V, K = 7, 5, 11, 4
IDS = torch.arange(N) * 3 % V


def random_logits(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def log_normalised(logits):
    """log π of one state as a list of numbers (with gradient, where the logits have one)."""
    total = sum(logit.exp() for logit in logits)
    return [logit - total.log() for logit in logits]


def written_out(keep, teachers, against, alphas):
    """log q of one state by the formula: log π_kl + Σ λ_i (log π_Ti − log π_ri) − log Z, one token after the other."""
    log_q = log_normalised(keep)
    for alpha, teacher, reference in zip(alphas, map(log_normalised, teachers), map(log_normalised, against), strict=True):
        log_q = [q + alpha * (t - r) for q, t, r in zip(log_q, teacher, reference, strict=True)]
    return log_normalised(log_q)


def buckets(log_p, top):
    """Log-probabilities of the tokens `top` and of all others together."""
    return [*(log_p[v] for v in top), sum(log_p[v].exp() for v in range(len(log_p)) if v not in top).log()]


def kl(log_p, log_q):
    return sum(p.exp() * (p - q) for p, q in zip(log_p, log_q, strict=True))


def likeliest(log_q):
    return sorted(range(len(log_q)), key=lambda v: -float(log_q[v]))[:K]


LOSSES = {  # of one state: log π_θ, log q, the sampled token
    "full": lambda log_p, log_q, a: kl(log_p, log_q),
    "forward": lambda log_p, log_q, a: kl(log_q, log_p),
    "topk": lambda log_p, log_q, a: kl(buckets(log_p, likeliest(log_q)), buckets(log_q, likeliest(log_q))),
    "sampled": lambda log_p, log_q, a: (log_p[a].detach() - log_q[a]) * log_p[a],  # minus the paper's advantage, less log Z
    "cross_entropy": lambda log_p, log_q, a: -log_p[a],
}


def a_target(num_teachers, alpha):
    """(N, V) log q written out, and all that it is made of."""
    keep = random_logits(N, V, seed=1)
    teachers = [random_logits(N, V, seed=2 + i) for i in range(num_teachers)]
    against = [keep, *(random_logits(N, V, seed=20 + i) for i in range(1, num_teachers))]
    alphas = [alpha / (i + 1) for i in range(num_teachers)]
    rows = [written_out(keep[n], [t[n] for t in teachers], [r[n] for r in against], alphas) for n in range(N)]
    return torch.stack([torch.stack(row) for row in rows]), (keep, teachers, against, alphas)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_teachers", [1, 2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_of_an_estimator_equal_sums_written_out(name, num_teachers, alpha):
    student = random_logits(N, V).requires_grad_()
    log_q, _ = a_target(num_teachers, alpha)
    expected = torch.stack([LOSSES[name](log_normalised(student[n]), list(log_q[n]), int(IDS[n])) for n in range(N)])
    (expected_gradient,) = torch.autograd.grad(expected.mean(), student)
    found = estimator_of(name, K)(student, log_q, IDS)
    (gradient,) = torch.autograd.grad(found.mean(), student)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_the_written_out_losses_are_different_from_each_other():
    """The control of the test above: no estimator would pass as another one."""
    student, (log_q, _) = random_logits(N, V), a_target(1, 2.0)
    found = {name: torch.stack([loss(log_normalised(student[0]), list(log_q[0]), 3)]) for name, loss in LOSSES.items()}
    assert len({round(float(value), 3) for value in found.values()}) == len(LOSSES)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_closed_form_of_a_gradient_is_what_autograd_makes_of_the_formula(name, alpha):
    student, (log_q, _) = random_logits(N, V).requires_grad_(), a_target(2, alpha)
    (expected,) = torch.autograd.grad(estimator_of(name, K)(student, log_q, IDS).sum(), student)
    given = (student.detach().log_softmax(-1), log_q.clone(), IDS)
    kept = [tensor.clone() for tensor in given]
    found = gradient_of(name, K)(*given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(*pair) for pair in zip(given, kept, strict=True))  # what it was given is as it was
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("name", [*LOSSES, "hidden"])
def test_the_importance_of_each_token_multiplies_its_loss(name):
    """The control: without it the gradient is another one. What is logged of a token does not know its importance."""
    weight, weights = random_logits(V, H, seed=1), torch.linspace(0.1, 4.9, N, dtype=torch.float64)
    log_q, _ = a_target(1, 1.25)
    mixed = random_logits(N, H, seed=3)
    own = torch.stack([log_normalised(row)[int(IDS[n])] for n, row in enumerate(torch.tanh(random_logits(N, H)) @ weight.T)])
    found = {}
    for given in (None, own - weights.log()):
        made_from = random_logits(N, H).requires_grad_()
        hidden, options = torch.tanh(made_from), {"num_tokens": N, "chunk_tokens": 3, "engine_log_probs": given}

        def of_target(rows, _):
            return log_q[rows].clone()

        if name == "hidden":
            statistics = backward_through_hidden(hidden, mixed, IDS, lambda h: h @ weight.T, of_target, torch.arange(N), **options)
        else:
            options |= {"gradient_of_logits": gradient_of(name, K)}
            statistics = backward_in_chunks(hidden, IDS, lambda h: h @ weight.T, of_target, **options)
        found[given is not None] = (statistics, made_from.grad)
    made_from = random_logits(N, H).requires_grad_()
    hidden = torch.tanh(made_from)
    student = hidden @ weight.T
    losses = [LOSSES[name](log_normalised(student[n]), list(log_q[n]), int(IDS[n])) for n in range(N)] if name != "hidden" else None
    expected = torch.stack(losses) if losses else (hidden - mixed).square().mean(-1) / 2
    ((weights * expected).sum() / N).backward()
    tight = {"rtol": 1e-5, "atol": 1e-7} if name == "hidden" else {"rtol": 1e-9, "atol": 1e-12}  # `hidden` computes in float32
    torch.testing.assert_close(found[True][1], made_from.grad, **tight)
    assert (found[True][1] - found[False][1]).norm() > 0.1 * found[False][1].norm()
    torch.testing.assert_close(found[True][0].kl, found[False][0].kl)


def test_a_chunk_is_projected_after_the_arrays_of_the_one_before_are_gone():
    made_from, weight = random_logits(N, H).requires_grad_(), random_logits(V, H, seed=1)
    log_q, _ = a_target(1, 1.25)
    made, held = [], []

    def of_target(rows, _):
        given = log_q[rows].clone()
        made.append(weakref.ref(given))
        return given

    def head(hidden):
        held.append(sum(target() is not None for target in made))
        return hidden @ weight.T

    options = {"gradient_of_logits": gradient_of("full", K), "num_tokens": N, "chunk_tokens": 2}
    backward_in_chunks(torch.tanh(made_from), IDS, head, of_target, **options)
    assert held == [0, 0, 0, 0]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_of_any_size_give_the_gradient_of_the_whole(name, chunk_tokens):
    """Seven tokens are no multiple of three; three teachers."""
    made_from, weight = random_logits(N, H).requires_grad_(), random_logits(V, H, seed=1)
    log_q, _ = a_target(3, 1.25)
    student = torch.tanh(made_from) @ weight.T
    expected = torch.stack([LOSSES[name](log_normalised(student[n]), list(log_q[n]), int(IDS[n])) for n in range(N)]).mean()
    (expected_gradient,) = torch.autograd.grad(expected, made_from)
    options = {"gradient_of_logits": gradient_of(name, K), "num_tokens": N, "chunk_tokens": chunk_tokens}
    statistics = backward_in_chunks(torch.tanh(made_from), IDS, lambda h: h @ weight.T, lambda rows, _: log_q[rows].clone(), **options)
    torch.testing.assert_close(made_from.grad, expected_gradient, rtol=1e-9, atol=1e-12)
    whole = torch.stack([kl(log_normalised(student[n]), list(log_q[n])) for n in range(N)])  # what is logged, whatever the loss is
    torch.testing.assert_close(statistics.kl, whole.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_teachers", [1, 2, 3])
def test_the_sampled_gradient_averaged_over_every_token_is_the_full_gradient(num_teachers, alpha):
    """The expectation itself, Σ_a π_θ(a) ∇loss(a), without chance; test_objective draws."""
    student = random_logits(N, V).requires_grad_()
    log_q, _ = a_target(num_teachers, alpha)
    (full,) = torch.autograd.grad(reverse_kl(student, log_q, IDS).sum(), student)
    expectation = torch.zeros_like(full)
    for a in range(V):
        loss = estimator_of("sampled", K)(student, log_q, torch.full((N,), a))
        expectation += student.softmax(-1)[:, a : a + 1].detach() * torch.autograd.grad(loss.sum(), student)[0]
    torch.testing.assert_close(expectation, full, rtol=1e-9, atol=1e-12)
    assert full.abs().max() > 0.01


def test_the_forward_gradient_is_the_difference_of_the_probabilities():
    student, (log_q, _) = random_logits(N, V).requires_grad_(), a_target(1, 2.0)
    (gradient,) = torch.autograd.grad(estimator_of("forward", K)(student, log_q, IDS).sum(), student)
    torch.testing.assert_close(gradient, student.detach().softmax(-1) - log_q.exp(), rtol=1e-10, atol=1e-13)


def test_cross_entropy_is_torchs():
    student, (log_q, _) = random_logits(N, V).requires_grad_(), a_target(1, 2.0)
    found, expected = estimator_of("cross_entropy", K)(student, log_q, IDS), cross_entropy(student, IDS, reduction="none")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), student)[0] for loss in (found, expected)))


# the buckets of topk


@pytest.mark.parametrize("k", range(1, V + 3))
def test_top_k_is_a_lower_bound_of_full_that_rises_with_k_up_to_it(k):
    student, (log_q, _) = random_logits(N, V), a_target(1, 2.0)
    found, whole = top_k(student, log_q, IDS, k), reverse_kl(student, log_q, IDS)
    assert (found <= whole + 1e-12).all()
    if k >= V - 1:  # the bucket holds one token, or none
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    else:
        assert (found < whole - 1e-3).any()
        assert (found <= top_k(student, log_q, IDS, k + 1) + 1e-12).all()


def test_without_the_bucket_of_all_others_the_gradient_would_be_another():
    """The control: Σ over k tokens alone. It pushes what they have of the mass wherever log π_θ − log q is above −1."""
    student, (log_q, _) = random_logits(N, V).requires_grad_(), a_target(1, 2.0)
    (right,) = torch.autograd.grad(top_k(student, log_q, IDS, K).sum(), student)
    top = log_q.topk(K).indices
    log_p = student.log_softmax(-1).gather(-1, top)
    (wrong,) = torch.autograd.grad((log_p.exp() * (log_p - log_q.gather(-1, top))).sum(), student)
    assert (right - wrong).norm() > 0.2 * right.norm()


def test_top_k_stands_still_where_its_buckets_agree_whatever_is_in_the_tail():
    """And `full` does not: what k tokens do not show cannot be learnt from them."""
    log_q, _ = a_target(1, 2.0)
    tail = torch.ones(N, V, dtype=torch.bool).scatter(-1, log_q.topk(K).indices, value=False)
    student = log_q.clone()
    student[tail] = log_q[tail].view(N, -1).flip(-1).flatten()  # the same mass, on other tokens
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(top_k(student, log_q, IDS, K).sum(), student)
    assert gradient.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(reverse_kl(student, log_q, IDS).sum(), student)
    assert gradient.abs().max() > 1e-3


def test_a_spread_tail_has_the_known_tokens_and_the_students_shape_elsewhere():
    student, (log_q, _) = random_logits(N, V), a_target(1, 1.25)
    for n in range(N):
        top = likeliest(log_q[n])
        known = buckets(list(log_q[n]), top)
        found = spread_tail(student[n : n + 1], torch.tensor([top]), torch.stack(known[:-1])[None], known[-1][None])[0]
        assert [float(found[v]) for v in top] == [float(value) for value in known[:-1]]
        p = student[n].softmax(-1)
        outside = [v for v in range(V) if v not in top]
        share = math.exp(known[-1]) / sum(float(p[v]) for v in outside)
        torch.testing.assert_close(found[outside].exp(), p[outside] * share, rtol=1e-12, atol=0)
        assert math.fsum(found.exp().tolist()) == pytest.approx(1, abs=1e-12)


# the estimator of hidden states


def test_the_hidden_estimator_pulls_by_the_distance_of_hidden_states_alone():
    made_from, weight = random_logits(N, H).requires_grad_(), random_logits(V, H, seed=1)
    target = random_logits(N, H, seed=2)
    hidden = torch.tanh(made_from)
    expected = sum((hidden[n, i] - target[n, i]) ** 2 for n in range(N) for i in range(H)) / (2 * H)
    (expected_gradient,) = torch.autograd.grad(expected / N, made_from)
    torch.testing.assert_close(hidden_distance(hidden, target).sum().double(), expected, rtol=1e-6, atol=0)  # it computes in float32

    measured = torch.tensor([1, 4, 5])
    log_q = (target @ weight.T).log_softmax(-1).float()
    hidden_again = torch.tanh(made_from)
    options = {"measured": measured, "num_tokens": N, "chunk_tokens": 3}
    found = backward_through_hidden(hidden_again, target, IDS, lambda h: (h @ weight.T).float(), lambda rows, _: log_q[rows], **options)
    torch.testing.assert_close(made_from.grad, expected_gradient, rtol=1e-5, atol=1e-8)
    student = hidden.detach() @ weight.T
    for n in measured.tolist():
        log_p = log_normalised(student[n])
        assert float(found.kl[n]) == pytest.approx(float(kl(log_p, list(log_q[n]))), rel=1e-5)
        assert float(found.entropy[n]) == pytest.approx(-float(sum(p.exp() * p for p in log_p)), rel=1e-5)
        assert float(found.log_prob[n]) == pytest.approx(float(log_p[int(IDS[n])]), rel=1e-5)
    unknown = torch.ones(N, dtype=torch.bool).index_fill_(0, measured, value=False)
    assert all(getattr(found, field.name)[unknown].isnan().all() for field in fields(TokenStatistics)[:3])
    of_hidden = (hidden.detach() - target) / (H * N)
    torch.testing.assert_close(found.squared_gradient.double(), of_hidden.square().sum(-1), rtol=1e-5, atol=0)


# who has which part in the target

T, T1, T2, R, R1, R2, START, BIG = "teacher", "one", "two", "base", "one's", "two's", "start", "big base"
CASES = {  # objective.md's table: the aim, λ by reward, what each role's logits count
    "opd": (Aim(R, (Reward(T, R),)), [1.0], {T: 1.0}),
    "exopd": (Aim(R, (Reward(T, R),)), [1.25], {T: 1.25, R: -0.25}),
    "interpolation": (Aim(R, (Reward(T, R),)), [0.5], {T: 0.5, R: 0.5}),
    "control": (Aim(R, (Reward(T, R),)), [0.0], {R: 1.0}),
    "several at once": (Aim(R, (Reward(T1, R), Reward(T2, R))), [1.25, 1.25], {T1: 1.25, T2: 1.25, R: -1.5}),
    "with weights": (Aim(R, (Reward(T1, R, 0.5), Reward(T2, R, 0.25))), [2.0, 2.0], {T1: 1.0, T2: 0.5, R: -0.5}),
    "weights that add up to λ 1": (Aim(R, (Reward(T1, R, 0.5), Reward(T2, R, 0.5))), [1.0, 1.0], {T1: 0.5, T2: 0.5}),
    "a teacher of weight 0": (Aim(R, (Reward(T1, R), Reward(T2, R, 0.0))), [2.0, 2.0], {T1: 2.0, R: -1.0}),
    "a λ each": (Aim(R, (Reward(T1, R), Reward(T2, R))), [1.0, 3.0], {T1: 1.0, T2: 3.0, R: -3.0}),
    "references of their own": (Aim(R, (Reward(T1, R1), Reward(T2, R2))), [2.0, 1.0], {R: 1.0, T1: 2.0, R1: -2.0, T2: 1.0, R2: -1.0}),
    "strong to weak, corrected": (Aim(BIG, (Reward(T, BIG),)), [1.25], {T: 1.25, BIG: -0.25}),
    "decoupled": (Aim(START, (Reward(T, BIG),)), [1.25], {START: 1.0, T: 1.25, BIG: -1.25}),
    "decoupled at λ 1": (Aim(START, (Reward(T, BIG),)), [1.0], {START: 1.0, T: 1.0, BIG: -1.0}),
    "kept close to another one": (Aim(START, (Reward(T, R),)), [0.0], {START: 1.0}),
    "kept close to the teacher": (Aim(T, (Reward(T, R),)), [2.0], {T: 3.0, R: -2.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_coefficients_of_the_table(case):
    aim, alphas, expected = CASES[case]
    assert aim.coefficients(alphas) == pytest.approx(expected)
    assert set(expected) <= set(aim.roles)


@pytest.mark.parametrize("case", CASES)
def test_logits_mixed_by_the_coefficients_are_the_target_of_the_formula(case):
    aim, alphas, expected = CASES[case]
    logits = {role: random_logits(V, seed=ord(role[0]) + len(role)) for role in aim.roles}
    scales = [reward.weight * alpha for reward, alpha in zip(aim.rewards, alphas, strict=True)]
    written = written_out(logits[aim.keep], [logits[r.teacher] for r in aim.rewards], [logits[r.against] for r in aim.rewards], scales)
    mixed = sum(logits[role] * weight for role, weight in aim.coefficients(alphas).items()).log_softmax(-1)
    torch.testing.assert_close(mixed, torch.stack(written), rtol=1e-11, atol=1e-12)
    role = next(iter(expected))  # the control: with any role's part changed it is another distribution
    wrong = sum(logits[r] * (weight + 0.1 * (r == role)) for r, weight in aim.coefficients(alphas).items()).log_softmax(-1)
    assert (wrong - mixed).abs().max() > 0.05


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_teacher_that_is_its_own_reference_is_copied_at_any_lambda(alpha):
    aim = Aim(T, (Reward(T, T),))
    assert aim.coefficients([alpha]) == {T: 1.0}
    assert Aim(R, (Reward(T, T),)).coefficients([alpha]) == {R: 1.0}  # kept close to another one, it teaches nothing at all


def test_a_lambda_of_each_token_is_counted_token_by_token():
    aim, _, _ = CASES["decoupled"]
    alphas = torch.tensor([[1.0], [2.0], [0.0]])
    found = aim.coefficients([alphas])
    assert {role: torch.as_tensor(part).flatten().tolist() for role, part in found.items()} == {
        START: [1.0],
        T: [1.0, 2.0, 0.0],
        BIG: [-1.0, -2.0, 0.0],
    }
