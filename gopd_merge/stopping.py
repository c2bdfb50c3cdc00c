"""SIGINT and SIGTERM: they end a run at once, but never in the middle of something that must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gopd_merge.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_on_signals() -> None:
    """Each of them raises Interrupted, so that what was computed is kept; the same one again ends the process at once."""
    for number in SIGNALS:
        signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted("stopped", number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal waits until the block is done, and is then handled as ever; the same one again ends the process at once.

    Where a signal would end the process anyway, as after a first one, it does. Other threads than the main one are never disturbed.
    """
    came: list[int] = []

    def wait(number: int, frame: object) -> None:
        if number in came:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        came.append(number)

    with _handled(wait):
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def deaf() -> Iterator[None]:
    """No signal is heard in the block: what is left to do at the end of a run whose launcher may ask again."""
    with _handled(signal.SIG_IGN, all=True):
        yield


@contextmanager
def _handled(handler: Any, all: bool = False) -> Iterator[None]:
    """Signals that are handled by something, or all, are handled so in the block."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: known for number, known in before.items() if known is not None and (all or callable(known))}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
