"""Patterns for module names: matched as PEFT matches them, after a check that none of them takes for ever.

A regular expression can backtrack for longer than anybody waits, and take gigabytes meanwhile. Python looks for signals while it
matches, so a timer can end it. PEFT has no such bound; what passes here on the same names ends there too.
"""

import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from gopd_merge.experts.schema import SAVE_AGAIN, LoraSettings, short

Value = TypeVar("Value")
SECONDS = 1.0  # of CPU time for all patterns of an adapter
TICK = 0.05  # s; one match may take as long as two of them: hostile ones take 2 GB a second
LIST_NAMES = "list the names of the modules instead"


def values_by_pattern(patterns: Mapping[str, Value], default: Value) -> Callable[[str], Value]:
    """A function from a module's name to the value of the first pattern that fits it, as PEFT finds it (its `get_pattern_key`)."""
    compiled = [(re.compile(_tail_form(pattern)), value) for pattern, value in patterns.items()]
    return lambda module: next((value for pattern, value in compiled if pattern.match(module)), default)


def selector(targets: str | list[str]) -> Callable[[str], bool]:
    """A function that says whether `target_modules` selects a module by its name."""
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return lambda module: True
        pattern = re.compile(targets)
        return lambda module: pattern.fullmatch(module) is not None
    names = set(targets)
    return lambda module: any(tail in names for tail in _tails(module))


def check_patterns(settings: LoraSettings, modules: Iterable[str]) -> list[tuple[str, str]]:
    """What is wrong with the settings' patterns as (problem, remedy): the first that is none, or that takes too long on these names.

    The bound holds in the main thread only, which alone receives signals; elsewhere matches take what they take.
    """
    modules = list(modules)
    watch = _Watch()
    try:
        with watch.running():
            for watch.field, watch.pattern, form, is_whole in _forms(settings):
                compiled = re.compile(form)
                match = compiled.fullmatch if is_whole else compiled.match
                for module in modules:
                    watch.steps += 1
                    match(module)
    except _TooLongError:
        return [(f"{watch.field} has the pattern {short(watch.pattern)}, which takes too long to match", LIST_NAMES)]
    except (re.error, OverflowError, RecursionError) as error:
        return [(f"{watch.field} has the pattern {short(watch.pattern)}, which is no regular expression ({error})", SAVE_AGAIN)]
    return []


def has_patterns(settings: LoraSettings) -> bool:
    """Whether they select modules, ranks or scales by a regular expression."""
    return next(_forms(settings), None) is not None


def _forms(settings: LoraSettings) -> Iterator[tuple[str, str, str, bool]]:
    """(field, pattern, the expression that PEFT makes of it, whether that must fit the whole name)."""
    for field in ("target_modules", "exclude_modules"):
        value = getattr(settings, field)
        if isinstance(value, str):
            yield field, value, value, True
    layers = settings.layers_pattern or []
    for pattern in [layers] if isinstance(layers, str) else layers:
        yield "layers_pattern", pattern, rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", False
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(settings, field):
            yield field, pattern, _tail_form(pattern), False


def _tail_form(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _tails(module: str) -> Iterator[str]:
    """`a.b.c`, `b.c` and `c`."""
    while module:
        yield module
        module = module.partition(".")[2]


class _TooLongError(Exception):
    """A match was ended."""


class _Watch:
    """Ends a block when it takes SECONDS of CPU time, or when `steps` stands still for a TICK."""

    def __init__(self) -> None:
        self.steps = 0
        self.field = self.pattern = ""  # what is being matched
        self._seen = -1
        self._ticks = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Raises _TooLongError in the block. Afterwards signals are handled, and the timer runs, as before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # CPU time of the process: a busy machine must not make a pattern hostile.
        handler = signal.signal(signal.SIGPROF, self._tick)
        timer = signal.setitimer(signal.ITIMER_PROF, TICK, TICK)
        try:
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        finally:  # in a block of its own: the last tick may raise in the one above
            signal.signal(signal.SIGPROF, signal.SIG_DFL if handler is None else handler)
            signal.setitimer(signal.ITIMER_PROF, *timer)

    def _tick(self, *_: object) -> None:
        self._ticks += 1
        if self._ticks * TICK >= SECONDS or self._seen == self.steps:
            raise _TooLongError
        self._seen = self.steps
