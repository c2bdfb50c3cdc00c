"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a folder that appears whole, with a manifest of sha256 sums: a reader takes the newest whose sums hold. Nothing in it is
a pickle. Prompts, answers and the fresh student are functions of the seed and the step, so no generator's state is in it.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gopd_merge.disk import as_os_error, remove, whole_folder, write_json
from gopd_merge.distill.sizes import KEPT_CHECKPOINTS
from gopd_merge.errors import GopdError
from gopd_merge.experts.intake import WEIGHTS
from gopd_merge.experts.tensor_file import file_sha256

SCHEMA = 1  # of what is in a checkpoint
MANIFEST, STATE, MOMENTS, GROUPS = "checkpoint.json", "state.json", "optimizer.safetensors", "optimizer.json"


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and holds."""

    folder: Path
    step: int  # full steps that were done
    state: Mapping[str, Any]  # what STATE holds


class Checkpoints:
    """Those of one run, in one folder."""

    def __init__(self, folder: Path, every: int, minutes: float, keep_all: bool = False) -> None:
        """One is due after `every` steps, or `minutes` after the last one; the last KEPT_CHECKPOINTS are kept, or all."""
        self._folder, self._every, self._seconds, self._keep_all = folder, every, 60 * minutes, keep_all
        self._saved = time.monotonic()
        self.save: Callable[[], None] = lambda: None  # a checkpoint of the run as it is: a run that is under way puts it here

    def is_due(self, step: int) -> bool:
        """Whether the state after so many steps is to be saved."""
        return step % self._every == 0 or time.monotonic() - self._saved >= self._seconds

    @contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """A folder to write the state after `step` steps in; it then becomes a checkpoint, and older ones than the last are removed.

        Raises OSError; then it is as if nothing had been written.
        """
        with whole_folder(self._folder / f"step-{step:06d}") as folder:
            yield folder
            sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
            write_json(folder / MANIFEST, {"schema": SCHEMA, "step": step, "sha256": sums})
        self._saved = time.monotonic()
        last = [other for other in self.steps() if other <= step]
        gone = [other for other in self.steps() if other > step]  # they were passed over when the run went on
        gone += [] if self._keep_all else last[:-KEPT_CHECKPOINTS]
        cut_off = [path.name for path in self._folder.glob(".step-*")]  # by a kill
        remove(self._folder, [*(f"step-{other:06d}" for other in gone), *cut_off])

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
            if manifest["step"] != step or not {STATE, MOMENTS, GROUPS, WEIGHTS} <= sums.keys():
                raise _DamagedError(f"{MANIFEST} is of another checkpoint")
            return Checkpoint(folder, step, json.loads((folder / STATE).read_text(encoding="utf-8")))
        except OSError as error:
            raise _DamagedError(f"{Path(error.filename or folder).name} cannot be read, {error.strerror}") from None
        except (ValueError, LookupError, TypeError):
            raise _DamagedError(f"{MANIFEST} is not what was written") from None


class _DamagedError(Exception):
    """Why a checkpoint cannot be used, in a few words."""


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Its moments as named tensors, and what JSON can hold. Raises OSError."""
    state = optimizer.state_dict()
    moments = {f"{index}.{slot}": tensor.contiguous() for index, slots in state["state"].items() for slot, tensor in slots.items()}
    with as_os_error(folder / MOMENTS):
        save_file(moments, folder / MOMENTS)
    write_json(folder / GROUPS, {"param_groups": state["param_groups"]})


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put back what `save_optimizer` wrote."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / MOMENTS).items():
        index, _, slot = name.partition(".")
        state.setdefault(int(index), {})[slot] = tensor.clone()  # the file is only mapped
    groups = json.loads((folder / GROUPS).read_text(encoding="utf-8"))
    optimizer.load_state_dict({"state": state, **groups})
