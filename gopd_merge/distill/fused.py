"""The loss and its gradient in chunks of tokens: no (B, T, V) tensor ever exists.

Each chunk is projected to the vocabulary, its loss and its gradient with respect to the hidden states are computed at once,
and the projection is dropped. What is left is one (N, H) gradient to send back through the model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gopd_merge.distill.objective import Estimator


@dataclass(frozen=True)
class TokenStatistics:
    """Per response token, without gradient, all (N,): row n speaks of the same token everywhere."""

    kl: Tensor  # KL(π_θ ‖ q), nats
    entropy: Tensor  # of π_θ, nats
    log_prob: Tensor  # log π_θ of the sampled token


def backward_in_chunks(
    hidden: Tensor,
    ids: Tensor,
    head: Callable[[Tensor], Tensor],
    target_logits: Callable[[slice], Tensor],
    estimator: Estimator,
    num_tokens: int,
    chunk_tokens: int,
) -> TokenStatistics:
    """Add the gradient of `sum(estimator) / num_tokens` to everything that made `hidden` (and to the head, if it trains).

    Args:
        hidden: (N, H) last hidden states of the student, with their graph.
        ids: (N,) the sampled tokens.
        head: (n, H) -> (n, V) the student's logits, float32.
        target_logits: slice of N -> (n, V) unnormalised logits of the target, float32, without gradient.
        estimator: one of `objective.ESTIMATORS`.
        num_tokens: response tokens of the whole step, not of this micro-batch, so that splitting changes nothing.
        chunk_tokens: rows projected at once; changes memory, not the result.
    """
    gradient = torch.empty_like(hidden)
    statistics = []
    for start in range(0, len(hidden), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        with torch.no_grad():
            log_q = target_logits(rows).log_softmax(-1)  # (n, V)
        chunk = hidden[rows].detach().requires_grad_()  # (n, H)
        logits = head(chunk)  # (n, V)
        torch.autograd.backward(estimator(logits, log_q, ids[rows]).sum() / num_tokens)
        assert chunk.grad is not None
        gradient[rows] = chunk.grad
        statistics.append(_statistics(logits.detach(), log_q, ids[rows]))
    torch.autograd.backward(hidden, gradient)
    kl, entropy, log_prob = (torch.cat(column) for column in zip(*statistics, strict=True))
    return TokenStatistics(kl, entropy, log_prob)


@torch.no_grad()
def _statistics(logits: Tensor, log_q: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = logits.log_softmax(-1)  # (n, V)
    p = log_p.exp()
    return (
        (p * (log_p - log_q)).sum(-1).clamp(min=0),  # rounding can make a KL of zero slightly negative
        -(p * log_p).sum(-1),
        log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1),
    )
