r"""The whole method, as pure functions: no model, no files (G-OPD / ExOPD, arXiv 2602.12125).

At a state s (a prompt plus what the *student* has sampled so far) the student π_θ is brought to the target

    log q(·|s) = log π_kl(·|s) + Σ_i λ_i · [log π_Ti(·|s) − log π_ri(·|s)] − log Z(s)
    loss       = mean over response tokens of KL(π_θ(·|s) ‖ q(·|s))

With one teacher and π_kl = π_r = π_0 (the base, adapters off) this is q ∝ π_T^λ · π_0^(1−λ): λ = 0 is the base, λ = 1
the expert, λ > 1 beyond it. The KL is the reverse one: the student comes first.

Roles that share one frozen output head W need one projection for all, as log-normalisers are constant over the vocabulary:
q = softmax(W · (λ h_T + (1−λ) h_0) + b). `Aim` says which role has which part in the target; `target.py` mixes by it.

Every loss stands here twice: as a formula, for reading and for tests, and as its gradient with respect to the student's logits in closed
form, which `fused.py` runs; a test holds them together.

N is the number of tokens, V the size of the vocabulary. Every row speaks of one response token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reward:
    """One teacher's part in a target: weight · λ · [log π_teacher − log π_against]."""

    teacher: Any  # a role: any hashable value
    against: Any
    weight: float = 1.0


@dataclass(frozen=True)
class Aim:
    """The target in terms of roles: log q = log π_keep + Σ_i w_i λ_i [log π_Ti − log π_ri] − log Z."""

    keep: Any  # the role of π_kl
    rewards: tuple[Reward, ...]

    def coefficients(self, alphas: Sequence[Any]) -> Mapping[Any, Any]:
        """How much of each role's logits is in the target, for one λ per reward: numbers, or (N,) tensors of one a token.

        A role whose part is the number 0 is left out, so that it is never run: λ = 1 needs no reference, λ = 0 no teacher, and
        with the teacher itself as reference every λ is 1.
        """
        found: dict[Any, Any] = {self.keep: 1.0}
        for reward, alpha in zip(self.rewards, alphas, strict=True):
            for role, sign in ((reward.teacher, 1.0), (reward.against, -1.0)):
                found[role] = found.get(role, 0.0) + sign * reward.weight * alpha
        return {role: weight for role, weight in found.items() if isinstance(weight, Tensor) or weight != 0}

    @property
    def roles(self) -> tuple[Any, ...]:
        """Everybody who is in it."""
        return tuple(dict.fromkeys([self.keep, *(role for r in self.rewards for role in (r.teacher, r.against))]))


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


