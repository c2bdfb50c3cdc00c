"""What a student forgets that learns one domain after the other: its distance to each target after that domain's steps, and at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.batches import micro_batches
from gopd_merge.distill.cast import Cast
from gopd_merge.distill.objective import reverse_kl
from gopd_merge.distill.rollout import Rollout, generate, row_seeds
from gopd_merge.distill.target import Scale, Target, score


@dataclass(frozen=True)
class Turn:
    """A domain's last step (from 0), and the prompts that it asks there."""

    step: int
    prompts: Sequence[str]


@dataclass(frozen=True)
class Sizes:
    """The config's, of the same names."""

    max_new_tokens: int
    micro_batch_size: int
    chunk_tokens: int
    top_k: int  # 0 where a server tells no buckets


class Forgetting:
    """Measures without a trace: its answers are drawn from seeds of their own."""

    def __init__(self, cast: Cast, turns: Mapping[str, Turn], sizes: Sizes) -> None:
        self._cast, self._turns, self._sizes = cast, turns, sizes
        self._after_its_turn: dict[str, float] = {}

    def after(self, step: int, scale: Scale) -> dict[str, dict[str, float]]:
        """Look after every step (from 0). Returns KL to the target (nats a token) by domain, after the last step; before it nothing."""
        for domain, turn in self._turns.items():
            if turn.step == step:
                self._after_its_turn[domain] = self._kl(domain, scale)
        last = max(turn.step for turn in self._turns.values())
        if step != last:
            return {}
        at_the_end = {d: self._after_its_turn[d] if turn.step == last else self._kl(d, scale) for d, turn in self._turns.items()}
        return {d: {"after_its_turn": self._after_its_turn[d], "at_the_end": at_the_end[d]} for d in self._turns}

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far, as JSON can hold it."""
        return dict(self._after_its_turn)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self._after_its_turn = dict(state)

    def _kl(self, domain: str, scale: Scale) -> float:
        """On answers of the student as it is now."""
        sizes, backbone = self._sizes, self._cast.backbone
        prompts = self._turns[domain].prompts
        seeds = row_seeds("forgetting", domain, count=len(prompts))  # the same draws both times
        domains = [domain] * len(prompts)
        rollout = generate(backbone, STUDENT, prompts, domains, sizes.max_new_tokens, seeds, vocabulary=self._cast.vocabulary)
        target = score(self._cast, rollout, scale, sizes.micro_batch_size, sizes.chunk_tokens, sizes.top_k)
        return kl_to_target(self._cast, rollout, target, sizes)


@torch.no_grad()
def kl_to_target(cast: Cast, rollout: Rollout, target: Target, sizes: Sizes) -> float:
    """Mean KL(π_θ ‖ q) over the response tokens, nats; NaN where a server tells too little of q."""
    parts = []
    for part in micro_batches(rollout, sizes.micro_batch_size):
        hidden = part.predicting(cast.backbone.hidden(STUDENT, part.ids))  # (n, H)
        for begin in range(0, len(hidden), sizes.chunk_tokens):
            chunk = slice(begin, begin + sizes.chunk_tokens)
            logits = cast.student_logits(hidden[chunk])  # (c, V)
            log_q = target.log_probs(cast, part.tokens[chunk], logits, sizes.top_k)  # (c, V)
            parts.append(reverse_kl(logits, log_q, part.response_ids()[chunk]))
    return float(torch.cat(parts).mean())


def forgetting_text(found: Mapping[str, Mapping[str, float]]) -> str:
    """One line of what `Forgetting.after` returned."""
    parts = [f"{domain} {kl['after_its_turn']:.4f} after its own steps, {kl['at_the_end']:.4f} at the end" for domain, kl in found.items()]
    return f"one after the other, KL to the target (nats a token): {'; '.join(parts)}"
