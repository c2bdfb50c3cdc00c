"""Where a run is: the full steps that are done, and everything that is put back when it goes on from there.

A step is full or it was never made: what is computed for it changes nothing that lasts until `full_step` takes it in at once.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gopd_merge.disk import append_json_line, read_json_lines, write_json, write_json_lines
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.checkpoint import STATE, Checkpoints, load_optimizer, save_optimizer
from gopd_merge.distill.watch import Watch
from gopd_merge.experts.base import Base
from gopd_merge.stopping import undisturbed


class Part(Protocol):
    """What changes from step to step and can be put back, as torch's schedules can. Its state is plain JSON."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102

    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102


@dataclass
class Course:
    """One run, as one of its processes sees it. `checkpoints` is None for a run that is too short to be worth any."""

    backbone: Backbone
    optimizer: torch.optim.Optimizer
    parts: Mapping[str, Part]
    watch: Watch
    log: Path  # metrics.jsonl, which the first process writes
    base: Base
    checkpoints: Checkpoints | None
    is_first: bool = True
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
            if self.is_first:
                self.log.unlink(missing_ok=True)
            return
        self.backbone.load_student(found.folder)
        load_optimizer(self.optimizer, found.folder)
        for name, part in self.parts.items():
            part.load_state_dict(found.state[name])
        rows = read_json_lines(found.folder / self.log.name)
        for row in rows:
            self.watch.look(row)  # what it says was heard
        if self.is_first:
            write_json_lines(self.log, rows)  # what was logged after it will be logged again
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
        if self.is_first:
            append_json_line(self.log, row)
        self.row = row
        self.tokens += tokens

    def save_if_due(self, last: int) -> None:
        """The first process's checkpoint, every so often and after the `last` step. Raises OSError."""
        if self.is_first and self.checkpoints and (self.checkpoints.is_due(self.step) or self.step == last):
            self.save()

    def save(self) -> None:
        """A checkpoint of the last full step, unless there is one. From any thread. Raises OSError."""
        with self._lock:
            if self.checkpoints is None or self._saved == self.step or self._in_between:
                return
            rows = read_json_lines(self.log)[: self.step]
            if len(rows) < self.step:
                return  # the first process died before it wrote its line
            state = {"tokens": self.tokens} | {name: part.state_dict() for name, part in self.parts.items()}
            with self.checkpoints.new(self.step) as folder:
                self.backbone.save_student(folder, self.base.name, self.base.commit)
                save_optimizer(self.optimizer, folder)
                write_json(folder / STATE, state)
                write_json_lines(folder / self.log.name, rows)
            self._saved = self.step
