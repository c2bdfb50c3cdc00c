"""Are two formulas the same? Asks math-verify, in processes that are ended when a comparison takes too long or too much memory.

Not `multiprocessing`, and so none of the pools built on it: a fork would copy a process that holds a GPU and threads, and a process that is
spawned first runs the user's own script again, unless that script guards against it.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gopd_merge.errors import GopdError

WORKER = Path(__file__).with_name("formula_worker.py")
SECONDS = 3.0  # for one comparison; of the 1,903 answers of MATH's test split that are not integers none takes 0.3
PAIRS_PER_WORKER = 50  # fewer are not worth the start of another process


class Pair(NamedTuple):
    """What was given and what it should be. When `is_text`, the answer is somewhere in the text `given`."""

    given: str
    reference: str
    is_text: bool = False


def equal_formulas(pairs: Sequence[Pair], seconds: float = SECONDS, workers: int | None = None) -> list[bool]:
    """Whether each pair is equal as mathematics; one that takes longer than `seconds`, or a gigabyte, is not.

    Equal pairs are compared once. Raises GopdError where math-verify does not start.
    """
    distinct = list(dict.fromkeys(pairs))
    if not distinct:
        return []
    workers = workers or min(os.cpu_count() or 1, 1 + len(distinct) // PAIRS_PER_WORKER)
    parts = [distinct[i::workers] for i in range(workers)]
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            answered = list(pool.map(_compare, parts, [seconds] * workers, [stop] * workers))
        finally:
            stop.set()  # so that an interrupt does not wait for the rest
    verdicts = {pair: verdict for part, done in zip(parts, answered, strict=True) for pair, verdict in zip(part, done, strict=True)}
    return [verdicts[pair] for pair in pairs]


def _compare(pairs: Sequence[Pair], seconds: float, stop: threading.Event) -> list[bool]:
    """The verdicts of one process, and of the next ones where it ended; fewer when it was told to stop."""
    verdicts: list[bool] = []
    while len(verdicts) < len(pairs) and not stop.is_set():
        with _start() as process:
            try:
                for pair in pairs[len(verdicts) :]:
                    answer = _ask(process, [*pair, seconds])
                    verdicts.append(answer == b"1\n")
                    if not answer or stop.is_set():
                        break
            finally:
                process.kill()
    return verdicts


def _start() -> subprocess.Popen[bytes]:
    """A worker that is ready. Its own folder is kept off its path (-P), where `statistics.py` would stand for the standard library's."""
    process = subprocess.Popen(  # noqa: S603 - no part of it comes from outside
        [sys.executable, "-P", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    if process.stdout is None or process.stdout.readline() != b"ready\n":
        process.kill()
        raise GopdError(f"math-verify does not start; `{sys.executable} -P {WORKER}` says why")
    return process


def _ask(process: subprocess.Popen[bytes], request: list[object]) -> bytes:
    """The line that a worker answers, or nothing when it was ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
    return process.stdout.readline()
