"""Train an embedded expert with `gopd-merge train-expert`: RLVR on the NF4-quantised tiny base, on its own domain only.

    python adapters/recipe/train_expert.py --domain math --rank 8 --targets all --output adapters/math.lora

The domain's problems come out of a generator that splits them by the hash of their text; the command puts them beside the adapter.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from splits import distinct

from gopd_merge.cli import main
from gopd_merge.evaluate.final_answer import FINAL

TARGETS = {
    "all": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    "some": "q_proj,v_proj,o_proj,up_proj,down_proj",
}
SIZES = {"train": 2000, "validation": 2000, "test": 2500}
GROUP = 12  # answers to each prompt: their mean reward is the baseline
SHOWN = ("prompt", "answer", "cases")


def write_problems(domain: str, folder: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """A file for each split."""
    files = {split: folder / f"{split}.jsonl" for split in sizes}
    for split, file in files.items():
        rows = [{key: problem[key] for key in SHOWN if key in problem} for problem in distinct(domain, split, seed=0, n=sizes[split])]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def train(
    domain: str, base: str, output: str, rank: int, targets: str, steps: int, prompts_per_step: int, learning_rate: float, seed: int
) -> int:
    with TemporaryDirectory() as folder:
        files = write_problems(domain, Path(folder), SIZES)
        options = {
            "recipe": "rlvr", "domain": domain, "base": base, "output": output,
            "data": files["train"], "validation": files["validation"], "test": files["test"],
            "lora-rank": rank, "targets": TARGETS[targets], "final": FINAL, "generations": GROUP, "steps": steps,
            "batch-size": prompts_per_step, "micro-batch-size": GROUP * prompts_per_step, "learning-rate": learning_rate,
            "warmup-steps": 2, "max-new-tokens": 80, "patience": 0, "seed": seed,
        }  # fmt: skip
        return main(["train-expert", "--overwrite", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=("math", "code"), required=True)
    parser.add_argument("--base", default="adapters/tiny-base")
    parser.add_argument("--output", required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=TARGETS, default="all")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(train(**vars(parser.parse_args())))
