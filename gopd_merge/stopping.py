"""SIGINT and SIGTERM: they end a run at once, but never in the middle of something that must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gopd_merge.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_on_signals() -> None:
    """Each of them raises Interrupted, so that what was computed is kept; a second one ends the process at once."""
    for number in SIGNALS:
        signal.signal(number, _stop)


def _stop(number: int, frame: object) -> None:
    end_at_the_next()
    raise Interrupted("stopped", number)


def end_at_the_next() -> None:
    """Whatever signal comes now ends the process, whatever it is doing."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal waits until the block is done, and is then handled as ever; a second one ends the process at once.

    Where a signal would end the process anyway, as after the first one, it does. Other threads than the main one are never disturbed.
    """
    came: list[int] = []

    def wait(number: int, frame: object) -> None:
        if came:
            end_at_the_next()
            signal.raise_signal(number)
        came.append(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, wait)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
