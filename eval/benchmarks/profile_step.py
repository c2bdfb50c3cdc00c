"""Where the time of scoring and update goes, by kind of operation, and how it was before the code was made faster.

    python eval/benchmarks/profile_step.py
    python eval/benchmarks/profile_step.py --case "qwen2.5-0.5b, NF4, ragged"

Random weights, two experts of rank 16 on all linear layers, λ = 1.25, random responses of planned lengths. `before` is the code of an
earlier commit, checked out into a temporary folder; both take turns, each time in a process of its own, on the same tokens. What is
timed runs without the profiler; shares are of one further step under torch.profiler. Cases that are not measured again keep their rows.
Writes eval/results/profile_step.json.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

OUTPUT = Path("eval/results/profile_step.json")
WORK = Path("eval/work/side_by_side")
BEFORE = "99bf867"  # the last commit whose step was as it had been
SIZES = {"prompts": 16, "prompt_tokens": 32, "response_tokens": 128}
SHAPES = ("smollm2-135m", "qwen2.5-0.5b")
QUANTIZE = {"float32": "none", "NF4": "nf4"}
FILLS = ("ragged", "full")
CASES = [f"{shape}, {precision}, {fill}" for shape in SHAPES for precision in QUANTIZE for fill in FILLS]
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


def measure(case: str, micro_batch: int, chunk: int, repetitions: int, profiled: bool) -> dict[str, Any]:
    """In this process, with whichever gopd_merge it imports."""
    import torch
    from models import RANK, make_model
    from models import SHAPES as MODELS
    from recorded import Recorded, make_questions
    from rivals import Ours
    from torch.profiler import ProfilerActivity, profile
    from worker import Memory, forget_peak, matrix_peak

    from gopd_merge.distill.target import Scale, score
    from gopd_merge.distill.update import accumulate_gradient

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
        found["kl"] = accumulate_gradient(ours.cast, rollout, found["target"], "full", micro_batch, chunk).kl
        found["gradient"] = torch.cat([p.grad.flatten() for p in ours.backbone.student_parameters()])
        for parameter in ours.backbone.student_parameters():
            parameter.grad = None

    works = dict(zip(PHASES, (score_all, update), strict=True))
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for repetition in range(repetitions + 1):  # the first one warms up
        for phase, work in works.items():
            started = time.perf_counter()
            work()
            if repetition:
                seconds[phase].append(time.perf_counter() - started)
    row: dict[str, Any] = {"seconds": {phase: median(values) for phase, values in seconds.items()}}
    row |= {"kl": float(found["kl"].mean()), "gradient_norm": float(found["gradient"].norm())}
    row |= {"peak_bytes": Memory.read().peak_above(loaded), "matrix_flops": matrix_peak()}
    row["useful_flops"] = shape.useful_flops(questions.lengths, 2)
    if profiled:
        row["shares"] = {}
        for phase, work in works.items():
            started = time.perf_counter()
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
                work()
                whole = time.perf_counter() - started
            spent = dict.fromkeys(KINDS, 0.0)
            for event in profiler.key_averages(group_by_input_shape=True):
                spent[kind_of(event.key, event.input_shapes or [], RANK, shape.vocabulary)] += event.self_cpu_time_total / 1e6
            spent["between operators"] = max(0.0, whole - sum(spent.values()))
            row["shares"][phase] = {kind: round(time_spent / whole, 4) for kind, time_spent in spent.items()}
    return row


def in_own_process(package: Path, options: argparse.Namespace, case: str, profiled: bool) -> dict[str, Any]:
    """`measure` with the gopd_merge of that folder; its result is its last line."""
    command = [sys.executable, __file__, "--one", case, "--micro-batch", str(options.micro_batch), "--chunk", str(options.chunk)]
    command += ["--steps", str(options.steps), *(["--profiled"] if profiled else [])]
    environment = os.environ | {"PYTHONPATH": str(package), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(case: str, options: argparse.Namespace, packages: dict[str, Path]) -> dict[str, Any]:
    """Both states in turn; the order turns round every time."""
    runs: dict[str, list[dict[str, Any]]] = {state: [] for state in packages}
    for repetition in range(options.repetitions):
        for state in list(packages)[:: 1 if repetition % 2 == 0 else -1]:
            runs[state].append(in_own_process(packages[state], options, case, profiled=repetition == 0))
    row: dict[str, Any] = {"case": case}
    totals = {state: [sum(run["seconds"].values()) for run in found] for state, found in runs.items()}
    for state, found in runs.items():
        seconds = {phase: round(median(run["seconds"][phase] for run in found), 3) for phase in PHASES}
        reached = [run["useful_flops"] / total / run["matrix_flops"] for run, total in zip(found, totals[state], strict=True)]
        row[state] = {
            "seconds": seconds,
            "total_of_each": [round(total, 3) for total in totals[state]],
            "share_of_matrix_peak": round(median(reached), 3),
            "peak_bytes": max(run["peak_bytes"] for run in found),
            "shares": found[0]["shares"],
            **{name: found[0][name] for name in ("kl", "gradient_norm")},
        }
    row["ratio"] = round(median(a / b for a, b in zip(totals["before"], totals["after"], strict=True)), 3)
    return row


def main(options: argparse.Namespace) -> None:
    import torch

    from gopd_merge.artefacts import environment

    kept = {row["case"]: row for row in json.loads(OUTPUT.read_text())["rows"]} if OUTPUT.is_file() else {}
    with TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(before), BEFORE], check=True)
        try:
            for case in options.case:
                kept[case] = compare(case, options, {"before": before, "after": Path.cwd()})
                print(json.dumps(kept[case]), flush=True)
                document = {
                    "schema": 1,
                    "command": "python eval/benchmarks/profile_step.py",
                    "before": BEFORE,
                    **SIZES,
                    **{name: getattr(options, name) for name in ("micro_batch", "chunk", "steps", "repetitions")},
                    "rows": [kept[name] for name in CASES if name in kept],
                    "environment": environment(torch.device("cpu")),
                }
                OUTPUT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], check=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1, help="that are timed in each process, after one to warm up")
    parser.add_argument("--repetitions", type=int, default=3, help="processes of each state")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process that measures one state
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.micro_batch, chosen.chunk, chosen.steps, chosen.profiled)))
    else:
        main(chosen)
