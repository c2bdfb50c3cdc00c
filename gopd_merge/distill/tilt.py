"""The target's logits from those of its roles, and λ of each of its tokens: what training and sampling the target have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gopd_merge.distill.objective import Aim
from gopd_merge.distill.reward_scale import bounded_log_ratio, guarded_alpha, token_alpha


@dataclass(frozen=True)
class Rule:
    """What changes λ from token to token."""

    by_token: bool = False  # 1 + (λ − 1) · how far teacher and reference are apart
    deterministic: float | None = None  # probability of its likeliest token above which a teacher is copied, not extrapolated
    bound: float | None = None  # of |log π_T/π_r|, per token of the vocabulary

    @property
    def moves_alpha(self) -> bool:
        """Whether λ depends on the token."""
        return self.by_token or self.deterministic is not None

    def alphas(self, aim: Aim, alphas: Tensor, logits: Mapping[Any, Tensor]) -> Tensor:
        """λ of every token and reward (n, rewards), from the λ that was asked for and the logits (n, V) of all roles of the aim."""
        if not self.moves_alpha:
            return alphas
        columns = []
        for asked, reward in zip(alphas.unbind(-1), aim.rewards, strict=True):
            log_teacher, log_ref = (logits[role].log_softmax(-1) for role in (reward.teacher, reward.against))
            alpha = token_alpha(asked, log_teacher, log_ref) if self.by_token else asked
            columns.append(alpha if self.deterministic is None else guarded_alpha(alpha, log_teacher, self.deterministic))
        return torch.stack(columns, -1)

    def target_logits(self, aim: Aim, alphas: Tensor, logits: Mapping[Any, Tensor]) -> Tensor:
        """(n, V) unnormalised logits of q, from λ of every token and reward (n, rewards) and the logits (n, V) of its roles."""
        columns = list(alphas.T.unsqueeze(-1))  # (n, 1) each
        if self.bound is None:
            parts = aim.coefficients(columns)
            return torch.stack([logits[role] * weight for role, weight in parts.items() if role in logits]).sum(0)
        log_probs = {role: one.log_softmax(-1) for role, one in logits.items()}
        total = log_probs[aim.keep]
        for reward, alpha in zip(aim.rewards, columns, strict=True):
            total = total + reward.weight * alpha * bounded_log_ratio(log_probs[reward.teacher], log_probs[reward.against], self.bound)
        return total


PLAIN = Rule()  # the same λ for every token
