"""Runs code that a model wrote and says whether it is right, without giving it a way to do harm or to say so itself.

For every case there are two processes (`inside.py`): the candidate's, which holds the model's program, and the tests', which holds the
tests and calls the program's function through a pipe. The verdict comes from the tests' process, with a number that the candidate never
sees, so that nothing that a program prints, patches, returns or exits with can stand for it.

Protected: the network, files, environment and processes of the machine; memory, processes, disk and time within `Limits`; the other cases
of the batch; the verdict. Not protected: a hole in the kernel, which the sandbox shares, and a benchmark whose tests a wrong answer passes.
The tests are the benchmark's and trusted to judge; they are shut in as well, but share a process from case to case.

With `unsafe=True` there are no namespaces: a program cannot forge its verdict and is stopped in time, but it can read and do what you can,
kill other processes, and leave processes behind.
"""

import contextlib
import os
import py_compile
import secrets
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopd_merge.errors import GopdError
from gopd_merge.evaluate import inside, isolation, wire

NOBODY = 65534  # and downwards, one user for each worker, because processes are counted by user
GRACE = 0.5  # seconds in which the tests' process notices that the candidate is gone
JUDGE_MEMORY = 2 << 30
LONGEST_SOURCE = 1 << 20  # characters
CPU_LIMIT = (128 + signal.SIGXCPU, -signal.SIGXCPU)  # exit codes, through bubblewrap and without


@dataclass(frozen=True)
class Limits:
    """What one program may take. Memory is of one process, so a program may hold `processes` times as much."""

    seconds: float = 10.0  # from the start of its process to the verdict
    memory: int = 512 << 20  # bytes of address space
    processes: int = 8  # threads count
    file_bytes: int = 16 << 20  # of one file
    tmp_bytes: int = 32 << 20  # of all files together
    open_files: int = 64


@dataclass(frozen=True)
class Program:
    """A model's program and the tests of its function `entry_point`: Python source with asserts that call it.

    `prelude` is the benchmark's own source that the tests may use, such as the helpers in the prompt of HumanEval/38; never the model's.
    """

    source: str
    entry_point: str
    tests: str
    prelude: str = ""


@dataclass(frozen=True)
class Verdict:
    """`reason` is passed, wrong (an assert), error (another exception), timeout, memory, crashed, unsupported (a value) or garbled."""

    passed: bool
    reason: str
    message: str


def run_programs(
    programs: Sequence[Program], limits: Limits | None = None, workers: int | None = None, unsafe: bool = False
) -> list[Verdict]:
    """The verdicts in the order of the programs, `workers` at once (default: two a core, since starting a sandbox is mostly waiting).

    Raises InputError where there is no sandbox, unless `unsafe`.
    """
    check_sandbox(unsafe)
    workers = min(workers or 2 * (os.cpu_count() or 1), len(programs))
    if not programs:
        return []
    verdicts: dict[int, Verdict] = {}
    todo = iter(enumerate(programs))
    lock = threading.Lock()
    with _Sandbox.prepared(limits or Limits(), unsafe) as sandbox:

        def work(slot: int) -> None:
            judge = _Judge(sandbox, slot)
            try:
                while True:
                    with lock:
                        index, program = next(todo, (-1, None))
                    if program is None:
                        return
                    verdicts[index] = judge.verdict(program)
            finally:
                judge.close()

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return [verdicts[index] for index in range(len(programs))]


def check_sandbox(unsafe: bool = False) -> None:
    """Raises InputError, one line with what to do, unless programs can run here."""
    if not unsafe:
        isolation.check_isolation()


