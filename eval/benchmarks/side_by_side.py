"""gopd_merge beside trl's DistillationTrainer and others, on equal work: seconds and memory of a step.

    python eval/benchmarks/side_by_side.py
    python eval/benchmarks/side_by_side.py --model smollm2-135m --fill ragged --work tuning scoring --repetitions 5 --minutes 8

Who is who stands in rivals.py. Each contender has a process of its own with all its models loaded; they take turns, one step each, in
an order that turns round every time, and sleep meanwhile. First all of them must find the same loss and gradient, or nothing is timed.
Works: `tuning` finds each contender's fastest micro-batch, with which it is then measured; `scoring` is scoring and update on
recorded responses; `whole` adds the rollout; `growth` has one and four times the tokens; `experts` are whole
steps with two and with eight experts.
A row of JSON is kept in eval/work for all that is finished, and the same command goes on. Writes eval/results/side_by_side.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from models import SHAPES, make_model
from parity import check_parity
from recorded import FILLS
from summary import BOTH, summary

from gopd_merge.artefacts import environment

WORK = Path("eval/work/side_by_side")
MODELS = ("smollm2-135m", "qwen2.5-0.5b")
WORKS = ("tuning", "scoring", "whole", "growth", "experts")
MICRO_BATCHES = (1, 2, 4)
ALPHA = 1.5
MATRIX = 4096  # rows of the square matrices that the machine's peak is measured with


@dataclass(frozen=True)
class Entry:
    """A line of the table: a contender's process and what it is asked."""

    process: str
    options: dict[str, Any] = field(default_factory=dict)


ENTRIES = {
    "ours, λ = 1": Entry("ours", {"alpha": 1.0}),
    "ours, lean, λ = 1": Entry("ours", {"alpha": 1.0, "lean": True}),
    "A, λ = 1": Entry("A"),
    "A, checkpointed, λ = 1": Entry("A", {"checkpointing": True}),
    "ours": Entry("ours", {"alpha": ALPHA}),
    "ours, lean": Entry("ours", {"alpha": ALPHA, "lean": True}),
    "A′": Entry("A′", {"alpha": ALPHA}),
    "A′, compacted": Entry("A′", {"alpha": ALPHA, "compact": True}),
    "B": Entry("B", {"alpha": ALPHA}),
}
WHOLE = ("ours, λ = 1", "A, λ = 1", "ours", "A′")  # the rollout does not depend on the loss
TUNED = {"A′, compacted": "A′", "B": "A′", "ours, 2 experts": "ours", "ours, 8 experts": "ours"}  # whose micro-batch they have
EXPERTS = {f"ours, {count} experts": Entry(f"ours, {count} experts", {"alpha": ALPHA}) for count in (2, 8)}
NF4 = {
    "ours": Entry("ours, NF4", {"alpha": ALPHA}),
    "A′": Entry("A′, NF4", {"alpha": ALPHA}),
    "A′, compacted": Entry("A′, NF4", {"alpha": ALPHA, "compact": True}),
}


