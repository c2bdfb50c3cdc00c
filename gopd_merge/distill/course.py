"""Where a run is: the full steps that are done, and everything that is put back when it goes on from there.

A step is full or it was never made: what is computed for it changes nothing that lasts until `full_step` takes it in at once.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gopd_merge.disk import append_json_line, read_json_lines
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.checkpoint import Checkpoints
from gopd_merge.distill.watch import Watch
from gopd_merge.stopping import undisturbed


class Part(Protocol):
    """What changes from step to step and can be put back, as torch's schedules can. Its state is plain JSON."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102

    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102


@dataclass
class Course:
    """One run. `checkpoints` is None for one that is too short to be worth any."""

    backbone: Backbone
    optimizer: torch.optim.Optimizer
    parts: Mapping[str, Part]
    watch: Watch
    log: Path  # metrics.jsonl
    write_student: Callable[[Path], None]
    checkpoints: Checkpoints | None
    step: int = 0  # full steps
    tokens: int = 0  # response tokens that were learnt from
    row: dict[str, Any] = field(default_factory=dict)  # the last line of the log
    _saved: int = 0  # the step of the last checkpoint
    _in_between: bool = False  # whether a full step was begun and not ended
    _lock: threading.Lock = field(default_factory=threading.Lock)  # a thread that waits for a server saves too

    def take_up(self, note: Callable[[str], None]) -> None:
        """Go on from the newest checkpoint, if there is one. Raises GopdError where none is whole."""
        found = self.checkpoints.newest(note) if self.checkpoints else None
        if found is None:
            self.log.unlink(missing_ok=True)
            return
        self.backbone.load_student(found.folder)
        found.load_optimizer(self.optimizer)
        for name, part in self.parts.items():
            part.load_state_dict(found.state[name])
        shutil.copyfile(found.folder / self.log.name, self.log)  # what was logged after it will be logged again
        rows = read_json_lines(self.log)
        for row in rows:
            self.watch.look(row)  # what it says was heard
        self.step = self._saved = found.step
        self.tokens, self.row = found.state["tokens"], rows[-1]
        note(f"going on after step {self.step}")

    @contextmanager
    def full_step(self) -> Iterator[None]:
        """The block that changes student, optimiser and the other parts, and calls `log_row`. No signal can stop it half-way."""
        with undisturbed():
            self._in_between = True
            yield
            self.step += 1
            self._in_between = False

    def log_row(self, row: dict[str, Any], tokens: int) -> None:
        """A step's line, and how many response tokens it learnt from."""
        append_json_line(self.log, row)
        self.row = row
        self.tokens += tokens

    def save_if_due(self, last: int) -> None:
        """A checkpoint, every so often and after the `last` step."""
        if self.checkpoints and (self.checkpoints.is_due(self.step) or self.step == last):
            self.save()

    def save(self) -> None:
        """A checkpoint of the last full step, unless there is one. From any thread. Raises OSError."""
        with self._lock:
            if self.checkpoints is None or self._saved == self.step or self._in_between:
                return
            state = {"tokens": self.tokens} | {name: part.state_dict() for name, part in self.parts.items()}
            self.checkpoints.save(self.step, self.write_student, self.optimizer, state, self.log)
            self._saved = self.step

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the block, the last full step is saved if the disk takes it."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self.save()
            raise
