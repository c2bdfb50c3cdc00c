"""How long one waits: for the help, for a plan, and for the first training step of the embedded default, from the command to its end.

    python eval/benchmarks/startup.py

Medians of five, after one that warms the disk's cache. Writes eval/results/startup.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from gopd_merge.artefacts import environment

OUTPUT = Path("eval/results/startup.json")
COMMAND = str(Path(sys.executable).with_name("gopd-merge"))
EXPERTS = ("--experts", "adapters/math.lora", "adapters/code.lora")
PATIENCE = 120.0  # seconds


def until_it_ends(*arguments: str) -> float:
    """Seconds of a command."""
    started = time.perf_counter()
    subprocess.run([COMMAND, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def until_the_first_step() -> float:
    """Seconds until the metrics of the first step are on disk; the run is then ended."""
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        arguments = [*EXPERTS, "--alpha", "2", "--no-eval", "--output", f"{folder}/merged.lora"]
        child = subprocess.Popen([COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while not any(file.stat().st_size for file in Path(folder).glob("*/metrics.jsonl")):
                if child.poll() is not None or time.perf_counter() - started > PATIENCE:
                    child.kill()
                    raise SystemExit(f"no first step: {child.stderr.read() if child.stderr else ''}")
                time.sleep(0.01)
            return time.perf_counter() - started
        finally:
            child.kill()
            child.wait()


CASES: dict[str, tuple[float, Callable[[], float]]] = {  # the most seconds that it may take
    "--help": (0.5, lambda: until_it_ends("--help")),
    "plan": (2.0, lambda: until_it_ends("plan", *EXPERTS, "--alpha", "2", "--memory", "4GB", "--overwrite")),
    "the first training step": (15.0, until_the_first_step),
}


def main(repetitions: int) -> None:
    rows = []
    for name, (limit, wait) in CASES.items():
        wait()
        seconds = [round(wait(), 3) for _ in range(repetitions)]
        rows.append(
            {"until": name, "seconds": round(median(seconds), 3), "of_each": seconds, "at_most": limit, "met": median(seconds) <= limit}
        )
        print(rows[-1], flush=True)
    document = {"schema": 1, "command": "python eval/benchmarks/startup.py", "rows": rows, "environment": environment(torch.device("cpu"))}
    OUTPUT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    main(**vars(parser.parse_args()))
