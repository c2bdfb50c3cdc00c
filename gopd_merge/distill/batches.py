"""A rollout in micro-batches: rows of like length share one, and none carries more padding than its own longest row asks for.

Padding stands on the right here. A causal model does not look to the right, so it needs no mask, and a row's numbers do not depend on
which rows share its batch (but for rounding).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gopd_merge.distill.rollout import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """b rows of a rollout, each from column 0 on, with n response tokens: row by row, as everywhere."""

    rows: Tensor  # (b,) which rows of the rollout, ascending
    ids: Tensor  # (b, L) prompt and response, then anything
    domains: tuple[str, ...]  # (b,)
    token_row: Tensor  # (n,) the row (of b) of each response token
    token_column: Tensor  # (n,) the column of the token before it, whose hidden state predicts it
    tokens: Tensor  # (n,) which of the rollout's response tokens it is, ascending

    def predicting(self, hidden: Tensor) -> Tensor:
        """(b, L, H) -> (n, H): the hidden states from which the response tokens were sampled."""
        return hidden[self.token_row, self.token_column]

    def response_ids(self) -> Tensor:
        """(n,) the sampled tokens."""
        return self.ids[self.token_row, self.token_column + 1]


def micro_batches(rollout: Rollout, size: int, rows: range | None = None) -> Iterator[MicroBatch]:
    """Those rows of the rollout (default: all), `size` at a time, the longest ones first: what does not fit fails at once.

    Their number depends on that of the rows alone, so processes that share a base run it equally often.
    """
    lengths = rollout.attention_mask.sum(1)  # (B,)
    chosen = (
        torch.arange(len(lengths), device=lengths.device) if rows is None else torch.arange(rows.start, rows.stop, device=lengths.device)
    )
    order = chosen[lengths[chosen].argsort(descending=True, stable=True)]
    for start in range(0, len(order), size):
        yield _micro_batch(rollout, order[start : start + size].sort().values)


def _micro_batch(rollout: Rollout, rows: Tensor) -> MicroBatch:
    lengths = rollout.response_mask.sum(1)  # (B,) of the responses
    first = lengths.cumsum(0) - lengths  # (B,) each row's first token among those of the rollout
    response = lengths[rows]  # (b,)
    prompt = rollout.attention_mask[rows, : rollout.prompt_width].sum(1)  # (b,)
    width = int((prompt + response).max())
    begin = rollout.prompt_width - prompt  # (b,) the prompt's first column
    columns = begin.unsqueeze(1) + torch.arange(width, device=rows.device)  # (b, L)
    ids = rollout.ids[rows.unsqueeze(1), columns.clamp(max=rollout.ids.shape[1] - 1)]
    token_row = torch.arange(len(rows), device=rows.device).repeat_interleave(response)  # (n,)
    place = torch.arange(len(token_row), device=rows.device) - (response.cumsum(0) - response)[token_row]  # (n,) within its response
    return MicroBatch(
        rows=rows,
        ids=ids,
        domains=tuple(rollout.domains[row] for row in rows.tolist()),
        token_row=token_row,
        token_column=prompt[token_row] - 1 + place,
        tokens=first[rows][token_row] + place,
    )
