"""The command as a process that can be killed, on the embedded base; where it is; what it left."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gopd_merge.disk import read_json_lines


@dataclass
class Run:
    """One process of the command. It has ended when `code` is read."""

    starter: subprocess.Popen
    pid: int
    stdout: Path
    stderr: Path
    _code: int | None = field(default=None)

    @property
    def code(self) -> int:
        if self._code is None:
            self._code = int(self.starter.stdout.readline())
        return self._code

    @property
    def lines(self) -> list[str]:
        """Of stderr."""
        assert self.code is not None
        return self.stderr.read_text().splitlines()

    def is_running(self) -> bool:
        return (Path("/proc") / str(self.pid) / "stat").exists() and self._state() not in "ZX"

    def _state(self) -> str:
        try:
            return (Path("/proc") / str(self.pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "X"

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


@pytest.fixture(scope="session")
def _starter():
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-I", Path(__file__).with_name("starter.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture
def start(_starter, tmp_path, adapters):
    """start(*arguments, cwd=…, die_at=…): the command as a process; one at a time. `EXPERTS` stands for the embedded ones."""
    count = iter(range(1000))

    def run(*arguments, cwd=tmp_path, die_at=0, **env) -> Run:
        number = next(count)
        out, err = tmp_path / f"{number}.out", tmp_path / f"{number}.err"
        experts = ["--experts", adapters / "math.lora", adapters / "code.lora"]
        argv = [str(word) for argument in arguments for word in (experts if argument == "EXPERTS" else [argument])]
        job = {"argv": argv, "cwd": str(cwd), "stdout": str(out), "stderr": str(err), "env": env, "die_at": die_at}
        _starter.stdin.write(json.dumps(job) + "\n")
        _starter.stdin.flush()
        return Run(_starter, int(_starter.stdout.readline()), out, err)

    return run


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
        return (self.partial / "student").exists() or (self.partial / "adapter_model.safetensors").exists()

    @property
    def answers(self) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in self.partial.glob("evaluation/answers/*.jsonl"))

    def is_ending(self) -> bool:
        return (self.partial / "merge.json").exists() or self.output.exists()


@pytest.fixture
def where():
    """where(output): how far the run there is."""
    return Where


@pytest.fixture(scope="session")
def unbroken(_starter, adapters, tmp_path_factory):
    """unbroken(*options): the folder of a run with these options that nothing disturbs."""
    made = {}

    def run(*options) -> Path:
        if options not in made:
            folder = tmp_path_factory.mktemp("unbroken")
            experts = ["--experts", str(adapters / "math.lora"), str(adapters / "code.lora")]
            job = {"argv": [*experts, *options], "cwd": str(folder), "stdout": str(folder / "out"), "stderr": str(folder / "err")}
            _starter.stdin.write(json.dumps(job | {"env": {}, "die_at": 0}) + "\n")
            _starter.stdin.flush()
            _starter.stdout.readline()
            assert _starter.stdout.readline().strip() == "0", (folder / "err").read_text()
            made[options] = folder / "merged.lora"
        return made[options]

    return run
