"""Tokens that another engine drew are weighted by how likely the student finds them, so that they teach what its own would."""

from dataclasses import replace

import pytest
import torch

from gopd_merge.distill.backbone import REFERENCE, STUDENT, expert
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.fused import backward_in_chunks
from gopd_merge.distill.metrics import domain_sums, step_metrics
from gopd_merge.distill.objective import MOST_IMPORTANT, gradient_of, importance
from gopd_merge.distill.rollout import generate, joined
from gopd_merge.distill.target import Scale

ALPHAS = {"math": 1.5, "code": 1.5}
DOMAINS = list(ALPHAS)


@pytest.fixture(scope="module")
def rollout(float_backbone, questions):
    return generate(float_backbone, STUDENT, *questions, 24, range(4))


@pytest.fixture(scope="module")
def told(float_backbone, rollout):
    """told(shift): the rollout as of an engine whose log-probs are the student's own, and `shift` (N,) nats more."""
    with torch.no_grad():
        hidden = rollout.predicting(float_backbone.hidden(STUDENT, rollout.ids, rollout.attention_mask))
        own = float_backbone.logits(hidden).log_softmax(-1).gather(-1, rollout.response_ids().unsqueeze(-1)).squeeze(-1)

    def make(shift):
        log_probs = torch.zeros(rollout.response_mask.shape).masked_scatter(rollout.response_mask, own + shift)
        return replace(rollout, sampled_log_probs=log_probs)

    return make


def logged(rollout, target, statistics):
    """What metrics.jsonl has of a step's importance."""
    found = step_metrics(domain_sums(rollout, target, statistics))
    return {name: value for name, value in found.items() if name.startswith("importance")}


