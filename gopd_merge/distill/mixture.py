"""The target itself, sampled without any student: its roles run side by side on the same prefix, and their logits are mixed at every token.

What a student of a target learns at best is this distribution, so its score says what a merge can reach before anything is trained.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.distill.decoding import Draw, cache_of, decode
from gopd_merge.distill.objective import Aim, Reward
from gopd_merge.distill.rollout import CHAT, Format, Rollout, encode, ends_of, pad_of, plain_generation, rollout_of
from gopd_merge.errors import InputError

Mix = Callable[[Tensor], Tensor]  # (R, B, V) float32 logits of R roles -> (B, V) unnormalised logits of the target


def expert_and_base(domain: str, alpha: float) -> tuple[list[str], Mix]:
    """The roles of q ∝ π_T^λ · π_0^(1−λ), and how their logits are mixed; a role that has no part in it is not among them."""
    weights = Aim(REFERENCE, (Reward(expert(domain), REFERENCE),)).coefficients([alpha])
    roles = [str(role) for role in weights]

    def mix(logits: Tensor) -> Tensor:
        return torch.einsum("r,rbv->bv", logits.new_tensor(list(weights.values())), logits)

    return roles, mix


@torch.no_grad()
def generate_mixture(
    backbone: Backbone,
    roles: Sequence[str],
    mix: Mix,
    prompts: Sequence[str],
    domains: Sequence[str],
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    form: Format = CHAT,
    stop: Sequence[str] = (),
) -> Rollout:
    """Sample one response to each prompt from the target that `mix` makes of the roles' logits; the rest as in `rollout.generate`.

    With one role and no mixing it draws the very tokens that `generate` draws from the same seeds.

    Args:
        backbone: with all the roles on it.
        roles: R adapters' names, or REFERENCE. Each runs every prompt, in one mixed batch of R·B rows.
        mix: (R, B, V) logits, in the order of `roles`, to the (B, V) unnormalised logits of the target.
        prompts: B texts.
        domains: B names, for the rollout.
        max_new_tokens: the length at which a response is cut.
        seeds: B, what each response is drawn from.
        temperature: of the target; 0 is greedy.
        form: how a prompt's text reaches the model.
        stop: texts that end a response.

    Raises:
        InputError: the roles cannot run in one batch.
        GopdError: the target is no distribution, as logits are not finite.
    """
    if not backbone.can_mix:
        raise InputError(
            f"{' and '.join(roles)}: cannot run in one batch, as an expert uses DoRA or has saved modules, so their mixture cannot be "
            "sampled; choose α by gopd-merge sweep, or give it as a number"
        )
    ids, mask = encode(backbone, prompts, form)  # (B, P)
    draw, ends = Draw(seeds, temperature, backbone.device, "lower α"), ends_of(backbone, stop)
    with plain_generation(backbone, ids.shape[1] + max_new_tokens) as options, float_logits(backbone):
        options["logits_processor"] = LogitsProcessorList([_OneToken(len(roles), mix, draw)])

        def run(**call: Any) -> Tensor:
            rows = [role for role in roles for _ in range(len(call["input_ids"]) // len(roles))]
            with backbone.mixed_batch(rows):
                out: Tensor = backbone.peft.generate(**call, **options)  # (R·b, P + t)
            return out

        found = decode(run, ids, mask, max_new_tokens, draw, ends, pad_of(backbone), cache_of(backbone.model), copies=len(roles))
    return rollout_of(found, mask, domains)


class _OneToken(LogitsProcessor):  # type: ignore[misc]
    """(R·b, V) logits, role by role, to scores that leave one token a prompt, the same for all roles: what greedy decoding then takes."""

    def __init__(self, count: int, mix: Mix, draw: Draw) -> None:
        self._count, self._mix, self._draw = count, mix, draw

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = self._mix(scores.float().reshape(self._count, -1, scores.shape[-1]))  # (b, V)
        tokens = self._draw(input_ids, logits).argmax(-1, keepdim=True)  # (b, 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.repeat(self._count, 1), 0.0)


@contextmanager
def float_logits(backbone: Backbone) -> Iterator[None]:
    """Logits projected in float32 where the model has less, as for the target of the training: rounding is amplified by λ + |1 − λ|.

    A head with a LoRA on it computes as it does; there the roles differ in the head itself.
    """
    head = backbone.model.get_output_embeddings()
    if hasattr(head, "lora_A") or head.weight.dtype == torch.float32:
        yield
        return

    def project(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return F.linear(inputs[0].float(), module.weight.float(), None if module.bias is None else module.bias.float())

    handle = head.register_forward_hook(project)
    try:
        yield
    finally:
        handle.remove()
