"""What the fault tests share: a process of the command that can be killed, how far it is, and what it must come to."""

import errno
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gopd_merge.disk import read_json_lines

WEIGHTS = "adapter_model.safetensors"
SHORT = ("--steps", "4", "--batch-size", "4", "--max-new-tokens", "8", "--eval-prompts", "8", "--checkpoint-every", "1")
# By stage: when it has come, and the longest time after that (seconds) in which the kill comes.
STAGES = {
    "load": (lambda at, steps: (at.partial / "run.json").exists(), 1.0),
    "step": (lambda at, steps: at.steps > steps, 0.3),
    "checkpoint": (lambda at, steps: at.is_writing_checkpoint(), 0.02),
    "save": (lambda at, steps: at.is_saving(), 0.05),
    "evaluation": (lambda at, steps: at.answers > 0, 0.5),
    "end": (lambda at, steps: at.is_ending(), 0.01),
}


@dataclass
class Run:
    """One process of the command. It has ended when `code` is read."""

    pid: int
    wait: Callable[[], int]
    stdout: Path
    stderr: Path
    _code: int | None = None

    @property
    def code(self) -> int:
        if self._code is None:
            self._code = self.wait()
        return self._code

    @property
    def lines(self) -> list[str]:
        """Of stderr."""
        assert self.code is not None
        return self.stderr.read_text().splitlines()

    def is_running(self) -> bool:
        try:
            return (Path("/proc") / str(self.pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def when(self, condition, timeout: float = 120.0) -> bool:
        """Wait until the condition holds; returns whether it still runs then."""
        deadline = time.monotonic() + timeout
        while self.is_running() and not condition():
            assert time.monotonic() < deadline, "what was waited for did not come"
            time.sleep(0.0005)
        return self.is_running()

    def send_when(self, condition, number=signal.SIGKILL, after: float = 0.0) -> bool:
        """Send a signal when the condition holds, and some seconds later; returns whether it still ran."""
        self.when(condition)
        time.sleep(after)
        if not self.is_running():
            return False
        os.kill(self.pid, number)
        return True


@dataclass(frozen=True)
class Where:
    """How far the run to `output` is, read off what lies there."""

    output: Path

    @property
    def partial(self) -> Path:
        return self.output.with_name(self.output.name + ".partial")

    @property
    def steps(self) -> int:
        """Of which there is a line."""
        return len(read_json_lines(self.partial / "metrics.jsonl"))

    @property
    def saved(self) -> list[str]:
        return sorted(path.name for path in self.partial.glob("checkpoints/step-*"))

    def is_writing_checkpoint(self) -> bool:
        return any(self.partial.glob("checkpoints/.step-*"))

    def is_saving(self) -> bool:
        """The student that is trained."""
        return (self.partial / "student").exists() or (self.partial / WEIGHTS).exists()

    @property
    def answers(self) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in self.partial.glob("evaluation/answers/*.jsonl"))

    def is_ending(self) -> bool:
        return (self.partial / "merge.json").exists() or self.output.exists()


def rows(folder):
    """What is logged of each step, but what depends on the machine's mood."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("tokens_per_second", "memory_bytes")} for row in found]


def scores(folder):
    return [(row["method"], row["domain"], row["score"]) for row in json.loads((folder / "merge.json").read_text())["results"]]


def break_again_and_again(start, at, stages, rng, options):
    """One run, killed at each of these stages and taken up after each; the stages at which a kill came, and not too late."""
    hit = Counter()
    command = ("EXPERTS" if "--no-eval" in options else "CODE", *options)
    for stage in stages:
        come, longest = STAGES[stage]
        steps = at.steps
        run = start(*command, "--quiet", "--resume")
        hit[stage] += run.send_when(lambda: come(at, steps), after=rng.uniform(0, longest))  # noqa: B023
        assert run.code in (-9, 0), run.lines
        if run.code == 0:
            break
    last = start("resume", at.output, "--quiet")
    assert last.code == 0, last.lines
    return hit


def assert_same(whole, broken):
    assert (broken / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert rows(broken) == rows(whole)
    assert scores(broken) == scores(whole)
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in (broken, whole)]
    assert names[0] == names[1]


@contextmanager
def full_from(number):
    """No byte reaches the disk from this call of fsync on; yields how many there were."""
    calls, fsync, made = itertools.count(1), os.fsync, []

    def failing(descriptor):
        made.append(next(calls))
        if made[-1] >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        yield made


def check_failing_write(run, output, number, whole):
    """A result that is there is as it was, and the run goes on with what it had when there is room again."""
    output.mkdir()
    (output / "merge.json").write_text("{}")  # an earlier result, to be replaced
    with full_from(number), pytest.raises(OSError, match="No space left on device"):
        run(output, overwrite=True)
    assert [path.name for path in output.iterdir()] == ["merge.json"] or (output / WEIGHTS).read_bytes() == whole
    run(output, resume=True, overwrite=True)
    assert (output / WEIGHTS).read_bytes() == whole
    assert not (output / "checkpoints").exists()
