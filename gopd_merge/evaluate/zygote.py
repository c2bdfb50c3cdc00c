"""The zygote: a process that forks for every program, so that an interpreter starts once a worker and not once a program.

What a program gets is as new as in a sandbox of its own: namespaces for processes, mounts, IPC, network and host name, an empty /tmp,
a session and the limits. What it shares with the next is memory of which both have copies. The zygote reads nothing but the grader's
orders, so nothing of a program can pass through it; it lies outside the namespace of the program's processes, where no signal, trace or
limit can name it; and its descriptors are closed before the program's process exists.

Standard library only, because it runs inside the sandbox.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

START, KILL, WAIT = b"s", b"k", b"w"  # the grader's orders: begin a program, end it, or let it end itself within GRACE
GRACE = 0.5  # seconds
MOST_DESCRIPTORS = 256  # of the zygote, which has five
NEW_PROCESSES, NEW_OTHERS = 0x20000000, 0x00020000 | 0x04000000 | 0x08000000 | 0x40000000  # mounts, host name, IPC, network
NO_SUID_NO_DEVICES = 2 | 4
SMALLEST_FILE = 4096  # bytes: one page
CAPABILITIES_VERSION = 0x20080522
SECCOMP, BY_FILTER = 22, 2
libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    _fields_ = (("lines", ctypes.c_ushort), ("code", ctypes.c_char_p))


def serve(control: socket.socket, play: Callable[[], None], new_world: Callable[[], None] | None) -> None:
    """For every two descriptors that arrive: forks `play` with them as its input and output, ends it when told to, and says its exit code.

    `new_world` runs before that, in the first process of a new namespace of processes; None: there are no namespaces.
    """
    while True:
        start, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not start:
            return
        warden = os.fork()  # because a process can make only one namespace of processes for its children
        if warden == 0:
            try:
                _warden(control, descriptors, play, new_world)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(warden, 0)


def _warden(control: socket.socket, descriptors: list[int], play: Callable[[], None], new_world: Callable[[], None] | None) -> None:
    """Begins a program and ends it when the grader says so."""
    if new_world:
        _must(libc.unshare(NEW_PROCESSES))
    first = os.fork()
    if first == 0:
        try:
            _first(descriptors, play, new_world)
        finally:
            os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    order = control.recv(1)
    code = _end(first, GRACE if order == WAIT else 0)
    if order:
        control.sendall(struct.pack("<i", code))


def _first(descriptors: list[int], play: Callable[[], None], new_world: Callable[[], None] | None) -> None:
    """The first process of a program's namespaces: forks the program's own and ends with it, and everything in them ends with this one."""
    os.dup2(descriptors[0], 0)
    os.dup2(descriptors[1], 1)
    os.closerange(3, MOST_DESCRIPTORS)
    os.setsid()  # a signal to one's own process group would otherwise reach the zygote
    if new_world:
        new_world()
    program = os.fork()
    if program == 0:
        play()
        os._exit(0)
    os.closerange(0, 3)
    ended, status = os.wait()
    while ended != program:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _end(first: int, patience: float) -> int:
    """The exit code of a first process. When this returns, its whole namespace is gone: the kernel waits for that."""
    if patience:
        descriptor = os.pidfd_open(first)
        select.select([descriptor], [], [], patience)
        os.close(descriptor)
    for kill in (os.killpg, os.kill):  # the group, for where there is no namespace; it may not be one yet
        with contextlib.suppress(ProcessLookupError):
            kill(first, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])


def empty_folder(path: str, size: int) -> None:
    """Leaves the namespaces of this process for new ones, in which `path` is empty, holds `size` bytes and is the current folder."""
    _must(libc.unshare(NEW_OTHERS))
    options = f"size={size},nr_inodes={1 + size // SMALLEST_FILE},mode=1777"
    _must(libc.mount(b"tmpfs", path.encode(), b"tmpfs", NO_SUID_NO_DEVICES, options.encode()))
    os.chdir(path)  # the current folder was that of the zygote


def drop_rights(user: int, seccomp: bytes) -> None:
    """Becomes `user`, where one is given, without capabilities and without the system calls that the filter refuses, for good."""
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    _must(libc.capset((ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()))
    if seccomp:
        code = _Filter(len(seccomp) // 8, seccomp)
        _must(libc.prctl(SECCOMP, BY_FILTER, ctypes.byref(code), 0, 0))  # Bubblewrap has set no_new_privs, which this needs


def _must(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
