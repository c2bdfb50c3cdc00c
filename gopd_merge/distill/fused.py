"""The loss and its gradient in chunks of tokens: no (B, T, V) tensor ever exists, and autograd sees none of (n, V).

A chunk is projected to the vocabulary once for the student and once for the target. Its statistics and the gradient with respect to its
logits follow in closed form, a few rows at a time, which stay in the processor's cache; the gradient takes the target's place, so that two
(n, V) tensors are all there is. What is left is one (N, H) gradient to send back through the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gopd_merge.distill.objective import OfLogits, hidden_distance, importance
from gopd_merge.distill.sizes import CACHED_BLOCK, LARGE_BLOCK


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

    def of(self, rows: Tensor) -> "TokenStatistics":
        """Those rows, in that order."""
        return TokenStatistics(*(getattr(self, field.name)[rows] for field in fields(TokenStatistics)))


def backward_in_chunks(
    hidden: Tensor,
    ids: Tensor,
    head: Callable[[Tensor], Tensor],
    target_log_probs: Callable[[slice, Tensor], Tensor],
    gradient_of_logits: OfLogits,
    num_tokens: int,
    chunk_tokens: int,
    engine_log_probs: Tensor | None = None,
) -> TokenStatistics:
    """Add the gradient of `sum(loss) / num_tokens` to everything that made `hidden` (and to the head, if it trains).

    Args:
        hidden: (N, H) last hidden states of the student, with their graph.
        ids: (N,) the sampled tokens.
        head: (n, H) -> (n, V) the student's logits, float32.
        target_log_probs: (slice of N, the student's logits (n, V)) -> (n, V) log q of these tokens, float32, in memory of its own.
        gradient_of_logits: the loss's, of `objective.gradient_of`.
        num_tokens: response tokens of the whole step, not of this micro-batch, so that splitting changes nothing.
        chunk_tokens: rows projected at once; changes memory, not the result.
        engine_log_probs: (N,) of the sampled tokens as another engine drew them: each token's loss is multiplied by its importance.
    """
    gradient = torch.empty_like(hidden)
    statistics = []
    for start in range(0, len(hidden), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        chunk = hidden[rows].detach().requires_grad_()  # (n, H)
        logits = head(chunk)  # (n, V), with the head's graph alone
        with torch.no_grad():
            engine = None if engine_log_probs is None else engine_log_probs[rows]
            log_q = target_log_probs(rows, logits.detach())  # (n, V)
            found, of_logits = _in_blocks(logits.detach(), log_q, ids[rows], gradient_of_logits, num_tokens, engine)
        torch.autograd.backward(logits, of_logits)
        assert chunk.grad is not None
        gradient[rows] = chunk.grad
        statistics.append(TokenStatistics(*found, chunk.grad.float().square().sum(-1)))
        del logits, log_q, of_logits  # before the next chunk's are made
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
    chunk_tokens: int,
    engine_log_probs: Tensor | None = None,
) -> TokenStatistics:
    """The same for the estimator `hidden`, without any projection but that of the tokens `measured` (M,), for the statistics.

    Tokens that another engine drew are projected all the same, for their importance.

    Args:
        mixed: (N, H) the target's mixed hidden states.
        target_log_probs: (indices (M,), the student's logits (M, V)) -> (M, V) log q.
        The others as for `backward_in_chunks`.
    """
    leaf = hidden.detach().requires_grad_()
    loss = hidden_distance(leaf, mixed)  # (N,)
    if engine_log_probs is not None:
        with torch.no_grad():
            chunks = zip(torch.split(leaf, chunk_tokens), torch.split(ids, chunk_tokens), strict=True)
            log_probs = [head(part).log_softmax(-1).gather(-1, of.unsqueeze(-1)).squeeze(-1) for part, of in chunks]
        loss = loss * importance(torch.cat(log_probs), engine_log_probs)
    torch.autograd.backward(loss.sum() / num_tokens)
    assert leaf.grad is not None
    torch.autograd.backward(hidden, leaf.grad)
    unknown = torch.full((4, len(hidden)), float("nan"), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    with torch.no_grad():
        logits = head(leaf[measured])
        found, _ = _in_blocks(logits, target_log_probs(measured, logits), ids[measured])
        unknown[:3, measured] = torch.stack(found).to(unknown.dtype)
        unknown[3] = leaf.grad.float().square().sum(-1)
    return TokenStatistics(*unknown)


def normalise_(logits: Tensor) -> Tensor:
    """(n, V) unnormalised logits become log-probabilities where they are. Returns them."""
    for block in torch.split(logits, _block_rows(logits)):
        block.copy_(block.log_softmax(-1))
    return logits


def _in_blocks(
    logits: Tensor,
    log_q: Tensor,
    ids: Tensor,
    gradient_of_logits: OfLogits | None = None,
    num_tokens: int = 1,
    engine_log_probs: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """KL, entropy and log-probability of every row (n,); and log_q's memory, in which now stands the gradient, its part of the mean."""
    found = []
    rows = _block_rows(logits)
    for start in range(0, len(logits), rows):
        at = slice(start, start + rows)
        log_p = logits[at].log_softmax(-1)  # (b, V)
        of_target, sampled = log_q[at], ids[at]
        p = log_p.exp()
        kl = (log_p - of_target).mul_(p).sum(-1).clamp(min=0)  # rounding can make a KL of zero slightly negative
        log_prob = log_p.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
        found.append((kl, -p.mul_(log_p).sum(-1), log_prob))
        if gradient_of_logits is not None:
            factor = torch.full_like(log_prob, 1 / num_tokens)  # (b,)
            if engine_log_probs is not None:
                factor *= importance(log_prob, engine_log_probs[at])
            of_target.copy_(gradient_of_logits(log_p, of_target, sampled).mul_(factor.unsqueeze(-1)))
    kl, entropy, log_probs = (torch.cat(column) for column in zip(*found, strict=True))
    return (kl, entropy, log_probs), log_q


def _block_rows(logits: Tensor) -> int:
    """How many rows are worked on at once."""
    block = CACHED_BLOCK if logits.device.type == "cpu" else LARGE_BLOCK
    return max(1, block // (logits.shape[-1] * logits.element_size()))
