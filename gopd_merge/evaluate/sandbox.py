"""Runs code that a model wrote and says whether it is right, without giving it a way to do harm or to say so itself.

For every case there are two processes (`inside.py`): the candidate's, which holds the model's program, and the tests', which holds the
tests and calls the program's function through a pipe. The verdict comes from the tests' process, with a number that the candidate never
sees, so that nothing that a program prints, patches, returns or exits with can stand for it.

Each worker has two sandboxes, in which an interpreter waits that is forked for every case: one for the tests and one, the zygote
(`zygote.py`), for the candidates, which gives every program namespaces of its own inside that sandbox.

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

from gopd_merge.errors import GopdError
from gopd_merge.evaluate import inside, isolation, wire, zygote

PACKAGE = "gopd_merge/evaluate"
USERS = range(60000, 65535)  # no person's
GRACE = 0.5  # seconds in which the tests' process notices that the candidate is gone
JUDGE_MEMORY = 2 << 30
LONGEST_SOURCE = 1 << 20  # characters
CPU_LIMIT = 128 + signal.SIGXCPU  # exit code
PATIENCE = 5.0  # seconds for the end of a program
COMPANIONS = 4  # processes that count against a user who is not root: bubblewrap's, the zygote, and a program's warden and first process
OTHERS = 32  # the same without a sandbox, where all that the user runs counts


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
    """The verdicts in the order of the programs, `workers` at once (default: one a core).

    Raises InputError where there is no sandbox, unless `unsafe`.
    """
    check_sandbox(unsafe)
    workers = min(workers or os.cpu_count() or 1, len(programs))
    if not programs:
        return []
    verdicts: dict[int, Verdict] = {}
    todo = iter(enumerate(programs))
    lock = threading.Lock()
    with _Sandbox.prepared(limits or Limits(), unsafe) as sandbox:

        def work(slot: int) -> None:
            worker = _Worker(sandbox, slot)
            try:
                while True:
                    with lock:
                        index, program = next(todo, (-1, None))
                    if program is None:
                        return
                    verdicts[index] = worker.verdict(program)
            finally:
                worker.close()

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
    folder: Path  # inside.py and what it imports, compiled; and the filter of system calls

    @classmethod
    @contextlib.contextmanager
    def prepared(cls, limits: Limits, unsafe: bool) -> Iterator["_Sandbox"]:
        with tempfile.TemporaryDirectory(prefix="gopd-sandbox-") as folder:
            os.chmod(folder, 0o755)  # noqa: S103 - bubblewrap may run as another user; nothing in it is secret
            for module, place in ((inside, "inside.pyc"), (wire, f"{PACKAGE}/wire.pyc"), (zygote, f"{PACKAGE}/zygote.pyc")):
                py_compile.compile(str(module.__file__), str(Path(folder, place)), doraise=True)
            Path(folder, "seccomp").write_bytes(isolation.machine_filter() or b"")
            yield cls(limits, unsafe, Path(folder))

    def start(self, role: str, slot: int, control: socket.socket) -> subprocess.Popen[bytes]:
        """The process of a role, for the user of a slot. It has no environment, and of this process's files only the one given."""
        limits, python = self.limits, isolation.isolated_python
        user, tmp_bytes, companions = 0, limits.tmp_bytes, COMPANIONS
        if self.unsafe:
            command = [*python(f"{self.folder}/inside.pyc"), role, str(isolation.site_packages() or isolation.SITE)]
            tmp_bytes, companions = 0, OTHERS
        else:
            shut_in = isolation.bubblewrap(self.folder, limits.tmp_bytes if role == "judge" else None)
            command = [*shut_in, *python(isolation.RUNNER), role, isolation.SITE]
            if os.geteuid() == 0:
                user, companions = _user(role, slot), 1
        memory = JUDGE_MEMORY if role == "judge" else limits.memory
        numbers = [user, tmp_bytes, memory, int(limits.seconds) + 1, limits.processes + companions, limits.file_bytes, limits.open_files]
        return subprocess.Popen(  # noqa: S603 - it runs what it was asked to run
            [*command, *map(str, numbers)],
            stdin=control.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )


