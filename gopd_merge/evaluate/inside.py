"""What runs inside the sandbox: a candidate's process and the tests' process. Only the standard library, `wire` and `zygote`.

The candidate's process holds a model's program and answers calls of one function. The tests' process holds the tests, sees that function as
a proxy, and alone says how a case ended. Between them run two pipes on which values travel as data of plain types, so that no object of the
program, with methods of its own, ever reaches an assert.
"""

from __future__ import annotations

import builtins
import os
import resource
import socket
import struct
import sys

from gopd_merge.evaluate import zygote
from gopd_merge.evaluate.wire import LONGEST_FRAME, GarbledError, UnsupportedError, decode, encode, read_exactly, read_frame, write_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LIMITS = ("AS", "CPU", "NPROC", "FSIZE", "NOFILE")  # of a candidate
LONGEST_MESSAGE = 200  # characters
NO_EXCEPTION_OF_A_CALL = (StopIteration, StopAsyncIteration, AssertionError)  # the first two would end the tests' own loops, quietly


# The candidate's process


def candidate(limits: dict[str, int]) -> None:
    """Loads the program and answers calls until its input ends. All of this process may be in the program's hands once it has loaded."""
    calls, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)  # what the program prints goes nowhere
    for limit, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (value, value + (limit == "CPU")))  # a second between its two signals
    source, entry_point = decode(read_frame(calls))
    module = type(sys)("program")
    sys.modules["program"] = module

    def load() -> None:
        exec(compile(source, "program", "exec"), module.__dict__)  # noqa: S102 - this is what the sandbox is for
        if not callable(module.__dict__.get(entry_point)):
            raise NameError(f"the program defines no function {entry_point}")

    write_frame(replies, _reply(load))
    while True:
        try:
            arguments, named = decode(read_frame(calls))
        except EOFError:
            return
        write_frame(replies, _reply(lambda a=arguments, n=named: module.__dict__[entry_point](*a, **n)))  # type: ignore[misc]


def _reply(call: Callable[[], Any]) -> bytes:
    """What the call returned or raised, as a message."""
    try:
        try:
            message = encode(("returned", call()))
        except UnsupportedError as error:
            return encode(("unsupported", str(error)))
        return message if len(message) <= LONGEST_FRAME else encode(("unsupported", f"a value of {len(message)} bytes"))
    except BaseException as error:
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
        try:
            text = str(error)[:LONGEST_MESSAGE]
        except BaseException:
            text = "an exception without a text"
        return encode(("raised", name, text))


# The tests' process


class EndOfCase(BaseException):  # no `except Exception` of the tests may catch it
    """The case is over, with this reason, whatever the tests still do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Proxy:
    """The program's function, as the tests see it."""

    def __init__(self, calls: int, replies: int) -> None:
        self._calls, self._replies = calls, replies
        self.answers = 0
        self.ended: EndOfCase | None = None
        self.raised: BaseException | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The function's result. Raises EndOfCase, or what the function raised."""
        try:
            call = encode((arguments, named))
        except UnsupportedError as error:
            raise self._end("unsupported", f"{error} as an argument") from None
        return self.exchange(call)

    def exchange(self, message: bytes) -> Any:
        """The program's answer to a message: its value, or its exception raised again as the built-in type of that name."""
        if self.ended:
            raise self.ended
        try:
            write_frame(self._calls, message)
            reply = decode(read_frame(self._replies))
        except (EOFError, BrokenPipeError):
            raise self._end("crashed", "the program's process ended") from None
        except GarbledError as error:
            raise self._end("garbled", f"the program's process sent {error}") from None
        self.answers += 1
        match reply:
            case ("returned", value):
                return value
            case ("unsupported", str(what)):
                raise self._end("unsupported", f"{what} as a result")
            case ("raised", str(name), str(text)):
                self.raised = _exception(name, text)
                raise self.raised
            case _:
                raise self._end("garbled", "the program's process sent another message than an answer")

    def _end(self, reason: str, message: str) -> EndOfCase:
        self.ended = EndOfCase(reason, message)
        return self.ended


def _exception(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NO_EXCEPTION_OF_A_CALL):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError and others need more
            pass
    return RuntimeError(f"{name}: {text}")


def judge_case(job: tuple[str, str, str, str], calls: int, replies: int) -> tuple[str, str]:
    """(reason, message) of a case: "passed" only when the tests ran to their end and called the program at least once."""
    source, entry_point, tests, prelude = job
    proxy = Proxy(calls, replies)
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        proxy.exchange(encode((source, entry_point)))
        # One answer so far: that the program has loaded.
        exec(compile(prelude, "prelude", "exec"), space)  # noqa: S102 - the benchmark's own code
        space[entry_point] = proxy
        exec(compile(tests, "tests", "exec"), space)  # noqa: S102
    except EndOfCase as end:
        return end.reason, str(end)
    except BaseException as error:
        reason = "memory" if isinstance(error, MemoryError) else "wrong" if isinstance(error, AssertionError) else "error"
        side = "" if error is proxy.raised or reason == "wrong" else "in the tests: "
        return (proxy.ended.reason if proxy.ended else reason), f"{side}{type(error).__name__}: {error}"[:LONGEST_MESSAGE]
    if proxy.ended:
        return proxy.ended.reason, str(proxy.ended)
    return ("passed", "") if proxy.answers > 1 else ("error", f"the tests never had an answer from {entry_point}")


def judge(control: socket.socket) -> None:
    """Forks one process a case, which writes the job's nonce and the verdict to a pipe that no other process holds. Ends with its input."""
    import contextlib
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        header, descriptors, _, _ = socket.recv_fds(control, 4, 3)
        if not header:
            return
        (size,) = struct.unpack("<I", header)
        nonce, job = decode(read_exactly(0, size))
        if "numpy" in job[2]:
            with contextlib.suppress(ImportError):
                import numpy as np  # noqa: F401 - in the parent, so that each fork finds it imported
        calls, replies, verdict = descriptors
        if os.fork() == 0:
            os.closerange(0, 1)
            try:
                reason, message = judge_case(job, calls, replies)
                write_frame(verdict, encode((nonce, reason, message)))
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def main(role: str, site: str, user: int, tmp_bytes: int, *limits: int) -> None:
    """Plays the role under the limits of `LIMITS`, as `user` where one is given. Without `tmp_bytes` there are no namespaces."""
    import math  # noqa: F401 - this and the next two are what programs and tests import most: here it is once, not once a case
    import re  # noqa: F401
    import typing  # noqa: F401

    compile("", "nothing", "exec")  # the first call makes a hundred types, and takes longer than a fork
    sys.path.append(site)  # numpy
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.path.join(os.path.dirname(__file__), "seccomp"), "rb") as file:
        seccomp = file.read()
    control = socket.socket(fileno=0)
    if role == "judge":
        resource.setrlimit(resource.RLIMIT_AS, (limits[0], limits[0]))
        if tmp_bytes:
            zygote.drop_rights(user, seccomp)
        return judge(control)

    def new_world() -> None:
        zygote.empty_folder("/tmp", tmp_bytes)  # noqa: S108 - its own
        zygote.drop_rights(user, seccomp)

    zygote.serve(control, lambda: candidate(dict(zip(LIMITS, limits, strict=True))), new_world if tmp_bytes else None)
    return None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
