"""A user's reward function in a process of its own: it may raise, hang, crash or return nonsense, and the run goes on. No torch.

This is against mistakes, not malice: the function is the user's own, and may read files and call servers as it likes.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gopd_merge.errors import InputError

WORKER = Path(__file__).with_name("reward_worker.py")
STARTS = 60.0  # seconds for the imports of the user's file


class Outcome(NamedTuple):
    """A finite reward, or why there is none."""

    reward: float
    failure: str | None = None


class Isolated:
    """One worker process, started again after it had to be ended."""

    def __init__(self, kind: str, what: str, name: str, seconds: float) -> None:
        """`kind` is function, of the file `what` and called `name`, or regex, `what` being the pattern. Each call may take `seconds`.

        Raises InputError, one line, where the function cannot be had.
        """
        self._command = [sys.executable, "-P", str(WORKER), kind, what, name]
        self._said = f"--reward {what}:{name}" if kind == "function" else f"--reward-regex {what}"
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def call(self, columns: Mapping[str, Any]) -> Outcome:
        """The function's reward for a response, given with its prompt and columns."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(columns, default=str).encode() + b"\n")
            self._process.stdin.flush()
        line = self._read(self._seconds)
        if line is None:
            self.close()
            return Outcome(0.0, f"took longer than {self._seconds:g} s")
        if not line.endswith(b"\n"):
            code = self._process.wait()
            self.close()
            return Outcome(0.0, f"ended its process with exit code {code}")
        answer = json.loads(line)
        return Outcome(answer.get("reward", 0.0), answer.get("failure"))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr] # both are pipes
        self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - it runs the user's own file, as the user asked
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True
        )
        line = self._read(STARTS)
        reply = json.loads(line) if line and line.endswith(b"\n") else {}
        if not reply.get("ready"):
            self.close()
            took = f"took longer than {STARTS:g} s" if line is None else "ended its process"
            raise InputError(f"{self._said}: cannot be loaded, it {reply.get('failure', took)}; correct the file")

    def _read(self, seconds: float) -> bytes | None:
        """A line of the worker's, less where it has ended; None where none came in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, data = self._process.stdout.fileno(), bytearray()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0]:
                piece = os.read(descriptor, 1 << 16)
                data += piece
                if not piece or data.endswith(b"\n"):
                    return bytes(data)
        return None
