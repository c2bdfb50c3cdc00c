"""A study is a list of pieces. Each can be killed at any time and goes on; several processes may work on one study side by side."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from filelock import FileLock, Timeout

from gopd_merge.disk import append_json_line
from gopd_merge.errors import Interrupted

TIMES = "times.jsonl"
MARGIN = 5  # seconds before the end in which no piece is begun


@dataclass(frozen=True)
class Piece:
    """One piece of work. `run` goes on with what is there, and `done` says whether nothing is left."""

    stage: str
    name: str
    kind: str  # pieces of one kind take about as long
    seconds: float  # on one core, as planned
    done: Callable[[], bool]
    run: Callable[[], None]
    needs: tuple[str, ...] = ()  # names of the pieces before it


class Board:
    """Which pieces there are, which are done, and how long those took that were timed here."""

    def __init__(self, work: Path, pieces: Sequence[Piece]) -> None:
        self.work, self.pieces = work, pieces
        self._done: set[str] = set()

    def is_done(self, piece: Piece) -> bool:
        """What is done stays so."""
        if piece.name not in self._done and piece.done():
            self._done.add(piece.name)
        return piece.name in self._done

    def pending(self) -> list[Piece]:
        """In order."""
        return [piece for piece in self.pieces if not self.is_done(piece)]

    def spent(self) -> dict[str, float]:
        """Seconds by piece, over all the processes that worked on it."""
        found: dict[str, float] = {}
        path = self.work / TIMES
        for line in path.read_text().splitlines() if path.is_file() else ():
            row = json.loads(line)
            found[row["piece"]] = found.get(row["piece"], 0.0) + row["seconds"]
        return found

    def expected(self, piece: Piece) -> float:
        """Seconds that it will take from its beginning: as others of its kind did, else as planned."""
        spent = self.spent()
        known = [spent[one.name] for one in self.pieces if one.kind == piece.kind and one.name in spent and self.is_done(one)]
        return fmean(known) if known else piece.seconds

    def left(self, piece: Piece) -> float:
        """Seconds that are still to do. One that has taken longer than was expected may take a tenth of that again."""
        whole = self.expected(piece)
        return max(0.1 * whole, whole - self.spent().get(piece.name, 0.0))

    def plan(self) -> str:
        """By stage: pieces, how many are done, and the time that is left on one core."""
        lines = [f"{'stage':10} {'pieces':>6} {'done':>5} {'left':>9}"]
        for stage in dict.fromkeys(piece.stage for piece in self.pieces):
            mine = [piece for piece in self.pieces if piece.stage == stage]
            open_ones = [piece for piece in mine if not self.is_done(piece)]
            left = sum(self.left(piece) for piece in open_ones)
            lines.append(f"{stage:10} {len(mine):6} {len(mine) - len(open_ones):5} {clock(left):>9}")
        total = sum(self.left(piece) for piece in self.pending())
        return "\n".join([*lines, f"left: {clock(total)} on one core; several processes share the pieces"])


def work_on(board: Board, wanted: Sequence[Piece], minutes: float | None, told: Callable[[str], None] = print) -> bool:
    """Run the wanted pieces until none is left, or the minutes are over; returns whether all of them are done.

    At the end of the minutes this process gets SIGTERM, which is to raise Interrupted: the piece that runs keeps what it has.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with _alarm(deadline):
        try:
            while pending := [piece for piece in wanted if not board.is_done(piece)]:
                if deadline is not None and time.monotonic() > deadline - MARGIN:
                    break
                ready = list(_ready(board, pending))
                if not ready and not _is_worked_on(board):
                    raise SystemExit(f"{pending[0].name}: needs pieces of a stage that is not asked for; leave out --stage")
                if not any(_taken(board, piece, told) for piece in ready):
                    time.sleep(2)  # another process works on what is left
        except Interrupted as stopped:
            told(f"stopped: {stopped}; what was done is kept, give the command again to go on")
    return all(board.is_done(piece) for piece in wanted)


def _ready(board: Board, pending: Sequence[Piece]) -> Iterator[Piece]:
    open_names = {piece.name for piece in board.pending()}
    return (piece for piece in pending if not open_names & set(piece.needs))


def _is_worked_on(board: Board) -> bool:
    """Whether another process holds a piece."""
    for path in (board.work / "locks").glob("*.lock"):
        try:
            with FileLock(path, blocking=False):
                pass
        except Timeout:
            return True
    return False


def _taken(board: Board, piece: Piece, told: Callable[[str], None]) -> bool:
    """Run it, unless another process does."""
    locks = board.work / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = piece.name.replace("/", "-").replace(" ", "-")
    try:
        with FileLock(locks / f"{name}.lock", blocking=False):
            if not board.is_done(piece):
                told(f"{piece.stage}: {piece.name}, about {clock(board.left(piece))}")
                with _timed(board.work, piece):
                    piece.run()
                if not piece.done():
                    raise SystemExit(f"{piece.name}: ended, but is not complete")
            return True
    except Timeout:
        return False


@contextmanager
def _timed(work: Path, piece: Piece) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        append_json_line(work / TIMES, {"piece": piece.name, "kind": piece.kind, "seconds": round(time.monotonic() - started, 1)})


@contextmanager
def _alarm(deadline: float | None) -> Iterator[None]:
    """SIGTERM to this process at the deadline."""
    if deadline is None:
        yield
        return
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def clock(seconds: float) -> str:
    """Hours and minutes; minutes and seconds where it is less than an hour."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min" if whole >= 600 else f"{whole // 60}:{whole % 60:02} min"
