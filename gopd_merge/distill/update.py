"""One optimiser step: the student's pass over its own rollout, the loss in chunks, balance and clipping."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gopd_merge.config import BASE
from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.batches import micro_batches
from gopd_merge.distill.cast import Cast
from gopd_merge.distill.fused import TokenStatistics, backward_in_chunks, backward_through_hidden
from gopd_merge.distill.objective import HIDDEN, gradient_of
from gopd_merge.distill.rollout import Rollout
from gopd_merge.distill.target import Target


def accumulate_gradient(
    cast: Cast,
    rollout: Rollout,
    target: Target,
    estimator: str,
    micro_batch_size: int,
    chunk_tokens: int,
    top_k: int = 64,
    rows: range | None = None,
    num_tokens: int | None = None,
) -> TokenStatistics:
    """Add the gradient of the step's mean loss to the student's parameters. The micro-batch and chunk size change no value.

    With `rows` only these rows' part of it. `num_tokens` are those of the whole step, where other processes have the rest of it.
    """
    # A server tells k + 1 buckets: other k tokens of that target would mix them up. The loss is then made of the target as it is.
    in_buckets = estimator == "topk" and bool(target.known)
    of_logits = gradient_of("full" if in_buckets else estimator, top_k)
    num_tokens, engine_log_probs = num_tokens or rollout.num_tokens, rollout.engine_log_probs()
    statistics = []
    parts = list(micro_batches(rollout, micro_batch_size, rows))
    with cast.float_heads(), cast.backbone.training():
        for part in parts:
            hidden = part.predicting(cast.backbone.hidden(STUDENT, part.ids))  # (n, H)
            tokens = part.tokens

            def log_q(rows: slice | Tensor, logits: Tensor, tokens: Tensor = tokens) -> Tensor:
                return target.log_probs(cast, tokens[rows], logits, top_k if in_buckets else 0)

            ids, head = part.response_ids(), cast.student_logits
            engine = None if engine_log_probs is None else engine_log_probs[tokens]
            if estimator == HIDDEN:
                measured = torch.isin(tokens, target.probed).nonzero().squeeze(1)
                mixed = target.mixed[BASE][tokens]
                statistics.append(backward_through_hidden(hidden, mixed, ids, head, log_q, measured, num_tokens, chunk_tokens, engine))
            else:
                statistics.append(backward_in_chunks(hidden, ids, head, log_q, of_logits, num_tokens, chunk_tokens, engine))
            del hidden  # before the next micro-batch runs
    found = TokenStatistics.joined(statistics)
    return found.of(torch.cat([part.tokens for part in parts]).argsort()) if parts else found


def accumulate_balanced(
    cast: Cast,
    rollout: Rollout,
    target: Target,
    estimator: str,
    micro_batch_size: int,
    chunk_tokens: int,
    top_k: int = 64,
    num_tokens: int | None = None,
    domains: Sequence[str] | None = None,
    summed: Callable[[list[Tensor]], list[Tensor]] = lambda gradient: gradient,
) -> tuple[TokenStatistics, dict[str, float]]:
    """The same with every domain's gradient rescaled to their mean norm, so that no teacher drowns the others. Clears what was there.

    The rows of a domain must follow each other. Returns the norms too, as they were before. Of a step that other processes have a part of,
    `domains` are all that it has, and `summed` adds up their gradients.
    """
    parameters = cast.backbone.student_parameters()
    edges = domain_edges(rollout.domains)
    rows = {rollout.domains[begin]: range(begin, end) for begin, end in pairwise(edges)}
    statistics, own = [], {}
    for domain in domains or rows:
        for parameter in parameters:
            parameter.grad = None
        if domain in rows:
            options = (estimator, micro_batch_size, chunk_tokens, top_k, rows[domain], num_tokens)
            statistics.append(accumulate_gradient(cast, rollout, target, *options))
        own[domain] = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    gradients = {domain: summed(gradient) for domain, gradient in own.items()}  # after all that memory may not last for
    norms = {domain: float(torch.nn.utils.get_total_norm(gradient)) for domain, gradient in gradients.items()}
    moved = [norm for norm in norms.values() if norm > 0]
    scales = {domain: sum(moved) / len(moved) / norm if norm > 0 else 1.0 for domain, norm in norms.items()}
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.stack([gradient[index] * scales[domain] for domain, gradient in gradients.items()]).sum(0)
    return TokenStatistics.joined(statistics), norms


def domain_edges(domains: Sequence[str]) -> list[int]:
    """Where runs of one domain begin, and the end."""
    if not domains:
        return []
    return [0, *(i for i in range(1, len(domains)) if domains[i] != domains[i - 1]), len(domains)]


def default_learning_rate(hidden_size: int) -> float:
    """0.002 at the width of the embedded base, where it was chosen, falling with 1/√width to what is usual for LoRA on large bases."""
    return 2e-3 * math.sqrt(128 / hidden_size)


def optimizer_step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    """Clip, step, clear. Returns the gradient norm before clipping; where that is not finite, no step is made."""
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return norm
