"""A study's pieces: each once, in an order that its needs allow, going on after a stop, and shared by several processes."""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from gopd_merge.stopping import stop_on_signals

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "real"


@pytest.fixture(scope="module")
def pieces():
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("pieces")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def make(pieces, tmp_path):
    """make(name, needs=…, during=…): a piece that writes a file, after what it does first; the names of those that ran."""
    ran = []

    def piece(name, *needs, during=lambda: None, kind="kind", stage="stage", seconds=10.0):
        def run():
            ran.append(name)
            during()
            (tmp_path / name).touch()

        return pieces.Piece(stage, name, kind, seconds, (tmp_path / name).is_file, run, needs)

    piece.ran = ran
    return piece


def silent(text):
    pass


def test_every_piece_runs_once_and_after_what_it_needs(pieces, make, tmp_path):
    all_pieces = [make("c", "a", "b"), make("a"), make("b", "a")]
    assert pieces.work_on(pieces.Board(tmp_path, all_pieces), all_pieces, None, silent)
    assert make.ran == ["a", "b", "c"]
    assert pieces.work_on(pieces.Board(tmp_path, all_pieces), all_pieces, None, silent)
    assert make.ran == ["a", "b", "c"]  # the control: nothing is done twice


def test_a_piece_that_another_process_holds_is_left_to_it(pieces, make, tmp_path):
    (tmp_path / "locks").mkdir()
    mine, theirs = make("mine"), make("theirs")
    other = FileLock(tmp_path / "locks" / "theirs.lock")
    with other:
        assert not pieces.work_on(pieces.Board(tmp_path, [theirs, mine]), [theirs, mine], 0.1, silent)
    assert make.ran == ["mine"]
    assert pieces.work_on(pieces.Board(tmp_path, [theirs, mine]), [theirs, mine], None, silent)
    assert make.ran == ["mine", "theirs"]


def test_at_the_end_of_the_minutes_the_piece_is_stopped_and_later_goes_on(pieces, make, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "MARGIN", 0)
    heard = []
    slow, after = make("slow", during=lambda: time.sleep(30)), make("after")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    started = time.monotonic()
    stop_on_signals()
    try:
        assert not pieces.work_on(pieces.Board(tmp_path, [slow, after]), [slow, after], 0.5 / 60, heard.append)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert time.monotonic() - started < 10
    assert make.ran == ["slow"]
    assert "give the command again" in heard[-1]
    (row,) = map(json.loads, (tmp_path / pieces.TIMES).read_text().splitlines())
    assert row["piece"] == "slow"
    assert 0.3 < row["seconds"] < 10
    quick = make("slow")
    assert pieces.work_on(pieces.Board(tmp_path, [quick, after]), [quick, after], None, silent)


def test_no_piece_begins_when_the_minutes_are_over(pieces, make, tmp_path):
    one = make("one")
    assert not pieces.work_on(pieces.Board(tmp_path, [one]), [one], 0.01, silent)
    assert make.ran == []


def test_what_is_left_goes_by_what_pieces_of_the_kind_have_taken(pieces, make, tmp_path):
    one, two, other = make("one", seconds=100.0), make("two", seconds=100.0), make("other", kind="another", seconds=7.0)
    board = pieces.Board(tmp_path, [one, two, other])
    assert board.left(two) == 100
    (tmp_path / "one").touch()
    for seconds in (30.0, 10.0):  # two processes worked on it
        pieces.append_json_line(tmp_path / pieces.TIMES, {"piece": "one", "kind": "kind", "seconds": seconds})
    pieces.append_json_line(tmp_path / pieces.TIMES, {"piece": "two", "kind": "kind", "seconds": 25.0})
    assert board.left(two) == 15
    assert board.left(other) == 7
    assert "left: 0:22 min" in board.plan()


def test_a_stage_whose_needs_are_not_asked_for_is_refused_instead_of_waiting(pieces, make, tmp_path):
    first, second = make("first"), make("second", "first")
    with pytest.raises(SystemExit, match="second: needs pieces of a stage that is not asked for"):
        pieces.work_on(pieces.Board(tmp_path, [first, second]), [second], None, silent)


def test_a_piece_that_ends_without_its_result_ends_the_study(pieces, make, tmp_path):
    empty = pieces.Piece("stage", "empty", "kind", 1.0, lambda: False, os.getpid)
    with pytest.raises(SystemExit, match="empty: ended, but is not complete"):
        pieces.work_on(pieces.Board(tmp_path, [empty]), [empty], None, silent)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05 min"), (599, "9:59 min"), (600, "10 min"), (3600, "1 h 00 min"), (9000, "2 h 30 min")]
)
def test_a_time_is_readable(pieces, seconds, text):
    assert pieces.clock(seconds) == text
