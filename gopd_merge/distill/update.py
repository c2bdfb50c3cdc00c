"""One optimiser step: the student's pass over its own rollout, the loss in chunks, clipping, and what is worth logging."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gopd_merge.config import BASE
from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.batches import micro_batches
from gopd_merge.distill.cast import Cast
from gopd_merge.distill.fused import TokenStatistics, backward_in_chunks, backward_through_hidden
from gopd_merge.distill.objective import HIDDEN, MOST_IMPORTANT, gradient_of, importance
from gopd_merge.distill.rollout import Rollout
from gopd_merge.distill.target import Target
from gopd_merge.errors import GopdError

Domains = Mapping[str, Mapping[str, float | None]]  # metrics by domain


def accumulate_gradient(
    cast: Cast,
    rollout: Rollout,
    target: Target,
    estimator: str,
    micro_batch_size: int,
    chunk_tokens: int,
    top_k: int = 64,
    rows: range | None = None,
) -> TokenStatistics:
    """Add the gradient of the step's mean loss to the student's parameters. The micro-batch and chunk size change no value.

    With `rows` only these rows' part of it, of a step of the same number of tokens.
    """
    # A server tells k + 1 buckets: other k tokens of that target would mix them up. The loss is then made of the target as it is.
    in_buckets = estimator == "topk" and bool(target.known)
    of_logits = gradient_of("full" if in_buckets else estimator, top_k)
    num_tokens, engine_log_probs = rollout.num_tokens, rollout.engine_log_probs()
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
) -> tuple[TokenStatistics, dict[str, float]]:
    """The same with every domain's gradient rescaled to their mean norm, so that no teacher drowns the others. Clears what was there.

    The rows of a domain must follow each other. Returns the norms too, as they were before.
    """
    parameters = cast.backbone.student_parameters()
    statistics, gradients = [], {}
    for begin, end in pairwise(domain_edges(rollout.domains)):
        for parameter in parameters:
            parameter.grad = None
        statistics.append(accumulate_gradient(cast, rollout, target, estimator, micro_batch_size, chunk_tokens, top_k, range(begin, end)))
        gradients[rollout.domains[begin]] = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    norms = {domain: float(torch.nn.utils.get_total_norm(gradient)) for domain, gradient in gradients.items()}
    moved = [norm for norm in norms.values() if norm > 0]
    scales = {domain: sum(moved) / len(moved) / norm if norm > 0 else 1.0 for domain, norm in norms.items()}
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.stack([gradient[index] * scales[domain] for domain, gradient in gradients.items()]).sum(0)
    return TokenStatistics.joined(statistics), norms


def domain_edges(domains: Sequence[str]) -> list[int]:
    """Where runs of one domain begin, and the end."""
    return [0, *(i for i in range(1, len(domains)) if domains[i] != domains[i - 1]), len(domains)]


def default_learning_rate(hidden_size: int) -> float:
    """0.002 at the width of the embedded base, where it was chosen, falling with 1/√width to what is usual for LoRA on large bases."""
    return 2e-3 * math.sqrt(128 / hidden_size)


def optimizer_step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    """Clip, step, clear. Returns the gradient norm before clipping.

    Raises GopdError when the gradient is not finite; the parameters are then as they were.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise GopdError("the gradient is not finite; lower --learning-rate or --alpha, and see the last lines of metrics.jsonl")
    optimizer.step()
    optimizer.zero_grad()
    return norm


def domain_metrics(rollout: Rollout, target: Target, statistics: TokenStatistics) -> dict[str, dict[str, float | None]]:
    """By domain: the means over its response tokens (nats a token) and its responses' lengths.

    `reward` is log π_T/π_r and `drift` log π_θ/π_kl of the sampled tokens, on the probed ones. `hidden_grad_norm` is the norm of the
    loss's gradient with respect to the domain's hidden states: which teacher pulls how hard. None where λ, the estimator or a remote
    teacher made a number unnecessary or unknown.
    """
    lengths = rollout.response_mask.sum(1)  # (B,)
    drift = statistics.log_prob[target.probed] - target.keep_log_prob  # (S,)
    metrics = {}
    for domain in sorted(set(rollout.domains)):
        rows = torch.tensor([d == domain for d in rollout.domains], device=lengths.device)  # (B,)
        tokens = rows.repeat_interleave(lengths)  # (N,)
        probed = tokens[target.probed]  # (S,)
        metrics[domain] = {
            "kl_to_target": _mean(statistics.kl[tokens]),
            "reward": _mean(target.reward[probed]),
            "drift": _mean(drift[probed]),
            "entropy": _mean(statistics.entropy[tokens]),
            "response_length": _mean(lengths[rows].float()),
            "capped": _mean(rollout.capped[rows].float()),
            "alpha": _mean(target.alpha[tokens]),
            "clipped_share": _mean(target.clipped[probed]),
            "hidden_grad_norm": float(statistics.squared_gradient[tokens].sum().sqrt()),
        }
    return metrics


def importance_metrics(rollout: Rollout, statistics: TokenStatistics) -> dict[str, float | None]:
    """How far the engine that drew the tokens is from the student: their mean weight, and the share that the limit cut. Else nothing."""
    engine_log_probs = rollout.engine_log_probs()
    if engine_log_probs is None:
        return {}
    known = ~statistics.log_prob.isnan()
    weights = importance(statistics.log_prob[known], engine_log_probs[known])
    return {"importance_mean": _mean(weights), "importance_clipped": _mean((weights == MOST_IMPORTANT).float())}


def mean_kl(statistics: TokenStatistics) -> float | None:
    """Over all tokens of a step whose KL to the target is known."""
    return _mean(statistics.kl)


def _mean(values: Tensor) -> float | None:
    """Of those that are known."""
    mean = float(values.nanmean())
    return None if math.isnan(mean) else mean
