r"""The whole method, as pure functions: no model, no files (G-OPD / ExOPD, arXiv 2602.12125).

At a state s (a prompt plus what the *student* has sampled so far) the student π_θ is brought to the target

    log q(·|s) = log π_kl(·|s) + Σ_i λ_i · [log π_Ti(·|s) − log π_ri(·|s)] − log Z(s)
    loss       = mean over response tokens of KL(π_θ(·|s) ‖ q(·|s))

With one teacher and π_kl = π_r = π_0 (the base, adapters off) this is q ∝ π_T^λ · π_0^(1−λ): λ = 0 is the base, λ = 1
the expert, λ > 1 beyond it. The KL is the reverse one: the student comes first.

All roles share one frozen output head W, and log-normalisers are constant over the vocabulary, so the target is one
projection: q = softmax(W · (λ h_T + (1−λ) h_0) + b). `mixing_weights` gives those coefficients; `target.py` uses them.

N is the number of tokens, V the size of the vocabulary. Every row speaks of one response token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def mixing_weights(alpha: float) -> dict[str, float]:
    """How much of the logits (or hidden states) of each role is in the target; a role with weight 0 is never run.

    λ = 1 needs no reference and λ = 0 needs no teacher.
    """
    weights = {"teacher": float(alpha), "reference": 1.0 - float(alpha)}
    return {role: weight for role, weight in weights.items() if weight != 0}


def target_log_probs(
    logits_kl: Tensor, logits_teachers: Sequence[Tensor], logits_rewards: Sequence[Tensor], alphas: Sequence[float]
) -> Tensor:
    """log q in its general form, from unnormalised logits.

    Args:
        logits_kl: (N, V) what the student is kept close to, π_kl.
        logits_teachers: one (N, V) per teacher i, π_Ti.
        logits_rewards: one (N, V) per teacher i, the policy π_ri that its reward is measured against.
        alphas: λ_i, one per teacher.

    Returns:
        (N, V) float, normalised over V.
    """
    logits = logits_kl
    for alpha, teacher, reward_ref in zip(alphas, logits_teachers, logits_rewards, strict=True):
        logits = logits + alpha * (teacher - reward_ref)
    return logits.log_softmax(-1)


class _ReverseKL(torch.autograd.Function):
    """KL(π_θ ‖ q) per token, with its gradient π_θ ⊙ (d − Σ π_θ d), d = log π_θ − log q, made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_q: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)  # (N, V)
        p = log_p.exp()
        difference = log_p - log_q  # (N, V)
        kl = (p * difference).sum(-1)  # (N,)
        ctx.save_for_backward(p.mul_(difference.sub_(kl.unsqueeze(-1))))  # the gradient, in the memory of p
        return kl

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(-1), None


def reverse_kl(logits: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """The `full` estimator: exact KL(π_θ ‖ q) of every state.

    Args:
        logits: (N, V) of the student, unnormalised.
        log_q: (N, V) of the target, normalised.
        ids: (N,) the sampled tokens; not needed here.

    Returns:
        (N,) in nats, each ≥ 0.
    """
    return _ReverseKL.apply(logits, log_q)  # type: ignore[no-any-return, no-untyped-call]


def sampled(logits: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """The `sampled` estimator: a loss whose gradient is the paper's token-level policy gradient (eq. 14).

    The advantage of the sampled token a is log q(a) − log π_θ(a), without gradient. It is the paper's
    λ(log π_T − log π_0)(a) − (log π_θ − log π_0)(a) less log Z(s), which does not depend on a: the same expected
    gradient, which is that of `reverse_kl`, at a lower variance. Arguments as for `reverse_kl`; returns (N,).
    """
    log_p = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)  # (N,)
    advantage = log_q.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - log_p.detach()  # (N,)
    return -advantage * log_p


Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
ESTIMATORS: dict[str, Estimator] = {"full": reverse_kl, "sampled": sampled}
