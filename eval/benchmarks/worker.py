"""One contender in a process of its own: it takes a command a line, and answers each with a line of JSON.

    python eval/benchmarks/worker.py CONTENDER FOLDER SHAPE

A command is {"do": "step" | "whole" | "gradient" | "record", ...}; `side_by_side.py` gives them. Between two commands the
process sleeps; where there is none any more it ends. Memory is resident memory, which includes what the allocator does not give back.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from models import SHAPES
from recorded import Recorded, make_questions
from rivals import CONTENDERS


@dataclass(frozen=True)
class Memory:
    """Bytes of this process in memory."""

    now: int
    most: int  # since `forget_peak`
    files: int  # of what is now there: pages of libraries, which come the first time that they are used

    @staticmethod
    def read() -> "Memory":
        status = Path("/proc/self/status").read_text()
        found = [re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE) for name in ("VmRSS", "VmHWM", "RssFile")]
        return Memory(*(int(one[1]) * 1024 for one in found if one))

    def peak_above(self, before: "Memory") -> int:
        """The most that was there above what `before` had, libraries' pages apart."""
        return self.most - self.files - (before.now - before.files)


def forget_peak() -> Memory:
    """Give freed memory back and begin a new peak, at what is resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return Memory.read()


def weight_bytes(contender: Any) -> int:
    """Of all parameters that the contender holds, each counted once."""
    models = [value for value in vars(contender).values() if isinstance(value, torch.nn.Module)]
    if backbone := getattr(contender, "backbone", None):
        models.append(backbone.peft)
    storages = {}
    for model in models:
        for tensor in model.parameters():
            for part in (tensor, *getattr(getattr(tensor, "quant_state", None), "as_dict", dict)(packed=True).values()):
                if isinstance(part, torch.Tensor):
                    storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(storages.values())


def main(name: str, folder: Path, shape: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    started = time.perf_counter()
    before = forget_peak()
    contender: Any = CONTENDERS[name](folder)
    loaded = forget_peak()
    ready = {"weight_bytes": weight_bytes(contender), "resident_bytes": loaded.now - before.now, "seconds": time.perf_counter() - started}

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    def measured(work: Callable[[], dict[str, float]]) -> dict[str, Any]:
        forget_peak()
        seconds = work()
        return {"seconds": seconds, "peak_bytes": Memory.read().peak_above(loaded)}

    say(ready)
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "step":
                given: Any = Recorded.load(Path(command["recorded"])).repeated(command.get("times", 1))
                say(measured(partial(contender.step, given, **command["options"])))
            case "whole":
                torch.manual_seed(0)
                say(measured(partial(contender.whole, make_questions(SHAPES[shape], command["fill"]), **command["options"])))
            case "gradient":
                loss, gradient = contender.gradient(Recorded.load(Path(command["recorded"])), **command["options"])
                torch.save(gradient, command["to"])
                say({"loss": loss})
            case "record":
                contender.record(make_questions(SHAPES[shape], command["fill"])).save(Path(command["to"]))
                say({})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    main(**vars(parser.parse_args()))
