"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a folder that appears whole, with a manifest of sha256 sums: a reader takes the newest whose sums hold. Nothing in it is
a pickle. Prompts, answers and the fresh student are functions of the seed and the step, so no generator's state is in it.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gopd_merge.disk import as_os_error, remove, whole_folder, write_json
from gopd_merge.errors import GopdError
from gopd_merge.experts.tensor_file import file_sha256

SCHEMA = 1  # of what is in a checkpoint
KEPT = 2  # the last ones
MANIFEST, STATE, OPTIMIZER = "checkpoint.json", "state.json", "optimizer.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and holds."""

    folder: Path
    step: int  # full steps that were done
    state: Mapping[str, Any]  # as it was given to `save`

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Put its moments and rates back."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(self.folder / OPTIMIZER).items():
            index, _, slot = name.partition(".")
            state.setdefault(int(index), {})[slot] = tensor.clone()  # the file is only mapped
        optimizer.load_state_dict({"state": state, "param_groups": self.state["param_groups"]})


class Checkpoints:
    """Those of one run, in one folder."""

    def __init__(self, folder: Path, every: int, minutes: float, keep_all: bool = False) -> None:
        """One is due after `every` steps, or `minutes` after the last one; the last KEPT are kept, or all."""
        self._folder, self._every, self._seconds, self._keep_all = folder, every, 60 * minutes, keep_all
        self._saved = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether the state after so many steps is to be saved."""
        return step % self._every == 0 or time.monotonic() - self._saved >= self._seconds

    def save(
        self, step: int, write_student: Callable[[Path], None], optimizer: torch.optim.Optimizer, state: Mapping[str, Any], log: Path
    ) -> None:
        """Write the state after `step` steps; older checkpoints than the last ones are removed. Raises OSError, naming the folder.

        Args:
            step: full steps that were done.
            write_student: writes the adapter into a folder.
            optimizer: whose state goes into a file of its own.
            state: what else there is, plain JSON.
            log: metrics.jsonl up to this step.
        """
        target = self._folder / f"step-{step:06d}"
        with whole_folder(target) as folder:
            write_student(folder)
            moments, groups = _taken_apart(optimizer)
            with as_os_error(folder / OPTIMIZER):
                save_file(moments, folder / OPTIMIZER)
            write_json(folder / STATE, {**state, "param_groups": groups})
            shutil.copyfile(log, folder / log.name)
            sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
            write_json(folder / MANIFEST, {"schema": SCHEMA, "step": step, "sha256": sums})
        self._saved = time.monotonic()
        last = [other for other in self.steps() if other <= step]
        gone = [other for other in self.steps() if other > step]  # they were passed over when the run went on
        gone += [] if self._keep_all else last[:-KEPT]
        remove(self._folder, [f"step-{other:06d}" for other in gone])

    def newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest that is whole; `note` is told what is passed over. None where there is none at all.

        Raises GopdError where all are damaged, or where one was written by another version.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                found = self._read(step)
            except _DamagedError as problem:
                damaged.append(f"step {step}: {problem}")
                continue
            if damaged:
                note(f"passed over damaged checkpoints ({'; '.join(damaged)}); going on from step {step}")
            return found
        if damaged:
            raise GopdError(
                f"{self._folder}: no checkpoint is whole ({'; '.join(damaged)}); copy them again, or give --overwrite to begin anew"
            )
        return None

    def steps(self) -> list[int]:
        """Of which there is a checkpoint, whole or not, in order."""
        names = [path.name.removeprefix("step-") for path in self._folder.glob("step-*")]
        return sorted(int(name) for name in names if name.isdigit())

    def _read(self, step: int) -> Checkpoint:
        """Raises _DamagedError, and GopdError for one of another version."""
        folder = self._folder / f"step-{step:06d}"
        try:
            manifest = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
            schema, sums = int(manifest["schema"]), dict(manifest["sha256"])
            if schema != SCHEMA:
                raise GopdError(
                    f"{folder}: was written by another version of gopd-merge (checkpoints of form {schema}, this one reads {SCHEMA}); "
                    "go on with that one"
                )
            for name, sha256 in sums.items():
                if file_sha256(folder / name) != sha256:
                    raise _DamagedError(f"{name} is not what was written")
            if manifest["step"] != step or not {STATE, OPTIMIZER} <= sums.keys():
                raise _DamagedError(f"{MANIFEST} is of another checkpoint")
            return Checkpoint(folder, step, json.loads((folder / STATE).read_text(encoding="utf-8")))
        except OSError as error:
            raise _DamagedError(f"{Path(error.filename or folder).name} cannot be read, {error.strerror}") from None
        except (ValueError, LookupError, TypeError):
            raise _DamagedError(f"{MANIFEST} is not what was written") from None


class _DamagedError(Exception):
    """Why a checkpoint cannot be used, in a few words."""


def _taken_apart(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors and as what JSON can hold."""
    state = optimizer.state_dict()
    moments = {f"{index}.{slot}": tensor.contiguous() for index, slots in state["state"].items() for slot, tensor in slots.items()}
    return moments, state["param_groups"]