@dataclass(frozen=True)
class _Sandbox:
    """Starts processes that are shut in."""

    limits: Limits
    unsafe: bool
    folder: Path  # inside.py and wire.py, compiled
    seccomp: Path | None

    @classmethod
    @contextlib.contextmanager
    def prepared(cls, limits: Limits, unsafe: bool) -> Iterator["_Sandbox"]:
        with tempfile.TemporaryDirectory(prefix="gopd-sandbox-") as folder:
            os.chmod(folder, 0o755)  # noqa: S103 - bubblewrap may run as another user; nothing in it is secret
            for module, place in ((inside, "inside.pyc"), (wire, "gopd_merge/evaluate/wire.pyc")):
                py_compile.compile(str(module.__file__), str(Path(folder, place)), doraise=True)
            code = isolation.machine_filter()
            seccomp = Path(folder, "seccomp")
            seccomp.write_bytes(code or b"")
            yield cls(limits, unsafe, Path(folder), seccomp if code and not unsafe else None)

    def start(self, role: str, slot: int, stdin: Any, stdout: int) -> subprocess.Popen[bytes]:
        """The process of a role, as the user of a slot. It has no environment, and of this process's files only the two given."""
        limits = self.limits
        memory, seconds = (JUDGE_MEMORY, 0) if role == "judge" else (limits.memory, int(limits.seconds) + 1)
        user = NOBODY - slot if os.geteuid() == 0 and not self.unsafe else 0
        numbers = [user, memory, seconds, limits.processes, limits.file_bytes, limits.open_files]
        site = isolation.SITE if not self.unsafe else str(isolation.site_packages() or isolation.SITE)
        options: dict[str, Any] = {"stdin": stdin, "stdout": stdout, "stderr": subprocess.DEVNULL, "env": {}, "start_new_session": True}
        arguments = [role, site, *map(str, numbers)]
        if self.unsafe:
            command = [*isolation.isolated_python(f"{self.folder}/inside.pyc"), *arguments]
            return subprocess.Popen(command, **options)  # noqa: S603 - it runs what it was asked to run
        with contextlib.ExitStack() as stack:
            # Opened each time, because reading it moves the offset.
            seccomp = stack.enter_context(self.seccomp.open("rb")).fileno() if self.seccomp else None
            shut_in = isolation.bubblewrap(self.folder, limits.tmp_bytes, seccomp)
            command = [*shut_in, *isolation.isolated_python(isolation.RUNNER), *arguments]
            return subprocess.Popen(command, pass_fds=() if seccomp is None else (seccomp,), **options)  # noqa: S603 - as above


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills everything that the process started, and the process.

    Bubblewrap's only child is the first process of the namespace; when that is killed from outside the kernel kills the rest, and
    bubblewrap ends when they are gone. This does not lean on --die-with-parent, which a program could try to undo.
    """
    if process.poll() is None:
        children = ""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        for child in children.split():
            with contextlib.suppress(OSError):
                os.kill(int(child), signal.SIGKILL)
        descriptor = os.pidfd_open(process.pid)  # not yet waited for, so still this process
        if not children or not select.select([descriptor], [], [], GRACE)[0]:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        os.close(descriptor)
    process.wait()


class _Judge:
    """One worker's tests' process, started when it is needed and again when it was lost."""

    def __init__(self, sandbox: _Sandbox, slot: int) -> None:
        self._sandbox, self._slot = sandbox, slot
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def verdict(self, program: Program) -> Verdict:
        """Runs one program against its tests."""
        if len(program.source) > LONGEST_SOURCE:
            return Verdict(False, "error", f"the program has {len(program.source)} characters, and {LONGEST_SOURCE} is the most")
        deadline = time.monotonic() + self._sandbox.limits.seconds
        calls_out, calls_in = os.pipe()
        replies_out, replies_in = os.pipe()
        verdict_out, verdict_in = os.pipe()
        try:
            try:
                candidate = self._sandbox.start("candidate", self._slot, calls_out, replies_in)
            finally:
                os.close(calls_out)
                os.close(replies_in)
            try:
                nonce = secrets.token_hex(16)
                try:
                    self._send(nonce, program, [calls_in, replies_out, verdict_in])
                finally:
                    for descriptor in (calls_in, replies_out, verdict_in):
                        os.close(descriptor)
                data = _read_until(verdict_out, deadline)
                late = data is None
                if late:
                    _end(candidate)
                    if _read_until(verdict_out, time.monotonic() + GRACE) is None:
                        self.close()  # the tests themselves do not end
                    return Verdict(False, "timeout", f"no verdict after {self._sandbox.limits.seconds:g} seconds")
                return self._verdict(data or b"", nonce, candidate)
            finally:
                _end(candidate)
        finally:
            os.close(verdict_out)

    def _verdict(self, data: bytes, nonce: str, candidate: subprocess.Popen[bytes]) -> Verdict:
        try:
            given, reason, message = wire.decode(data[4:])
        except (wire.GarbledError, ValueError, TypeError):
            given, reason, message = "", "", ""
        if given != nonce:
            return Verdict(False, "crashed", "the tests' process ended without a verdict")
        if reason == "crashed":
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = candidate.wait(GRACE)
                if code in CPU_LIMIT:
                    return Verdict(False, "timeout", "the program's process used up its processor time")
                message = f"{message} with code {code}"
        return Verdict(reason == "passed", reason, message)

    def _send(self, nonce: str, program: Program, descriptors: list[int]) -> None:
        job = wire.encode((nonce, (program.source, program.entry_point, program.tests, program.prelude)))
        for attempt in (1, 2):
            if self._control is None:
                self._control, theirs = socket.socketpair()
                with theirs:
                    self._process = self._sandbox.start("judge", self._slot, theirs, subprocess.DEVNULL)
            try:
                socket.send_fds(self._control, [struct.pack("<I", len(job))], descriptors)
                self._control.sendall(job)
            except OSError as error:  # the last case left it dead
                self.close()
                if attempt == 2:
                    raise GopdError(f"the sandbox does not take programs ({error}); run gopd-merge doctor") from None
            else:
                return

    def close(self) -> None:
        """Ends the tests' process."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            _end(self._process)
        self._control = self._process = None


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    """All that comes before the pipe closes, or None when it is still open at the deadline."""
    data = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return bytes(data)
            data += piece[: (1 << 16) - len(data)]
    return None