def _user(role: str, slot: int) -> int:
    """A user for each worker and role of this process, because processes are counted by user, and others may grade at the same time."""
    return USERS[(os.getpid() * 64 + 2 * slot + (role == "judge")) % len(USERS)]


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


class _Server:
    """One worker's process of a role, which forks for every case; started when it is needed and again when it was lost."""

    def __init__(self, sandbox: _Sandbox, role: str, slot: int) -> None:
        self._sandbox, self._role, self._slot = sandbox, role, slot
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def send(self, job: bytes, descriptors: list[int]) -> None:
        """Begins a case, which gets copies of the descriptors."""
        for attempt in (1, 2):
            if self._control is None:
                self._control, theirs = socket.socketpair()
                with theirs:
                    self._process = self._sandbox.start(self._role, self._slot, theirs)
            try:
                sent = socket.send_fds(self._control, [job], descriptors)
                self._control.sendall(job[sent:])
            except OSError as error:  # it died after the last case
                self.close()
                if attempt == 2:
                    raise GopdError(f"the sandbox does not take programs ({error}); run gopd-merge doctor") from None
            else:
                return

    def end(self, order: bytes) -> int | None:
        """The exit code of a case that was begun, once nothing of it is left; None where this took the process itself with it."""
        try:
            if self._control is None:
                return None
            self._control.settimeout(PATIENCE)
            self._control.sendall(order)
            code: int = struct.unpack("<i", self._control.recv(4))[0]
            self._control.settimeout(None)
            return code
        except (OSError, struct.error):
            self.close()
            return None

    def close(self) -> None:
        """Ends the process and all that it forked."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            _end(self._process)
        self._control = self._process = None


class _Worker:
    """Judges one program after the other."""

    def __init__(self, sandbox: _Sandbox, slot: int) -> None:
        self._limits = sandbox.limits
        self._judge, self._candidates = _Server(sandbox, "judge", slot), _Server(sandbox, "candidate", slot)

    def verdict(self, program: Program) -> Verdict:
        """Runs one program against its tests."""
        if len(program.source) > LONGEST_SOURCE:
            return Verdict(False, "error", f"the program has {len(program.source)} characters, and {LONGEST_SOURCE} is the most")
        deadline = time.monotonic() + self._limits.seconds
        nonce = secrets.token_hex(16)
        job = wire.encode((nonce, (program.source, program.entry_point, program.tests, program.prelude)))
        calls_out, calls_in = os.pipe()
        replies_out, replies_in = os.pipe()
        verdict_out, verdict_in = os.pipe()
        try:
            try:
                self._judge.send(struct.pack("<I", len(job)) + job, [calls_in, replies_out, verdict_in])
                self._candidates.send(zygote.START, [calls_out, replies_in])
            finally:
                for descriptor in (calls_out, calls_in, replies_out, replies_in, verdict_in):
                    os.close(descriptor)
            data = _read_until(verdict_out, deadline)
            given, reason, message = _parsed(data)
            code = self._candidates.end(zygote.WAIT if reason == "crashed" else zygote.KILL)
            if data is None and _read_until(verdict_out, time.monotonic() + GRACE) is None:
                self._judge.close()  # the tests themselves do not end
        finally:
            os.close(verdict_out)
        if data is None:
            return Verdict(False, "timeout", f"no verdict after {self._limits.seconds:g} seconds")
        if given != nonce:
            return Verdict(False, "crashed", "the tests' process ended without a verdict")
        if reason == "crashed" and code == CPU_LIMIT:
            return Verdict(False, "timeout", "the program's process used up its processor time")
        return Verdict(reason == "passed", reason, f"{message} with code {code}" if reason == "crashed" else message)

    def close(self) -> None:
        """Ends both processes."""
        self._judge.close()
        self._candidates.close()


def _parsed(data: bytes | None) -> tuple[str, str, str]:
    """(nonce, reason, message) as the tests' process wrote them, or three empty texts."""
    with contextlib.suppress(wire.GarbledError, ValueError, TypeError):
        nonce, reason, message = wire.decode((data or b"")[4:])
        return nonce, reason, message
    return "", "", ""


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
