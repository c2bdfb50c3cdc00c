"""Cases a second in the sandbox, without it, and by the usual harness. Writes eval/results/sandbox_throughput.json.

python eval/sandbox_throughput.py --runs 3

The usual harness is one plain interpreter a case that runs the program and its tests together: no sandbox, and verdicts can be forged.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from gopd_merge.artefacts import environment
from gopd_merge.evaluate.graders import program_of
from gopd_merge.evaluate.isolation import check_isolation
from gopd_merge.evaluate.sandbox import Program, run_programs
from gopd_merge.prompts.sources import Prompt

SAMPLE = Path("tests/data/code_sample.jsonl")


def plain(programs: list[Program], workers: int) -> int:
    def run(program: Program) -> bool:
        command = [sys.executable, "-c", f"{program.source}\n{program.tests}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(run, programs))


def main(cases: int, workers: list[int], runs: int, output: Path) -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text().split("\n") if line]
    sample = [program_of(Prompt.model_validate(row), row["canonical_solution"]) for row in rows]
    programs = [sample[index % len(sample)] for index in range(cases)]
    ways: dict[str, Callable[[int], int]] = {
        "sandbox": lambda n: sum(v.passed for v in run_programs(programs, workers=n)),
        "same processes, no sandbox": lambda n: sum(v.passed for v in run_programs(programs, workers=n, unsafe=True)),
        "plain interpreter": lambda n: plain(programs, n),
    }
    measured = []
    for count in workers:
        rates: dict[str, list[float]] = {way: [] for way in ways}
        loads = []
        for _ in range(runs):  # in turn, because the machine may have other work
            for way, run in ways.items():
                loads.append(os.getloadavg()[0])
                started = time.perf_counter()
                passed = run(count)
                rates[way].append(round(cases / (time.perf_counter() - started), 1))
                assert passed == cases, (way, passed)
        for way, values in rates.items():
            measured.append({"way": way, "workers": count, "cases_per_second": values, "median": statistics.median(values)})
            print(measured[-1], flush=True)
        print("load before each", [round(load, 1) for load in loads], flush=True)
    document = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "cases": cases,
        "cores": os.cpu_count(),
        "load_average_at_the_end": os.getloadavg()[0],
        "sandbox": check_isolation(),
        "measured": measured,
        "environment": environment(torch.device("cpu")),
    }
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("eval/results/sandbox_throughput.json"))
    main(**vars(parser.parse_args()))
