"""Step time and peak memory of a merge against the number of its experts, for the same number of prompts a step.

    python eval/domains/train.py
    python eval/many_experts.py

Each number runs in a process of its own, and the repetitions go through all numbers in turn, so that other work on the machine
favours none. Writes eval/results/many_experts.json. All numbers ask the same questions: one pool of all domains is dealt out to the
experts, whatever their own domains are, because responses of different domains differ in length. With `--questions own` each
expert gets its own prompts, and the lengths differ with the number of experts. Beyond the domains that there are, copies serve: the
same adapters under other names, with weights that differ by a thousandth, since a merge refuses the same adapter twice.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file

from gopd_merge import MergeConfig
from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.distillation import train_student
from gopd_merge.experts.intake import CONFIG, WEIGHTS
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent
from gopd_merge.usage import Clock, peak_memory

EMBEDDED = ("adapters/math.lora", "adapters/code.lora")
PHASES = ("rollout", "score", "update")
ROTATIONS = ("prompt", "step", "all")


class StepTimes(Silent):
    """Seconds of each phase in each step, and the processor's seconds of the step, to which other work on the machine adds little."""

    def __init__(self, clock: Clock) -> None:
        self.rows: list[dict[str, float]] = []
        self._clock = clock
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {**{phase: self._clock.seconds[phase] for phase in PHASES}, "processor": time.process_time()}

    def step(self, step: int, steps: int, metrics: Any) -> None:
        now = self._now()
        self.rows.append({name: now[name] - self._before[name] for name in now})
        self._before = now


def choose_experts(folder: Path, count: int, work: Path) -> dict[str, str]:
    """Domain -> adapter: the embedded two, then those of `folder`, then copies of all of them."""
    real = [Path(path) for path in EMBEDDED] + sorted(folder.glob("*.lora"))
    chosen = {path.name.removesuffix(".lora"): str(path) for path in real[:count]}
    for index in range(count - len(chosen)):
        original, again = real[index % len(real)], index // len(real) + 2
        name = f"{original.name.removesuffix('.lora')}{again}"
        chosen[name] = str(copied(original, work / f"{name}.lora", 1 + again / 1000))
    return chosen


def copied(original: Path, copy: Path, factor: float) -> Path:
    """A copy of an adapter with lora_B times `factor`."""
    copy.mkdir()
    shutil.copy(original / CONFIG, copy)
    tensors = load_file(original / WEIGHTS)
    save_file({name: factor * t if "lora_B" in name else t for name, t in tensors.items()}, copy / WEIGHTS, {"format": "pt"})
    shutil.copytree(original / "prompts", copy / "prompts")
    return copy


def deal(experts: dict[str, str], folder: Path, work: Path) -> dict[str, str]:
    """Domain -> a file with its share of one pool, which holds the questions of the embedded domains and of all in `folder`."""
    sources = [Path(path) for path in EMBEDDED] + sorted(folder.glob("*.lora"))
    pool = [line for source in sources for line in (source / "prompts" / "train.jsonl").read_text().splitlines()]
    random.Random(0).shuffle(pool)
    files = {}
    for index, domain in enumerate(sorted(experts)):
        files[domain] = str(work / f"{domain}.jsonl")
        Path(files[domain]).write_text("\n".join(pool[index :: len(experts)]) + "\n")
    return files


def measure(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One merge of `count` experts in this process: medians over its steps after the first, which also warms up."""
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        experts = choose_experts(options.experts, count, work)
        given: dict[str, Any] = {"experts": experts, "base": "adapters/tiny-base", "batch_size": options.batch_size, "eval": False}
        given |= {"steps": options.steps + 1, "seed": options.seed, "output": work / "merged.lora"}
        if options.questions == "pool":
            given["prompts"] = deal(experts, options.experts, work)
        if options.rotation:
            given["rotate"] = options.rotation
        config = MergeConfig(**given)
        inputs = read_inputs(config)
        (work / "merged.lora").mkdir()
        backbone = load_backbone(config, inputs)
        clock = Clock()
        times = StepTimes(clock)
        _, _, tokens = train_student(backbone, config, inputs, work / "merged.lora", clock, times)
        measured = [{**row, "step": sum(row[phase] for phase in PHASES)} for row in times.rows[1:]]
        return {
            "experts": count,
            "ranks": [expert.rank for expert in inputs.experts],
            "seconds": {name: statistics.median(row[name] for row in measured) for name in measured[0]},
            "response_tokens_per_step": tokens / len(times.rows),
            "peak_memory_bytes": peak_memory(backbone.device),
            "environment": environment(backbone.device),
        }


def in_own_process(count: int, rotation: str | None) -> dict[str, Any]:
    """`measure` in a fresh process with the same options; its result is its last line."""
    command = [sys.executable, *sys.argv, "--one", str(count), *(["--rotation", rotation] if rotation else [])]
    load = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{count} experts: {done.stderr}")
    return {"rotation": rotation, **json.loads(done.stdout.splitlines()[-1]), "load_average_before": round(load, 2)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the repetitions of one number of experts: medians of the times, the largest peak."""
    first = runs[0]
    seconds = {name: round(statistics.median(run["seconds"][name] for run in runs), 4) for name in first["seconds"]}
    tokens = statistics.median(run["response_tokens_per_step"] for run in runs)
    return {
        "rotation": first["rotation"],
        "experts": first["experts"],
        "ranks": first["ranks"],
        "seconds": seconds,
        "step_seconds_of_each_run": [round(run["seconds"]["step"], 4) for run in runs],
        "response_tokens_per_step": round(tokens, 1),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "load_average_before_each": [run["load_average_before"] for run in runs],
    }


def main(options: argparse.Namespace) -> None:
    if not any(options.experts.glob("*.lora")):
        raise SystemExit(f"{options.experts}: no experts there; make them with python eval/domains/train.py --output {options.experts}")
    runs: dict[tuple[str | None, int], list[dict[str, Any]]] = {}
    found: dict[str, Any] = {}
    cases = [(rotation, count) for count in options.counts for rotation in options.rotate or [None]]
    for repetition in range(options.repetitions):
        for rotation, count in cases if repetition % 2 == 0 else reversed(cases):
            run = in_own_process(count, rotation)
            found = run.pop("environment")
            runs.setdefault((rotation, count), []).append(run)
            print(json.dumps(run), flush=True)
    document = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "questions": options.questions,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "repetitions": options.repetitions,
        "rows": [summary(runs[case]) for case in cases],
        "environment": found,
    }
    options.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=Path, default=Path("eval/work/experts"), help="folder that eval/domains/train.py wrote")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument(
        "--rotate", nargs="+", choices=ROTATIONS, help="the ways to rotate the teachers, each measured (default: the merge's)"
    )
    parser.add_argument("--questions", choices=("pool", "own"), default="pool")
    parser.add_argument("--steps", type=int, default=10, help="that are measured; one more goes before them")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts a step")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("eval/results/many_experts.json"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # the process that measures one number
    parser.add_argument("--rotation", choices=ROTATIONS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen)))
    else:
        main(chosen)
