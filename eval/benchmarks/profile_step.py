"""Where the time of scoring and update goes, by kind of operation.

    python eval/benchmarks/profile_step.py
    python eval/benchmarks/profile_step.py --case "qwen2.5-0.5b, NF4, ragged"

Random weights, two experts of rank 16 on all linear layers, λ = 1.25, random responses of planned lengths. Each case has a process of its
own. What is timed runs without the profiler; shares are of one further step under torch.profiler. Cases that are not measured again keep
their rows. Writes eval/results/profile_step.json.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from models import RANK, make_model
from models import SHAPES as MODELS
from recorded import Recorded, make_questions
from rivals import Ours
from side_by_side import WORK, matrix_peak
from torch.profiler import ProfilerActivity, profile
from worker import Memory, forget_peak

from gopd_merge.artefacts import environment
from gopd_merge.distill.target import Scale, score
from gopd_merge.distill.update import accumulate_gradient

OUTPUT = Path("eval/results/profile_step.json")
SIZES = {"prompts": 8, "prompt_tokens": 32, "response_tokens": 128}
SHAPES = ("smollm2-135m", "qwen2.5-0.5b")
QUANTIZE = {"float32": "none", "NF4": "nf4"}
FILLS = ("ragged", "full")
CASES = [f"{shape}, {precision}, {fill}" for shape in SHAPES for precision in QUANTIZE for fill in FILLS]
DEFAULT = ("smollm2-135m, float32, ragged", "smollm2-135m, NF4, ragged", "qwen2.5-0.5b, float32, ragged", "qwen2.5-0.5b, float32, full")
PHASES = ("score", "update")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
KINDS = (
    "products of the base",
    "products with the head",
    "products of adapters",
    "4-bit to float",
    "attention",
    "other operators",
    "between operators",
)


def kind_of(name: str, shapes: list[Any], rank: int, vocabulary: int) -> str:
    """Of one operator, by its name and the shapes that it was called with."""
    if "scaled_dot_product" in name or "flash_attention" in name:
        return "attention"
    if name.startswith("bitsandbytes::"):
        return "4-bit to float"
    if name in PRODUCTS:
        sizes = {size for shape in shapes if isinstance(shape, list | tuple) for size in shape if isinstance(size, int)}
        return "products with the head" if vocabulary in sizes else "products of adapters" if rank in sizes else "products of the base"
    return "other operators"


def measure(case: str, micro_batch: int, chunk: int, steps: int) -> dict[str, Any]:
    """One case, in this process."""
    shape_name, precision, fill = case.split(", ")
    shape = dataclasses.replace(MODELS[shape_name], **SIZES)
    make_model(shape, WORK / shape_name)
    ours: Any = Ours(WORK / shape_name, QUANTIZE[precision], experts=2)
    loaded = forget_peak()
    questions = make_questions(shape, fill)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, shape.vocabulary, (length,), generator=generator).tolist() for length in questions.response_lengths]
    rollout = ours._rollout(Recorded(questions, tuple(map(tuple, ids))))
    scale = Scale(dict.fromkeys(ours.domains, 1.25))
    found: dict[str, Any] = {}

    def score_all() -> None:
        found["target"] = score(ours.cast, rollout, scale, micro_batch, chunk)

    def update() -> None:
        accumulate_gradient(ours.cast, rollout, found["target"], "full", micro_batch, chunk)
        for parameter in ours.backbone.student_parameters():
            parameter.grad = None

    works = dict(zip(PHASES, (score_all, update), strict=True))
    peak = matrix_peak()
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for step in range(steps + 1):  # the first one warms up
        for phase, work in works.items():
            started = time.perf_counter()
            work()
            if step:
                seconds[phase].append(time.perf_counter() - started)
    row: dict[str, Any] = {"case": case, "seconds": {phase: round(median(values), 3) for phase, values in seconds.items()}}
    total = sum(row["seconds"].values())
    row |= {"peak_bytes": Memory.read().peak_above(loaded), "matrix_flops": peak}
    row["share_of_matrix_peak"] = round(shape.useful_flops(questions.lengths, 2) / total / peak, 3)
    row["shares"] = {phase: shares(work, shape.vocabulary) for phase, work in works.items()}
    return row


def shares(work: Any, vocabulary: int) -> dict[str, float]:
    """Of the time of a phase, by kind of operation."""
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        work()
        whole = time.perf_counter() - started
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        spent[kind_of(event.key, event.input_shapes or [], RANK, vocabulary)] += event.self_cpu_time_total / 1e6
    spent["between operators"] = max(0.0, whole - sum(spent.values()))
    return {kind: round(time_spent / whole, 4) for kind, time_spent in spent.items()}


def main(options: argparse.Namespace) -> None:
    kept = {row["case"]: row for row in json.loads(OUTPUT.read_text())["rows"]} if OUTPUT.is_file() else {}
    for case in options.case:
        command = [sys.executable, __file__, "--one", case, "--micro-batch", str(options.micro_batch), "--chunk", str(options.chunk)]
        done = subprocess.run([*command, "--steps", str(options.steps)], stdout=subprocess.PIPE, text=True, check=True)
        kept[case] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(kept[case]), flush=True)
        document = {
            "schema": 1,
            "command": "python eval/benchmarks/profile_step.py",
            **SIZES,
            **{name: getattr(options, name) for name in ("micro_batch", "chunk", "steps")},
            "rows": [kept[name] for name in CASES if name in kept],
            "environment": environment(torch.device("cpu")),
        }
        OUTPUT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=DEFAULT)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="that are timed, after one to warm up")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process that measures one case
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.micro_batch, chosen.chunk, chosen.steps)))
    else:
        main(chosen)
