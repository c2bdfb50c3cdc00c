"""The loss and its gradient in chunks of tokens: no (B, T, V) tensor ever exists.

Each chunk is projected to the vocabulary, its loss and its gradient with respect to the hidden states are computed at once,
and the projection is dropped. What is left is one (N, H) gradient to send back through the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gopd_merge.distill.objective import Estimator, hidden_distance


@dataclass(frozen=True)
class TokenStatistics:
    """Per response token, without gradient, all (N,): row n speaks of the same token everywhere. NaN where it was not computed."""

    kl: Tensor  # KL(π_θ ‖ q), nats
    entropy: Tensor  # of π_θ, nats
    log_prob: Tensor  # log π_θ of the sampled token
    squared_gradient: Tensor  # squared norm of the loss's gradient with respect to the token's hidden state

    @staticmethod
    def joined(parts: "list[TokenStatistics]") -> "TokenStatistics":
        """One after the other; of none, no token's."""
        if not parts:
            return TokenStatistics(*torch.empty(len(fields(TokenStatistics)), 0))
        return TokenStatistics(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(TokenStatistics)))


def backward_in_chunks(
    hidden: Tensor,
    ids: Tensor,
    head: Callable[[Tensor], Tensor],
    target_log_probs: Callable[[slice, Tensor], Tensor],
    estimator: Estimator,
    num_tokens: int,
    chunk_tokens: int,
) -> TokenStatistics:
    """Add the gradient of `sum(estimator) / num_tokens` to everything that made `hidden` (and to the head, if it trains).

    Args:
        hidden: (N, H) last hidden states of the student, with their graph.
        ids: (N,) the sampled tokens.
        head: (n, H) -> (n, V) the student's logits, float32.
        target_log_probs: (slice of N, the student's logits (n, V)) -> (n, V) log q of these tokens, float32, without gradient.
        estimator: of `objective.estimator_of`.
        num_tokens: response tokens of the whole step, not of this micro-batch, so that splitting changes nothing.
        chunk_tokens: rows projected at once; changes memory, not the result.
    """
    gradient = torch.empty_like(hidden)
    statistics = []
    for start in range(0, len(hidden), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        chunk = hidden[rows].detach().requires_grad_()  # (n, H)
        logits = head(chunk)  # (n, V)
        with torch.no_grad():
            log_q = target_log_probs(rows, logits.detach())  # (n, V)
        torch.autograd.backward(estimator(logits, log_q, ids[rows]).sum() / num_tokens)
        assert chunk.grad is not None
        gradient[rows] = chunk.grad
        statistics.append(_statistics(logits.detach(), log_q, ids[rows], chunk.grad))
    torch.autograd.backward(hidden, gradient)
    return TokenStatistics.joined(statistics)


def backward_through_hidden(
    hidden: Tensor,
    mixed: Tensor,
    ids: Tensor,
    head: Callable[[Tensor], Tensor],
    target_log_probs: Callable[[Tensor, Tensor], Tensor],
    measured: Tensor,
    num_tokens: int,
) -> TokenStatistics:
    """The same for the estimator `hidden`, without any projection but that of the tokens `measured` (M,), for the statistics.

    Args:
        mixed: (N, H) the target's mixed hidden states.
        target_log_probs: (indices (M,), the student's logits (M, V)) -> (M, V) log q.
        The others as for `backward_in_chunks`.
    """
    leaf = hidden.detach().requires_grad_()
    torch.autograd.backward(hidden_distance(leaf, mixed).sum() / num_tokens)
    assert leaf.grad is not None
    torch.autograd.backward(hidden, leaf.grad)
    unknown = torch.full((4, len(hidden)), float("nan"), device=hidden.device)
    with torch.no_grad():
        logits = head(leaf[measured])
        found = _statistics(logits, target_log_probs(measured, logits), ids[measured], leaf.grad[measured])
        for row, field in enumerate(fields(TokenStatistics)):
            unknown[row, measured] = getattr(found, field.name)
        unknown[3] = leaf.grad.float().square().sum(-1)
    return TokenStatistics(*unknown)


@torch.no_grad()
def _statistics(logits: Tensor, log_q: Tensor, ids: Tensor, gradient: Tensor) -> TokenStatistics:
    log_p = logits.log_softmax(-1)  # (n, V)
    p = log_p.exp()
    return TokenStatistics(
        kl=(p * (log_p - log_q)).sum(-1).clamp(min=0),  # rounding can make a KL of zero slightly negative
        entropy=-(p * log_p).sum(-1),
        log_prob=log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1),
        squared_gradient=gradient.float().square().sum(-1),
    )
