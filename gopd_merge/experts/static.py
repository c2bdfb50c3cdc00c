"""Merging by arithmetic on the experts' updates: the rivals.

Everything works on the exact update ΔW = scale · B · A in float32, never on A and B apart: averaging those is not averaging the updates.
A module that an expert does not adapt is its zero update there: an average and a sum count the zero, while sign election passes over it,
so that TIES, DARE and SCE take such a module undiminished from the experts that do adapt it.

Densities are shares of each weight matrix, as in PEFT and mergekit. The TIES paper trims a task vector as a whole, over all matrices.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, prune
from torch import Tensor

from gopd_merge.experts.deltas import Update, Updates, factored, modules_of, stacked, truncated

Parameters = dict[str, float | int]
MAX_RANK = 256  # of the factors in which a merge of full rank is written


@dataclass(frozen=True)
class Merged:
    """A merge as updates. `lost`: share of its squared Frobenius norm, over all modules, that does not fit an adapter of its rank."""

    updates: Updates
    lost: float


@dataclass(frozen=True)
class Rival:
    """A static merge and the parameters that are tried on the validation split."""

    name: str
    about: str  # one sentence with its paper
    grid: tuple[Parameters, ...]
    merge: Callable[..., Merged]  # (experts, max_rank, **parameters)

    def build(self, experts: list[Updates], parameters: Parameters, max_rank: int = MAX_RANK) -> Merged:
        """The merge of the experts' updates. Raises ValueError for a density or rank that means nothing."""
        for key, value in parameters.items():
            if not math.isfinite(value) or (key == "density" and not 0 < value <= 1) or (key == "rank_multiple" and value <= 0):
                raise ValueError(f"{self.name}: {key} {value}; a density is above 0 and at most 1, a rank multiple above 0")
        return self.merge(experts, max_rank, **parameters)


def weighted_sum(experts: list[Updates], weights: list[float]) -> Updates:
    """Σ w_i ΔW_i, exactly, as updates of the summed rank (PEFT calls this `cat`).

    Weights 1/n give the exact average; one coefficient for all gives task arithmetic.
    """
    result: Updates = {}
    for module in modules_of(experts):
        parts = [(expert[module], weight) for expert, weight in zip(experts, weights, strict=True) if module in expert]
        result[module] = Update(
            a=torch.cat([update.a for update, _ in parts], dim=0),  # (Σ r, in)
            b=torch.cat([update.b * weight for update, weight in parts], dim=1),  # (out, Σ r)
        )
    return result


def average(experts: list[Updates], max_rank: int) -> Merged:
    """Σ ΔW_i / n over all n experts."""
    return task_arithmetic(experts, max_rank, 1 / len(experts))


def task_arithmetic(experts: list[Updates], max_rank: int, coefficient: float) -> Merged:
    """Coefficient · Σ ΔW_i."""
    return Merged(weighted_sum(experts, [coefficient] * len(experts)), lost=0.0)


def expo(experts: list[Updates], max_rank: int, factor: float) -> Merged:
    """θ₀ + factor · (θ − θ₀), where θ is the average of what is given: one trained merge, or the experts.

    Of the experts' average that is task arithmetic with coefficient factor / n and nothing else.
    """
    return task_arithmetic(experts, max_rank, factor / len(experts))


def svd(experts: list[Updates], max_rank: int, rank_multiple: float, coefficient: float) -> Merged:
    """Task arithmetic, each module cut to the nearest matrix of `rank_multiple` times the largest rank of an expert."""
    rank = min(max_rank, max(1, round(rank_multiple * max(len(update.a) for expert in experts for update in expert.values()))))
    whole = weighted_sum(experts, [coefficient] * len(experts))
    return _collected((module, *truncated(update, rank)) for module, update in whole.items())


def ties(experts: list[Updates], max_rank: int, density: float, coefficient: float) -> Merged:
    """Coefficient times the sign-elected mean of the updates, each trimmed to its largest elements."""

    def combine(deltas: Tensor) -> Tensor:
        return elected_mean(trimmed(deltas, density, "magnitude"))

    return _dense(experts, max_rank, coefficient, combine)


def dare_ties(experts: list[Updates], max_rank: int, density: float, coefficient: float, seed: int) -> Merged:
    """TIES on updates whose elements were dropped at random and the rest scaled by 1 / density.

    What is dropped goes by the seed and the position of an expert in the list: another order is another draw.
    """

    def combine(deltas: Tensor) -> Tensor:
        return elected_mean(trimmed(deltas, density, "random"))

    with torch.random.fork_rng():  # PEFT draws from the global generator
        torch.manual_seed(seed)
        return _dense(experts, max_rank, coefficient, combine)


