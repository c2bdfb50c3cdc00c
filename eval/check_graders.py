"""Canonical solutions of code benchmarks in the sandbox must pass, and stubs must not. Writes eval/results/check_graders.json.

python eval/check_graders.py FOLDER

The folder holds humaneval_test.jsonl.gz, mbpp_full.jsonl.gz and so on, with id, prompt, entry_point, tests and canonical_solution.
"""

import argparse
import gzip
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from gopd_merge.artefacts import environment
from gopd_merge.evaluate.graders import program_of
from gopd_merge.evaluate.sandbox import Limits, run_programs
from gopd_merge.prompts.sources import Prompt

FILES = ("humaneval_test", "humanevalplus_test", "mbpp_sanitized", "mbpp_full", "mbppplus")
STUBS = {"object()": "return object()", "None": "return None", "its arguments": "return a", "raise": "raise ValueError"}


def main(folder: Path, output: Path, seconds: float, workers: int, unsafe: bool) -> None:
    limits = Limits(seconds=seconds)
    files = {}
    for name in FILES:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf8") as lines:
            rows = [json.loads(line) for line in lines]
        programs = [program_of(Prompt.model_validate(row), row["canonical_solution"]) for row in rows]
        started = time.perf_counter()
        verdicts = run_programs(programs, limits, workers, unsafe)
        wall = time.perf_counter() - started
        failed = {row["id"]: f"{v.reason}: {v.message}" for row, v in zip(rows, verdicts, strict=True) if not v.passed}
        stubs = {}
        for stub, body in STUBS.items():
            wrong = [replace(p, source=f"def {p.entry_point}(*a, **k):\n    {body}\n") for p in programs]
            passed = [row["id"] for row, v in zip(rows, run_programs(wrong, limits, workers, unsafe), strict=True) if v.passed]
            stubs[stub] = passed
        files[name] = {
            "problems": len(rows),
            "pass": len(rows) - len(failed),
            "reasons": dict(Counter(v.reason for v in verdicts)),
            "fail_in_plain_python_too": [row["id"] for row in rows if not row["meta"].get("reference_passes", True)],
            "seconds": round(wall, 1),
            "failed": failed,
            "stubs_that_pass": stubs,
        }
        print(name, {k: v for k, v in files[name].items() if k != "failed"}, flush=True)
    command = " ".join(["python", "eval/check_graders.py", "FOLDER", *sys.argv[2:]])
    document = {"schema": 1, "command": command, "files": files, "environment": environment(torch.device("cpu"))}
    output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("eval/results/check_graders.json"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--unsafe", action="store_true")
    main(**vars(parser.parse_args()))
