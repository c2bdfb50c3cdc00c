"""One optimiser step: the student's pass over its own rollout, the loss in chunks, clipping, and what is worth logging."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.fused import TokenStatistics, backward_in_chunks
from gopd_merge.distill.objective import Estimator
from gopd_merge.distill.rollout import Rollout
from gopd_merge.distill.target import Target
from gopd_merge.errors import GopdError


def accumulate_gradient(
    backbone: Backbone, rollout: Rollout, target: Target, estimator: Estimator, micro_batch_size: int, chunk_tokens: int
) -> TokenStatistics:
    """Add the gradient of the step's mean loss to the student's parameters. The micro-batch and chunk size change no value."""
    num_tokens = rollout.num_tokens
    statistics = []
    begin = 0  # the micro-batch's first token among those of the rollout
    for start in range(0, len(rollout.domains), micro_batch_size):
        part = rollout.rows(start, start + micro_batch_size)
        hidden = part.predicting(backbone.hidden(STUDENT, part.ids, part.attention_mask))  # (n, H)

        def target_logits(rows: slice, begin: int = begin, end: int = begin + len(hidden)) -> Tensor:
            return target.logits(backbone, slice(begin + rows.start, min(begin + rows.stop, end)))

        statistics.append(
            backward_in_chunks(hidden, part.response_ids(), backbone.logits, target_logits, estimator, num_tokens, chunk_tokens)
        )
        begin += len(hidden)
    return TokenStatistics(*(torch.cat([getattr(s, name) for s in statistics]) for name in ("kl", "entropy", "log_prob")))


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


def domain_metrics(rollout: Rollout, target: Target, statistics: TokenStatistics) -> Mapping[str, Mapping[str, float | None]]:
    """By domain: the means over its response tokens (nats a token) and its responses' lengths.

    `reward` is log π_T/π_0 and `drift` log π_θ/π_0 of the sampled tokens, on the probed ones; None where λ made one of the
    two passes unnecessary.
    """
    lengths = rollout.response_mask.sum(1)  # (B,)
    drift = statistics.log_prob[target.probed] - target.reference_log_prob  # (S,)
    reward = target.teacher_log_prob - target.reference_log_prob  # (S,)
    metrics = {}
    for domain in sorted(set(rollout.domains)):
        rows = torch.tensor([d == domain for d in rollout.domains], device=lengths.device)  # (B,)
        tokens = rows.repeat_interleave(lengths)  # (N,)
        probed = tokens[target.probed]  # (S,)
        metrics[domain] = {
            "kl_to_target": _mean(statistics.kl[tokens]),
            "reward": _mean(reward[probed]),
            "drift": _mean(drift[probed]),
            "entropy": _mean(statistics.entropy[tokens]),
            "response_length": _mean(lengths[rows].float()),
            "capped": _mean(rollout.capped[rows].float()),
        }
    return metrics


def _mean(values: Tensor) -> float | None:
    mean = float(values.mean())
    return None if math.isnan(mean) else mean
