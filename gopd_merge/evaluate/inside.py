"""What runs inside the sandbox: the candidate's process and the tests' process. Standard library only; nothing else of the package is in there.

The candidate's process holds a model's program and answers calls of one function. The tests' process holds the tests, sees that function as a
proxy, and alone says how a case ended. Between them run two pipes on which values travel as data of plain types, so that no object of the
program, with methods of its own, ever reaches an assert.
"""

from __future__ import annotations

import builtins
import os
import resource
import struct
import sys

TYPE_CHECKING = False  # importing typing would take as long as the rest of the start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LONGEST_FRAME = 8 << 20  # bytes
DEEPEST = 100  # containers in containers
LONGEST_MESSAGE = 200  # characters
NO_EXCEPTION_OF_A_CALL = (StopIteration, StopAsyncIteration, AssertionError)  # the first two would end the tests' own loops, quietly


class UnsupportedError(ValueError):
    """A value that is not made of plain types."""


class GarbledError(ValueError):
    """Bytes that are no message."""


def encode(value: Any) -> bytes:
    """None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset and dict, nested; raises UnsupportedError on anything else.

    An instance of a subclass travels as its plain type, and a value of numpy's as what its `tolist` gives.
    """
    parts: list[bytes] = []
    _encode(value, parts, 0)
    return b"".join(parts)


def _encode(value: Any, parts: list[bytes], depth: int) -> None:
    if depth > DEEPEST:
        raise UnsupportedError(f"nested deeper than {DEEPEST}")
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or value is True or value is False:
        parts.append({None: b"N", True: b"T", False: b"F"}[value])
    elif isinstance(value, int):
        data = int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True)
        parts.append(b"i" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, float):
        parts.append(b"d" + struct.pack("<d", value))
    elif isinstance(value, complex):
        parts.append(b"c" + struct.pack("<dd", value.real, value.imag))
    elif isinstance(value, str):
        data = str.encode(value, "utf-8", "surrogatepass")
        parts.append(b"s" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, bytes):
        parts.append(b"b" + struct.pack("<I", len(value)) + value)
    elif isinstance(value, dict):
        pairs = list(dict.items(value))
        _encode_items(b"m", len(pairs), (item for pair in pairs for item in pair), parts, depth)
    else:
        for tag, plain in ((b"l", list), (b"t", tuple), (b"e", set), (b"z", frozenset)):
            if isinstance(value, plain):
                items = list(plain.__iter__(value))  # type: ignore[attr-defined]
                return _encode_items(tag, len(items), items, parts, depth)
        raise UnsupportedError(f"a value of type {type(value).__name__}")
    return None


def _encode_items(tag: bytes, count: int, items: Iterable[Any], parts: list[bytes], depth: int) -> None:
    parts.append(tag + struct.pack("<I", count))
    for item in items:
        _encode(item, parts, depth + 1)


def decode(data: bytes) -> Any:
    """The value of one encoding. Raises GarbledError on any other bytes; what it makes are plain values whatever the bytes are."""
    try:
        value, end = _decode(data, 0, 0)
    except (struct.error, TypeError, ValueError) as error:  # cut short; unhashable in a set; not UTF-8
        raise GarbledError(f"not a message ({type(error).__name__})") from None
    if end != len(data):
        raise GarbledError("not a message (bytes left over)")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise GarbledError("too deep")
    tag, at = data[at : at + 1], at + 1
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag], at
    if tag == b"d":
        return struct.unpack_from("<d", data, at)[0], at + 8
    if tag == b"c":
        return complex(*struct.unpack_from("<dd", data, at)), at + 16
    (size,) = struct.unpack_from("<I", data, at)
    at += 4
    if size > len(data) - at:  # an item takes a byte or more
        raise GarbledError("cut short")
    if tag in (b"i", b"s", b"b"):
        piece = data[at : at + size]
        value = int.from_bytes(piece, "little", signed=True) if tag == b"i" else piece.decode("utf-8", "surrogatepass") if tag == b"s" else piece
        return value, at + size
    kinds: dict[bytes, Callable[[list[Any]], Any]] = {b"l": list, b"t": tuple, b"e": set, b"z": frozenset, b"m": _pairs}
    if tag not in kinds:
        raise GarbledError("no such type")
    items = []
    for _ in range(2 * size if tag == b"m" else size):
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    return kinds[tag](items), at


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def write_frame(descriptor: int, data: bytes) -> None:
    """One message, with its length before it."""
    left = memoryview(struct.pack("<I", len(data)) + data)
    while left:
        left = left[os.write(descriptor, left) :]


def read_frame(descriptor: int) -> bytes:
    """The next message. Raises EOFError when the other side is gone and GarbledError when it announces too much."""
    (size,) = struct.unpack("<I", _read(descriptor, 4))
    if size > LONGEST_FRAME:
        raise GarbledError(f"a message of {size} bytes")
    return _read(descriptor, size)


def _read(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(descriptor, min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


# The candidate's process


def candidate(processes: int, file_bytes: int, open_files: int) -> None:
    """Loads the program and answers calls until its input ends. All of this process may be in the program's hands once it has loaded."""
    calls, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)  # what the program prints goes nowhere
    for limit, value in (("NPROC", processes), ("FSIZE", file_bytes), ("NOFILE", open_files)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (value, value))
    source, entry_point = decode(read_frame(calls))
    module = type(sys)("program")
    sys.modules["program"] = module

    def load() -> None:
        exec(compile(source, "program", "exec"), module.__dict__)  # noqa: S102 - this is what the sandbox is for
        if not callable(module.__dict__.get(entry_point)):
            raise NameError(f"the program defines no function {entry_point}")

    write_frame(replies, _reply(load))
    while True:
        arguments, named = decode(read_frame(calls))
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


class EndOfCase(BaseException):  # noqa: N818 - no `except Exception` of the tests may catch it
    """The case is over, with this reason, whatever the tests still do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Proxy:
    """The program's function, as the tests see it."""

    def __init__(self, calls: int, replies: int) -> None:
        self._calls, self._replies = calls, replies
        self.answered = 0
        self.ended: EndOfCase | None = None
        self.raised: BaseException | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        try:
            call = encode((arguments, named))
        except UnsupportedError as error:
            raise self._end("unsupported", f"{error} as an argument") from None
        result = self.exchange(call)
        self.answered += 1
        return result

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
    return ("passed", "") if proxy.answered else ("error", f"the tests never had an answer from {entry_point}")


def judge() -> None:
    """Forks one process a case, which writes the job's nonce and the verdict to a pipe that no other process holds. Ends with its input."""
    import signal
    import socket

    control = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        header, descriptors, _, _ = socket.recv_fds(control, 4, 3)
        if not header:
            return
        (size,) = struct.unpack("<I", header)
        nonce, job = decode(_read(0, size))
        if "numpy" in job[2]:
            try:
                import numpy as np  # noqa: F401 - once here, not once a case
            except ImportError:
                pass
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


def main(role: str, site: str, user: int, memory: int, cpu_seconds: int, *others: int) -> None:
    """Becomes `user`, where one is given, under the limits that both processes have, and plays the role."""
    sys.path.append(site)  # numpy
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if cpu_seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if role == "judge":
        judge()
    else:
        try:
            candidate(*others)
        except EOFError:
            pass


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