def reverse_kl(logits: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """The `full` estimator: exact KL(π_θ ‖ q) of every state.

    Args:
        logits: (N, V) of the student, unnormalised.
        log_q: (N, V) of the target, normalised.
        ids: (N,) the sampled tokens; not needed here.

    Returns:
        (N,) in nats, each ≥ 0.
    """
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl_gradient(log_p: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """π_θ ⊙ (d − Σ π_θ d) with d = log π_θ − log q: what `reverse_kl` changes by with the student's logits.

    Args:
        log_p: (N, V) of the student, normalised.
        log_q, ids: as for `reverse_kl`.

    Returns:
        (N, V) in memory of its own, which the caller may overwrite.
    """
    p, difference = log_p.exp(), log_p - log_q
    kl = (p * difference).sum(-1, keepdim=True)  # (N, 1)
    return difference.sub_(kl).mul_(p)


def sampled(logits: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """The `sampled` estimator: a loss whose gradient is the paper's token-level policy gradient (eq. 14).

    The advantage of the sampled token a is log q(a) − log π_θ(a), without gradient. It is the paper's
    λ(log π_T − log π_0)(a) − (log π_θ − log π_0)(a) less log Z(s), which does not depend on a: the same expected
    gradient, which is that of `reverse_kl`, at a lower variance. Arguments as for `reverse_kl`; returns (N,).
    """
    log_p = _of_sampled(logits.log_softmax(-1), ids)  # (N,)
    return -_of_sampled(log_q, ids).sub(log_p.detach()) * log_p


def sampled_gradient(log_p: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """A ⊙ (π_θ − 1[a]), A being the advantage of the sampled token a. Arguments and result as for `reverse_kl_gradient`."""
    advantage = (_of_sampled(log_q, ids) - _of_sampled(log_p, ids)).unsqueeze(-1)  # (N, 1)
    return cross_entropy_gradient(log_p, log_q, ids).mul_(advantage)


def forward_kl(logits: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """The `forward` estimator: KL(q ‖ π_θ) of every state, which covers all that q may say where the reverse one seeks its modes.

    Arguments as for `reverse_kl`; returns (N,) in nats, each ≥ 0.
    """
    return (log_q.exp() * (log_q - logits.log_softmax(-1))).sum(-1)


def forward_kl_gradient(log_p: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """π_θ − q. Arguments and result as for `reverse_kl_gradient`."""
    return log_p.exp().sub_(log_q.exp())


def top_k(logits: Tensor, log_q: Tensor, ids: Tensor, k: int) -> Tensor:
    """The `topk` estimator: reverse KL over the target's k likeliest tokens and one bucket for all others.

    By the log-sum inequality a lower bound of `reverse_kl`, equal to it for k = V. Arguments as there; returns (N,).
    """
    return reverse_kl(logits, coarse(logits, log_q, k), ids)


def top_k_gradient(log_p: Tensor, log_q: Tensor, ids: Tensor, k: int) -> Tensor:
    """That of `reverse_kl` with the coarse target. Arguments and result as for `reverse_kl_gradient`."""
    return reverse_kl_gradient(log_p, coarse(log_p, log_q, k), ids)


@torch.no_grad()
def coarse(logits: Tensor, log_q: Tensor, k: int) -> Tensor:
    """The target as if no more were known of it than its k likeliest tokens; see `spread_tail`, whose arguments these are."""
    top = log_q.topk(min(k, log_q.shape[-1] - 1), dim=-1)
    log_tail = log_q.scatter(-1, top.indices, float("-inf")).logsumexp(-1)  # (N,)
    return spread_tail(logits, top.indices, top.values, log_tail)


@torch.no_grad()
def spread_tail(logits: Tensor, top_ids: Tensor, log_q_top: Tensor, log_q_tail: Tensor) -> Tensor:
    """The target of which only k tokens and the mass of all others are known, as a whole distribution: its tail shaped as the student's.

    Reverse KL against it has the value and the gradient of the KL over the k + 1 buckets, Σ_k p log(p/q) + P_tail log(P_tail/Q_tail):
    within the tail log p − log q is the same for every token, log P_tail/Q_tail.

    Args:
        logits: (N, V) of the student, unnormalised.
        top_ids: (N, k) the known tokens.
        log_q_top: (N, k) their log-probabilities.
        log_q_tail: (N,) the log of the mass of all others.

    Returns:
        (N, V) log-probabilities.
    """
    log_p = logits.log_softmax(-1)
    log_p_tail = log_p.scatter(-1, top_ids, float("-inf")).logsumexp(-1)  # (N,)
    return (log_p + (log_q_tail - log_p_tail).unsqueeze(-1)).scatter(-1, top_ids, log_q_top)


def cross_entropy(logits: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """−log π_θ of the given token: what sequence-level distillation and supervised fine-tuning minimise. Returns (N,), nats."""
    return -_of_sampled(logits.log_softmax(-1), ids)


def cross_entropy_gradient(log_p: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """π_θ − 1[a] with the given token a. Arguments and result as for `reverse_kl_gradient`."""
    p = log_p.exp()
    return p.scatter_add_(-1, ids.unsqueeze(-1), p.new_full((len(p), 1), -1.0))


def _of_sampled(values: Tensor, ids: Tensor) -> Tensor:
    """(N, V) to (N,): those of the sampled tokens."""
    return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def hidden_distance(hidden: Tensor, target: Tensor) -> Tensor:
    """The `hidden` estimator (experimental): half the mean squared distance of last hidden states, (N, H) each; returns (N,).

    No vocabulary is involved. Where both are equal so are π_θ and q, but on the way there this is another metric than the KL: it also
    pulls along directions that the head ignores (compare arXiv 2606.06021).
    """
    return 0.5 * (hidden.float() - target).square().mean(-1)


def importance(log_prob: Tensor, engine_log_prob: Tensor) -> Tensor:
    """The weight of a token that another engine, or an earlier student, drew: min(π_θ/π_engine, 5), without gradient.

    With it the mean over such tokens is that over the student's own, as far as the limit and the states they were drawn in let it.

    Args:
        log_prob: (N,) log π_θ of the token.
        engine_log_prob: (N,) that of who drew it.
    """
    return (log_prob.detach() - engine_log_prob).exp().clamp(max=MOST_IMPORTANT)


MOST_IMPORTANT = 5.0  # one token must not drown the others
OfLogits = Callable[[Tensor, Tensor, Tensor], Tensor]
HIDDEN = "hidden"  # its loss is made of hidden states, see `hidden_distance`
ESTIMATORS = ("full", "sampled", "topk", "forward", HIDDEN)
_LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "full": (reverse_kl, reverse_kl_gradient),
    "sampled": (sampled, sampled_gradient),
    "topk": (top_k, top_k_gradient),
    "forward": (forward_kl, forward_kl_gradient),
    "cross_entropy": (cross_entropy, cross_entropy_gradient),
    HIDDEN: (reverse_kl, reverse_kl_gradient),
}


def estimator_of(name: str, k: int) -> OfLogits:
    """The loss (logits, log_q, ids) -> (N,) of that name; `k` is for topk. `hidden` measures as `full` does. Raises KeyError."""
    return _with_k(_LOSSES[name][0], name, k)


def gradient_of(name: str, k: int) -> OfLogits:
    """Its gradient with respect to the logits in closed form, (log_p, log_q, ids) -> (N, V): what training runs. Raises KeyError."""
    return _with_k(_LOSSES[name][1], name, k)


def _with_k(function: Callable[..., Tensor], name: str, k: int) -> OfLogits:
    return partial(function, k=k) if name == "topk" else function
