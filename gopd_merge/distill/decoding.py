"""Tokens one after the other, by Transformers' generate(): each row draws its own random numbers, and leaves the batch when it has ended.

An answer depends on its prompt and its seed, not on the rows beside it (but for rounding). So rows may come in any order, be split into
batches or dealt out to several processes, and leave the batch as soon as they have ended.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gopd_merge.errors import GopdError

ENDED = 1 / 8  # of the rows: as soon as so many have ended they are dropped (eval/benchmarks/rollout.py)


@dataclass(frozen=True)
class Decoded:
    """What was made of B prompts."""

    ids: Tensor  # (B, P + T) prompt, then response, padded on the right
    response_mask: Tensor  # (B, T) True on response tokens, the end included
    ended: Tensor  # (B,) False where the length limit cut the response


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise from each row's own generator to its scores: the largest is then a draw from softmax(scores / temperature)."""

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device, advice: str) -> None:
        """One seed a row. At temperature 0 the scores stay as they are. `advice` is what to do about scores that are not finite."""
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._temperature, self._advice = temperature, advice

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits to scores of which the largest is the token. Raises GopdError where they are no distribution."""
        if not scores.amax(-1).isfinite().all():
            raise GopdError(f"the logits are not finite, so no token can be drawn from them; {self._advice}")
        if self._temperature == 0:
            return scores
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return noise.log_().mul_(-self._temperature).add_(scores)  # −log of an exponential variable is a Gumbel one

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self._generators = [self._generators[row] for row in rows.tolist()]


class Ends(StoppingCriteria):  # type: ignore[misc]
    """Notes where each row ends, and stops the call as soon as `enough` of them have."""

    def __init__(self, stop_ids: Sequence[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        """A row ends with one of the tokens, or with the one that completes one of the texts."""
        self._stop_ids = torch.tensor(stop_ids, device=device)
        self._texts = StopStringCriteria(tokenizer, list(stop)) if stop else None
        self.begin(0, 0, 0)

    def begin(self, rows: int, prompt_width: int, enough: int) -> None:
        """Before a call with so many rows; further rows of the batch are copies of them."""
        self._prompt_width, self._enough = prompt_width, enough
        self.widths = torch.zeros(rows, dtype=torch.long, device=self._stop_ids.device)  # prompt and response; 0 where it goes on

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """(rows,) all True or all False."""
        own = input_ids[: len(self.widths)]
        ends = torch.isin(own[:, -1], self._stop_ids)
        if self._texts:  # a text that begins in the prompt is none of the response's
            ends |= self._texts(own[:, self._prompt_width :], scores)
        self.widths = torch.where(ends & (self.widths == 0), own.shape[1], self.widths)
        return (self.widths.count_nonzero() >= self._enough).expand(len(input_ids))


def decode(
    generate: Callable[..., Tensor],
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    draw: Draw,
    ends: Ends,
    pad: int,
    cache: DynamicCache | None,
    copies: int = 1,
) -> Decoded:
    """Responses to B prompts, in calls of `generate` that go on from each other's cache without the rows that have ended.

    Args:
        generate: of a model, with every setting but those that are given to it here.
        ids: (B, P), padded on the left.
        mask: (B, P).
        max_new_tokens: the length at which a response is cut.
        draw: how tokens are drawn, for each of the B rows.
        ends: how a response ends.
        pad: what follows the end.
        cache: empty; None to have one call and no row dropped.
        copies: how often the prompts follow each other in the batch that `generate` gets, for a mixture of so many roles.
    """
    count, prompt_width = ids.shape
    sequences = torch.nn.functional.pad(ids, (0, max_new_tokens), value=pad)  # (B, P + max)
    mask = torch.nn.functional.pad(mask, (0, max_new_tokens), value=1)
    widths = torch.zeros(count, dtype=torch.long, device=ids.device)
    rows, width = torch.arange(count, device=ids.device), prompt_width
    while True:
        ends.begin(len(rows), prompt_width, math.ceil(ENDED * len(rows)) if cache else len(rows))
        out = generate(
            input_ids=sequences[rows, :width].repeat(copies, 1),
            attention_mask=mask[rows, :width].repeat(copies, 1),
            past_key_values=cache,
            stopping_criteria=StoppingCriteriaList([ends]),
        )
        width = out.shape[1]
        sequences[rows, :width] = out[: len(rows)]
        widths[rows] = ends.widths
        going = (ends.widths == 0).nonzero().squeeze(1)
        if not len(going) or width == sequences.shape[1]:
            break
        assert cache is not None
        cache.batch_select_indices(torch.cat([going + copy * len(rows) for copy in range(copies)]))
        draw.keep(going)
        rows = rows[going]
    ended = widths > 0
    lengths = torch.where(ended, widths, width) - prompt_width  # (B,)
    response_mask = torch.arange(int(lengths.max()), device=ids.device) < lengths.unsqueeze(1)  # (B, T)
    sequences = sequences[:, : prompt_width + response_mask.shape[1]]
    sequences[:, prompt_width:].masked_fill_(~response_mask, pad)  # a row may have gone on to the end of its call
    return Decoded(sequences, response_mask, ended)


def cache_of(model: PreTrainedModel) -> DynamicCache | None:
    """An empty cache, as generate() would make it; None for a model whose rows cannot be dropped, such as one with recurrent states."""
    cache = DynamicCache(config=model.config)
    return cache if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers) else None