def sce(experts: list[Updates], max_rank: int, density: float, coefficient: float) -> Merged:
    """Coefficient times the mean by select, calculate, erase."""
    return _dense(experts, max_rank, coefficient, lambda deltas: selected_mean(deltas, density))


def trimmed(deltas: Tensor, density: float, by: str) -> Tensor:
    """Each of the (n, out, in) updates with `density` of its elements left, the largest or by chance (then scaled by 1 / density)."""
    if density == 1:
        return deltas
    return torch.stack([prune(delta, density, method=by, rescale=by == "random") for delta in deltas])


def elected_mean(deltas: Tensor) -> Tensor:
    """Per element of (n, out, in): the sign with the larger total, and the mean of the updates that have it. Zeros have no vote."""
    elected: Tensor = disjoint_merge(deltas, calculate_majority_sign_mask(deltas, method="total"))
    return elected


def selected_mean(deltas: Tensor, density: float) -> Tensor:
    """SCE of (n, out, in) updates. Where all are equal nothing varies, and only density 1 selects anything.

    Select: the `density` of elements, of those on which the experts differ, that vary most between them. Calculate: an expert's weight
    is its share of the squares that are left. Erase: signs against the elected one, then the weighted mean of the rest, as mergekit has
    it. (Its guard against dividing by zero also makes the weights of updates below 1e-3 equal; here they are theirs at any scale.)
    """
    if density < 1:
        variance = deltas.var(dim=0, correction=0).flatten()
        chosen = torch.zeros_like(variance)
        chosen[variance.topk(int(density * int(variance.count_nonzero()))).indices] = 1
        deltas = deltas * chosen.view(deltas.shape[1:])
    squares = deltas.double().square().sum(dim=(1, 2))  # (n,)
    weights = (squares / squares.sum().clamp_min(torch.finfo(torch.float64).tiny)).float().view(-1, 1, 1)
    kept: Tensor = weights * calculate_majority_sign_mask(deltas, method="total")
    return (deltas * kept).sum(dim=0) / kept.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)


def _dense(experts: list[Updates], max_rank: int, coefficient: float, combine: Callable[[Tensor], Tensor]) -> Merged:
    """Coefficient · combine(updates (n, out, in)) as factors. One module is dense at a time, so memory is a module's, not the model's."""
    return _collected((module, *factored(coefficient * combine(stacked(experts, module)), max_rank)) for module in modules_of(experts))


def _collected(parts: Iterable[tuple[str, Update, float]]) -> Merged:
    """From (module, update, squared norm that it misses). The norm of what is kept and of what is missed add up: they are orthogonal."""
    updates, kept, missed = {}, 0.0, 0.0
    for module, update, missed_here in parts:
        updates[module] = update
        kept += float(((update.b.T @ update.b) * (update.a @ update.a.T)).sum(dtype=torch.float64))
        missed += missed_here
    return Merged(updates, missed / (kept + missed) if missed else 0.0)


def _grid(**values: tuple[float, ...]) -> tuple[Parameters, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


COEFFICIENTS = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)
COARSE: dict[str, Any] = {"coefficient": (0.5, 1.0, 1.4, 2.0, 2.8)}
RIVALS = {
    rival.name: rival
    for rival in (
        Rival("average", "The mean of the experts' updates (Wortsman et al. 2022, arXiv 2203.05482).", ({},), average),
        Rival(
            "task_arithmetic",
            "The sum of the experts' updates times one coefficient (Ilharco et al. 2023, arXiv 2212.04089).",
            _grid(coefficient=COEFFICIENTS),
            task_arithmetic,
        ),
        Rival(
            "ties",
            "Each update trimmed to its largest elements, signs elected, the agreeing averaged (Yadav et al. 2023, arXiv 2306.01708).",
            _grid(density=(0.2, 0.5, 0.8), **COARSE),
            ties,
        ),
        Rival(
            "dare_ties",
            "TIES on updates with elements dropped at random and the rest scaled up (Yu et al. 2024, arXiv 2311.03099).",
            _grid(density=(0.3, 0.5, 0.8), **COARSE, seed=(0,)),
            dare_ties,
        ),
        Rival(
            "sce",
            "Elements that vary most between experts, weighted by squared size, minority signs erased (Wan et al. 2024, arXiv 2408.07990).",
            _grid(density=(0.1, 0.5, 1.0), **COARSE),
            sce,
        ),
        Rival(
            "svd",
            "Task arithmetic in an adapter as small as an expert, by truncated SVD (Eckart and Young 1936; PEFT's `svd`).",
            _grid(rank_multiple=(0.5, 1.0), coefficient=(0.7, 1.0, 1.4, 1.8)),
            svd,
        ),
        Rival(
            "expo",
            "The average extrapolated beyond itself, away from the base (Zheng et al. 2025, arXiv 2404.16792).",
            _grid(factor=(1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)),
            expo,
        ),
    )
}
