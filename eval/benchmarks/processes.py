"""The same merge in one, two and four processes of one thread each: seconds of a step, and how much of them goes into exchanges.

    python eval/benchmarks/processes.py --model embedded
    python eval/benchmarks/processes.py --model smollm2-135m

All processes run on this machine, so more of them than it has cores can only be slower. A step is the same work whatever their number: the
same prompts, answers and gradient. The first step is left out. Adds the model's rows to eval/results/processes.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from models import FIRST_WORD, SHAPES, make_model

from gopd_merge import MergeConfig, merge
from gopd_merge.parallel import Processes, launched
from gopd_merge.report.progress import Silent

RESULT = Path("eval/results/processes.json")
WORK = Path("eval/work/processes")
COUNTS = (1, 2, 4)
EMBEDDED = "embedded"
STEPS = {EMBEDDED: 11, "smollm2-135m": 4, "tiny": 3}
LAUNCH = ["launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def options_of(model: str) -> dict[str, Any]:
    """Of the merge that is measured."""
    common = {"eval": False, "device": "cpu", "quantize": "none", "overwrite": True, "steps": STEPS[model]}
    if model == EMBEDDED:  # batch and lengths are the command's defaults
        return common | {"experts": {domain: f"adapters/{domain}.lora" for domain in ("code", "math")}}
    shape, folder = SHAPES[model], WORK / model
    make_model(shape, folder)
    prompts = folder / "prompts.jsonl"
    texts = [" ".join(f"w{FIRST_WORD + number + at}" for at in range(shape.prompt_tokens)) for number in range(4 * shape.prompts)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return common | {
        "experts": {"expert": str(folder / "expert.lora")},
        "prompts": {"expert": str(prompts)},
        "batch_size": shape.prompts,
        "micro_batch_size": 2,
        "max_new_tokens": shape.response_tokens,
    }


class Times(Silent):
    """When each step of the first process ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def step(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


class Exchanges:
    """Seconds that this process spends in exchanges, the waiting for others included."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("gather", "summed"):
            setattr(Processes, name, self.timed(getattr(Processes, name)))

    def timed(self, exchange: Any) -> Any:
        def run(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return exchange(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return run


def work(model: str, output: Path) -> None:
    """What each process does: the merge; the first one writes what it took."""
    times, exchanges = Times(), Exchanges()
    result = merge(MergeConfig(output=output, **options_of(model)), times)
    if launched().is_first:
        seconds = [later - earlier for earlier, later in zip(times.ends, times.ends[1:], strict=False)]
        steps = len(times.ends)
        row = {
            "step_seconds": statistics.median(seconds),
            "steps": seconds,
            "exchange_seconds": exchanges.seconds / steps,
            "phase_seconds": {phase: result.document["seconds"][phase] / steps for phase in ("rollout", "score", "update")},
            "tokens": result.document["tokens"] / steps,
            "environment": result.document["environment"],
        }
        print(json.dumps(row))


def measured(model: str, count: int) -> dict[str, Any]:
    """A row, of so many processes."""
    output = WORK / f"{model}-{count}.lora"
    script = [__file__, "--model", model, "--output", str(output)]
    launcher = [str(Path(sys.executable).with_name("accelerate")), *LAUNCH, "--num_processes", str(count)]
    command = [*launcher, *script] if count > 1 else [sys.executable, *script]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(output)
    return {"model": model, "processes": count, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=STEPS, default=EMBEDDED)
    parser.add_argument("--output", type=Path, help="used by the script itself: be one of the processes")
    arguments = parser.parse_args()
    if arguments.output:
        work(arguments.model, arguments.output)
        return
    WORK.mkdir(parents=True, exist_ok=True)
    options_of(arguments.model)  # makes the model, before several processes need it
    rows = [measured(arguments.model, count) for count in COUNTS]
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = [row for row in kept if row["model"] != arguments.model] + rows
    document = {
        "command": "python eval/benchmarks/processes.py --model MODEL",
        "cores": os.cpu_count(),
        "environment": rows[-1]["environment"],
        "rows": rows,
    }
    RESULT.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
