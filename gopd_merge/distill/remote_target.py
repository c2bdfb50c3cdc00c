"""The target of a token of which a remote teacher tells its k likeliest continuations only."""

import math

import torch
from torch import Tensor

TAIL_FLOOR = 1e-6  # what rounding in float32 leaves uncertain of 1 − Σ_k p; a smaller mass of a tail is not known


@torch.no_grad()
def top_k_target(top_ids: Tensor, top_log_probs: Tensor, ref_log_probs: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """log q ∝ λ log π_T + (1−λ) log π_0 on k + 1 buckets: each of the teacher's k likeliest tokens, and all others together.

    The teacher's tail is 1 − Σ_k π_T, the reference's the exact mass that it has outside those k tokens. What this approximates is the
    full target with its tail summed up. Exact are λ = 1 (the teacher, coarse-grained) and λ = 0, and for every λ the ratios of
    the k tokens among each other. The tail as a whole is tilted by the ratio of its two masses instead of token by token: the target's true
    tail is at least as large for λ > 1 and at most as large for 0 < λ < 1 (Hölder), equal where π_T/π_0 is constant in it.

    A tail below `TAIL_FLOOR` counts as that much, for both: against a teacher's mass that is only rounding, a smaller one of the
    reference would look like a reward, and λ > 1 would inflate it.

    Args:
        top_ids: (N, k) tokens, distinct within a row.
        top_log_probs: (N, k) the teacher's log-probabilities of them.
        ref_log_probs: (N, V) log π_0 over the vocabulary, normalised.
        alpha: λ, one number or (N,).

    Returns:
        log q of the k tokens (N, k) and of the tail (N,), normalised over the k + 1 buckets, in the precision of `ref_log_probs`;
        what `objective.spread_tail` takes.
    """
    teacher = top_log_probs.double()
    tail_mass = 1.0 - teacher.exp().sum(-1)  # (N,)
    log_tail = tail_mass.clamp(min=TAIL_FLOOR).log()
    ref_log_tail = ref_log_probs.scatter(-1, top_ids, float("-inf")).logsumexp(-1).double().clamp(min=math.log(TAIL_FLOOR))  # (N,)
    log_teacher = torch.cat([teacher, log_tail.unsqueeze(-1)], dim=-1)  # (N, k + 1)
    log_reference = torch.cat([ref_log_probs.gather(-1, top_ids).double(), ref_log_tail.unsqueeze(-1)], dim=-1)  # (N, k + 1)
    weight = torch.as_tensor(alpha, dtype=torch.float64, device=teacher.device).reshape(-1, 1)  # (1 or N, 1)
    log_q = (weight * log_teacher + (1.0 - weight) * log_reference).log_softmax(-1).to(ref_log_probs.dtype)
    return log_q[:, :-1], log_q[:, -1]
