"""Steps whose loss or gradient is not finite: they change nothing and are counted, and too many in a row end the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gopd_merge.disk import write_json
from gopd_merge.distill.fused import TokenStatistics
from gopd_merge.distill.rollout import Rollout
from gopd_merge.errors import GopdError

IN_A_ROW = 5
OFFENDING = "offending.json"


class Skipping:
    """Counts the steps that were left out."""

    def __init__(self) -> None:
        self.total = self.in_a_row = 0

    def count(self, skipped: bool) -> None:
        """Take in a step."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def check(self, folder: Path | None, step: int, seed: int, offenders: Sequence[Mapping[str, Any]]) -> None:
        """Raises GopdError after too many in a row, and leaves what repeats the last of them in `folder`.

        Args:
            folder: for OFFENDING; None for a process that does not write.
            step: the last of them, from 1.
            seed: the run's.
            offenders: of `offending_rows`.
        """
        if self.in_a_row < IN_A_ROW:
            return
        self.in_a_row = 0  # a run that goes on all the same has as many again
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / OFFENDING, {"step": step, "seed": seed, "prompts": list(offenders)})
        raise GopdError(
            f"the gradient was not finite in {IN_A_ROW} steps in a row, up to step {step}, whose prompts are in {OFFENDING} beside its "
            "checkpoint; begin anew with a lower --learning-rate or --alpha, or with --bound"
        )

    def state_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]


def offending_rows(
    rollout: Rollout, statistics: TokenStatistics, prompts: Sequence[str], teachers: Sequence[str], alphas: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The prompts of a step in which some token's gradient is not finite, each with its response, teacher and α.

    All of them, where every token's is finite: then it was lost on the way through the model.
    """
    lengths = rollout.response_mask.sum(1)  # (B,)
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # (N,)
    bad = sorted(set(rows[~statistics.squared_gradient.isfinite()].tolist())) or list(range(len(lengths)))
    responses = rollout.ids[:, rollout.prompt_width :]
    return [
        {
            "domain": rollout.domains[row],
            "teacher": teachers[row],
            "alpha": alphas[rollout.domains[row]],
            "prompt": prompts[row],
            "response_ids": responses[row, : int(lengths[row])].tolist(),
        }
        for row in bad
    ]
