"""What is worth logging of a step: sums by domain, of which the means are made once the sums of all processes are together."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gopd_merge.distill.fused import TokenStatistics
from gopd_merge.distill.objective import MOST_IMPORTANT, importance
from gopd_merge.distill.rollout import Rollout
from gopd_merge.distill.target import Target

Domains = Mapping[str, Mapping[str, float | None]]  # metrics by domain
Sums = Mapping[str, Mapping[str, tuple[float, int]]]  # by domain and metric: the sum of the values that are known, and how many are
KL, GRADIENT = "kl_to_target", "hidden_grad_norm"
IMPORTANCE, CLIPPED, GAP = "importance_mean", "importance_clipped", "engine_gap"


def domain_sums(rollout: Rollout, target: Target, statistics: TokenStatistics) -> dict[str, dict[str, tuple[float, int]]]:
    """Of the metrics of `domain_metrics`, for the domains of this rollout. A gradient's norm is the root of its sum."""
    if not rollout.domains:
        return {}
    lengths = rollout.response_mask.sum(1)  # (B,)
    drift = statistics.log_prob[target.probed] - target.keep_log_prob  # (S,)
    engine_log_probs = rollout.engine_log_probs()
    sums = {}
    for domain in sorted(set(rollout.domains)):
        rows = torch.tensor([d == domain for d in rollout.domains], device=lengths.device)  # (B,)
        tokens = rows.repeat_interleave(lengths)  # (N,)
        probed = tokens[target.probed]  # (S,)
        values = {
            KL: statistics.kl[tokens],
            "reward": target.reward[probed],
            "drift": drift[probed],
            "entropy": statistics.entropy[tokens],
            "response_length": lengths[rows],
            "capped": rollout.capped[rows],
            "alpha": target.alpha[tokens],
            "clipped_share": target.clipped[probed],
            GRADIENT: statistics.squared_gradient[tokens],
        }
        if engine_log_probs is not None:
            weights = importance(statistics.log_prob[tokens], engine_log_probs[tokens])
            values |= {IMPORTANCE: weights, CLIPPED: (weights / MOST_IMPORTANT).floor()}  # 1 at the limit, else 0; unknown stays unknown
            values[GAP] = (statistics.log_prob[tokens] - engine_log_probs[tokens]).abs()
        sums[domain] = {name: _sum(value) for name, value in values.items()}
    return sums


def added(parts: Iterable[Sums]) -> Sums:
    """The sums of several processes as one."""
    total: dict[str, dict[str, tuple[float, int]]] = {}
    for part in parts:
        for domain, sums in part.items():
            known = total.setdefault(domain, {})
            for name, (value, count) in sums.items():
                before, number = known.get(name, (0.0, 0))
                known[name] = (before + value, number + count)
    return {domain: total[domain] for domain in sorted(total)}


def domain_metrics(sums: Sums) -> dict[str, dict[str, float | None]]:
    """By domain: the means over its response tokens (nats a token) and its responses' lengths.

    `reward` is log π_T/π_r and `drift` log π_θ/π_kl of the sampled tokens, on the probed ones. `hidden_grad_norm` is the norm of the
    loss's gradient with respect to the domain's hidden states: which teacher pulls how hard. None where λ, the estimator or a remote
    teacher made a number unnecessary or unknown. Where another engine drew the tokens, `importance_mean` is their mean weight,
    `importance_clipped` the share that its limit cut, and `engine_gap` how far its log-probs are from the student's.
    """
    return {
        domain: {name: math.sqrt(found[name][0]) if name == GRADIENT else _mean(*found[name]) for name in found}
        for domain, found in sums.items()
    }


def step_metrics(sums: Sums) -> dict[str, float | None]:
    """Means over all tokens of a step: the KL to the target, and the importance where another engine drew them."""
    names = [KL, *(name for name in (IMPORTANCE, CLIPPED, GAP) if any(name in found for found in sums.values()))]
    known = {name: [found[name] for found in sums.values()] for name in names}
    return {name: _mean(sum(value for value, _ in parts), sum(count for _, count in parts)) for name, parts in known.items()}


def _sum(values: Tensor) -> tuple[float, int]:
    """Of those that are known, in float64."""
    known = values[~values.isnan()] if values.is_floating_point() else values
    return float(known.double().sum()), len(known)


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