class Worker:
    """A contender's process."""

    def __init__(self, process: str, folder: Path, shape: str, log: Path) -> None:
        self.log = log
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), process, str(folder), shape]
        quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=quiet)
        self.loaded = self._read()

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        assert self.child.stdin
        self.child.stdin.write(json.dumps({"do": do, **command}) + "\n")
        self.child.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit(f"{self.log}: a contender died: {self.log.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def started(processes: set[str], folder: Path, shape: str) -> Iterator[dict[str, Worker]]:
    """All of them, loaded one after the other; ended at the end."""
    workers: dict[str, Worker] = {}
    try:
        for process in sorted(processes):
            workers[process] = Worker(process, folder, shape, WORK / f"{shape}-{len(workers)}.log")
        yield workers
    finally:
        for worker in workers.values():
            worker.child.kill()
            worker.child.wait()


class Rows:
    """What is finished, a line of JSON each. Rows of other code are passed over."""

    def __init__(self, path: Path, commit: str) -> None:
        self.path, self.commit = path, commit
        lines = path.read_text().splitlines() if path.is_file() else []
        self.all = [row for row in map(json.loads, lines) if row["commit"] == commit]

    def find(self, **key: Any) -> list[dict[str, Any]]:
        return [row for row in self.all if all(row.get(name) == value for name, value in key.items())]

    def add(self, **row: Any) -> None:
        self.all.append(row | {"commit": self.commit})
        with self.path.open("a") as file:
            file.write(json.dumps(self.all[-1]) + "\n")
        print(json.dumps(row, ensure_ascii=False), flush=True)


@dataclass
class Match:
    """One model's contenders while they are loaded."""

    model: str  # with its precision
    shape: str
    entries: dict[str, Entry]
    workers: dict[str, Worker]
    rows: Rows

    def recorded(self, fill: str) -> str:
        """Where the responses are that the student once gave; made the first time."""
        sizes = SHAPES[self.shape]
        path = WORK / f"{self.shape}-{fill}-{sizes.prompts}-{sizes.prompt_tokens}-{sizes.response_tokens}.pt"
        if not path.is_file():
            next(w for name, w in self.workers.items() if name.startswith("ours")).ask("record", fill=fill, to=str(path))
        return str(path)

    def check(self, fill: str) -> None:
        """Loss and gradient of all contenders are compared. Raises SystemExit where they are not the same."""
        found = {}
        for label, entry in self.entries.items():
            to = WORK / f"{self.shape}-gradient-{len(found)}.pt"
            options = entry.options | {"micro_batch": 2}
            answer = self.workers[entry.process].ask("gradient", recorded=self.recorded(fill), to=str(to), options=options)
            found[label] = (answer["loss"], torch.load(to))
            to.unlink()
        gaps = check_parity(found)
        key = {"model": self.model, "work": "parity", "fill": fill, "entries": list(self.entries)}
        if not self.rows.find(**key):
            self.rows.add(**key, gaps=gaps, losses={label: loss for label, (loss, _) in found.items()})

    def micro_batch(self, label: str) -> int:
        """The fastest of those that were tried."""
        tried = self.rows.find(model=self.model, work="tuning", label=TUNED.get(label, label))
        if not tried:
            raise SystemExit(f"{label}: no micro-batch was chosen yet; run --work tuning first")
        return int(min(tried, key=lambda row: row["seconds"][BOTH])["micro_batch"])

    def ask(self, label: str, do: str, more: dict[str, Any] | None = None, **command: Any) -> dict[str, Any]:
        entry, options = self.entries[label], dict(more or {})
        if "micro_batch" not in options:
            options["micro_batch"] = self.micro_batch(label)
        options = entry.options | options
        if do == "step":
            command["recorded"] = self.recorded(command["fill"])
        return self.workers[entry.process].ask(do, options=options, **command)

    def step(self, one: "Single") -> None:
        self.rows.add(**one.key(self.model), **self.ask(one.label, "step", one.options, fill=one.fill, times=one.times))

    def turn(self, work: str, fill: str, repetition: int) -> None:
        """All contenders, one step each."""
        key = {"model": self.model, "work": work, "fill": fill, "repetition": repetition}
        labels = [label for label in self.entries if work != "whole" or label in WHOLE]
        labels = labels if repetition % 2 == 0 else labels[::-1]
        peak = matrix_peak()
        found = {label: self.ask(label, "step" if work == "scoring" else "whole", fill=fill) for label in labels}
        micro_batches = {label: self.micro_batch(label) for label in labels}
        self.rows.add(**key, matrix_flops=peak, micro_batches=micro_batches, entries=found)


@dataclass(frozen=True)
class Single:
    """One step of one contender that is no part of a turn."""

    work: str
    label: str
    options: dict[str, Any]  # more than the entry's own
    fill: str
    times: int = 1  # the tokens

    def key(self, model: str) -> dict[str, Any]:
        return {"model": model, "work": self.work, "label": self.label, **self.options, "times": self.times}


def singles(shape: str, labels: Sequence[str]) -> list[Single]:
    """Micro-batches that are tried; one and four times the tokens."""
    tried = [size for size in MICRO_BATCHES if size <= SHAPES[shape].prompts]
    at_one = [label for label in ("ours, λ = 1", "ours, lean, λ = 1", "A, λ = 1") if label in labels]
    return [
        *(Single("tuning", label, {"micro_batch": size}, "ragged") for label in labels if label not in TUNED for size in tried),
        *(Single("growth", label, {}, "full", times) for label in at_one for times in (1, 4)),
    ]


def measure(options: argparse.Namespace, rows: Rows, deadline: float) -> bool:
    """Everything that is asked for and not yet there, until the deadline. Whether all is there."""
    for shape in options.model:
        make_model(SHAPES[shape], WORK / shape)
        model, entries = (f"{shape}, NF4", NF4) if options.nf4 else (shape, ENTRIES)
        turns = [(w, f, r) for r in range(options.repetitions) for w in options.work if w in ("scoring", "whole") for f in options.fill]
        if not compare(model, shape, entries, turns, options, rows, deadline):
            return False
        if "experts" in options.work and model == MODELS[0]:
            turns = [("experts", "ragged", repetition) for repetition in range(options.repetitions)]
            if not compare(model, shape, EXPERTS, turns, options, rows, deadline):
                return False
    return True


def compare(
    model: str,
    shape: str,
    entries: dict[str, Entry],
    turns: list[tuple[str, str, int]],
    options: argparse.Namespace,
    rows: Rows,
    deadline: float,
) -> bool:
    """Turns and single steps of contenders that do the same work. Whether all is there."""
    turns = [turn for turn in turns if not rows.find(model=model, work=turn[0], fill=turn[1], repetition=turn[2])]
    single = [one for one in singles(shape, list(entries)) if one.work in options.work and not rows.find(**one.key(model))]
    if not turns and not single:
        return True
    with started({entry.process for entry in entries.values()}, WORK / shape, shape) as workers:
        match = Match(model, shape, entries, workers, rows)
        for process, worker in workers.items():
            if not rows.find(model=model, work="load", process=process):
                rows.add(model=model, work="load", process=process, **worker.loaded)
        for number, fill in enumerate(options.fill):
            if number == 0 or not rows.find(model=model, work="parity", fill=fill, entries=list(entries)):
                match.check(fill)  # warms up, too
        tuning = [partial(match.step, one) for one in single if one.work == "tuning"]  # first: the others need what it finds
        rest = [partial(match.step, one) for one in single if one.work != "tuning"]
        for take in [*tuning, *(partial(match.turn, *turn) for turn in turns), *rest]:
            if time.monotonic() > deadline:
                return False
            take()
    return True


def matrix_peak() -> float:
    """Operations a second of a large float32 matrix product here, the best of three."""
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(seconds)


def measured_commit() -> str:
    """The last commit that changed what is measured, or how."""
    command = ["git", "log", "-1", "--format=%h", "--", "gopd_merge", "eval/benchmarks"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(options: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the contenders are ended
    WORK.mkdir(parents=True, exist_ok=True)
    rows = Rows(WORK / "rows.jsonl", measured_commit())
    if not measure(options, rows, time.monotonic() + 60 * options.minutes):
        raise SystemExit("not all is measured yet; give the same command again")
    document = {
        "schema": 1,
        "command": "python eval/benchmarks/side_by_side.py",
        **summary(rows.all),
        "environment": environment(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=list(MODELS))
    parser.add_argument("--nf4", action="store_true", help="the base in 4 bits: ours and A′")
    parser.add_argument("--fill", nargs="+", choices=FILLS, default=list(FILLS))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further step after so many")
    parser.add_argument("--output", type=Path, default=Path("eval/results/side_by_side.json"))
    main(parser.parse_args())