def noise(count):
    """Shifts of both signs, some of them beyond the limit."""
    return 1.5 * torch.randn(count, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("estimator", ["full", "sampled"])
def test_each_tokens_loss_is_weighted_as_by_plain_autograd(
    float_backbone, adapters, rollout, told, take_step, step_apart, apart, log_probs_apart, estimator
):
    drawn = told(noise(rollout.num_tokens))
    statistics, gradient, aim = take_step(plain_cast(float_backbone, DOMAINS), drawn, Scale(ALPHAS), estimator)
    base = adapters / "tiny-base"
    with torch.no_grad():
        reference = log_probs_apart(apart(base), rollout, 512)
        by_domain = {d: log_probs_apart(apart(base, adapters / f"{d}.lora"), rollout, 512) for d in DOMAINS}
    lengths = rollout.response_mask.sum(1)
    token_domain = [d for d, length in zip(rollout.domains, lengths.tolist(), strict=True) for _ in range(length)]
    teacher = torch.stack([by_domain[domain][row] for row, domain in enumerate(token_domain)])
    log_q = (1.5 * teacher - 0.5 * reference).log_softmax(-1)
    ids, engine = rollout.response_ids().unsqueeze(-1), drawn.engine_log_probs().double()
    weights = []

    def loss(log_p, log_q, weighted=True):
        own, target = (x.gather(-1, ids).squeeze(-1) for x in (log_p, log_q))
        weights.append((own.detach() - engine).exp().clamp(max=5))
        plain = (log_p.exp() * (log_p - log_q)).sum(-1) if estimator == "full" else -(target - own.detach()) * own
        return plain * weights[-1] if weighted else plain

    kl, expected = step_apart(float_backbone, base, rollout, log_q, loss)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(statistics.kl.double(), kl, rtol=1e-3, atol=2e-5)  # the distance itself is not weighted
    _, unweighted = step_apart(float_backbone, base, rollout, log_q, lambda log_p, log_q: loss(log_p, log_q, weighted=False))
    assert (gradient - unweighted).norm() > 0.1 * expected.norm()  # the control
    found = logged(drawn, aim, statistics)
    assert found["importance_mean"] == pytest.approx(float(weights[0].mean()), rel=1e-4)
    assert found["importance_clipped"] == pytest.approx(float((weights[0] == 5).double().mean()))
    assert 0 < found["importance_clipped"] < 0.5


@pytest.mark.parametrize("estimator", ["full", "sampled", "hidden"])
def test_an_engine_that_agrees_changes_nothing(float_backbone, rollout, told, take_step, estimator):
    cast, exact = plain_cast(float_backbone, DOMAINS), told(torch.zeros(rollout.num_tokens))
    plain, plain_gradient, plain_aim = take_step(cast, rollout, Scale(ALPHAS), estimator)
    statistics, gradient, aim = take_step(cast, exact, Scale(ALPHAS), estimator)
    assert (gradient - plain_gradient).norm() < 1e-5 * plain_gradient.norm()
    assert logged(rollout, plain_aim, plain) == {}
    assert logged(exact, aim, statistics) == {"importance_mean": pytest.approx(1, abs=1e-4), "importance_clipped": 0.0}
    half = told(torch.full((rollout.num_tokens,), 0.5).log().neg())  # drawn twice as often as the student would: half the weight
    _, halved, _ = take_step(cast, half, Scale(ALPHAS), estimator)
    assert (halved - 0.5 * plain_gradient).norm() < 1e-4 * plain_gradient.norm()


def test_weighted_draws_of_another_policy_give_the_gradient_of_the_students_own():
    """One state, 13 tokens, 200,000 draws from a policy that is not the student's: the policy gradient against the exact KL's."""
    generator = torch.Generator().manual_seed(0)
    head, state, policy, target = (torch.randn(*shape, generator=generator) for shape in ((13, 6), (1, 6), (13,), (13,)))
    log_q, own = target.log_softmax(-1), (state[0] @ head.T).softmax(-1)
    log_b = (0.25 * own + 0.75 * policy.softmax(-1)).log()  # no token is more than four times as likely for the student
    ids = log_b.exp().multinomial(200_000, replacement=True, generator=generator)
    assert (own / log_b.exp()).max() < MOST_IMPORTANT  # the limit cuts nothing

    def gradient(estimator, ids, engine=None):
        leaf = state.clone().requires_grad_()
        rows = leaf.expand(len(ids), -1)
        of_logits, count = gradient_of(estimator, 13), len(ids)
        backward_in_chunks(rows, ids, lambda h: h @ head.T, lambda at, x: log_q.repeat(len(x), 1), of_logits, count, 50_000, engine)
        return leaf.grad[0]

    exact = gradient("full", ids[:1])
    assert (gradient("sampled", ids, log_b[ids]) - exact).norm() < 0.03 * exact.norm()
    assert (gradient("sampled", ids) - exact).norm() > 0.1 * exact.norm()  # the control: as if the student had drawn them


def test_a_weight_is_the_ratio_and_five_at_most():
    found = importance(torch.tensor([-1.0, -1.0, -1.0, -1.0]), torch.tensor([-1.0, 0.0, -2.0, -90.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.367879, 2.718282, 5.0]))
    assert not importance(torch.zeros(1, requires_grad=True), torch.zeros(1)).requires_grad


def test_log_probs_of_an_engine_follow_their_rows(float_backbone, told, rollout):
    drawn = told(noise(rollout.num_tokens))
    parts = [drawn.rows(start, start + 2) for start in (0, 2)]
    assert torch.equal(torch.cat([part.engine_log_probs() for part in parts]), drawn.engine_log_probs())
    back = joined(parts[::-1], [2, 3, 0, 1], float_backbone.tokenizer.pad_token_id)
    assert torch.equal(back.engine_log_probs(), drawn.engine_log_probs())
    assert rollout.engine_log_probs() is None
    assert joined([parts[0], rollout.rows(2, 4)], [0, 1, 2, 3], 0).engine_log_probs() is None


def test_the_bare_roles_draw_their_own_tokens(float_backbone, questions):
    """What is drawn here needs no weights."""
    for role in (REFERENCE, expert("math")):
        assert generate(float_backbone, role, *questions, 4, range(4)).sampled_log_probs is None
