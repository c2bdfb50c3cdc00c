"""What each estimator costs: time and memory of one update's loss and its gradient, at the sizes of SmolLM2-135M.

    python eval/estimator_cost.py

The loss alone, forward and backward to the student's hidden states, on random hidden states and a random head: 1,024 tokens, H = 576,
V = 49,152, chunks of 256. The target's part, its projection, is in it where the estimator needs one. Estimators take turns, so that load on
the machine does not favour one; times are medians, and ratios are those of the same turn. Memory is what PyTorch holds at most, beside the
inputs. Writes eval/results/estimator_cost.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

from gopd_merge.artefacts import environment
from gopd_merge.distill.footprint import LiveBytes
from gopd_merge.distill.fused import backward_in_chunks, backward_through_hidden, normalise_
from gopd_merge.distill.objective import ESTIMATORS, HIDDEN, gradient_of

OUTPUT = Path("eval/results/estimator_cost.json")
TOKENS, HIDDEN_SIZE, VOCABULARY, CHUNK, TOP_K = 1024, 576, 49_152, 256, 64
MEASURED = 128  # tokens that `hidden` projects for the statistics: 8 of each response of 64


def run(name: str, hidden: torch.Tensor, mixed: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> None:
    """One loss with its gradient."""
    leaf = hidden.clone().requires_grad_()

    def head(h: torch.Tensor) -> torch.Tensor:
        return h @ weight.T

    def log_q(rows: slice | torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return normalise_(head(mixed[rows]))

    if name == HIDDEN:
        backward_through_hidden(leaf * 1.0, mixed, ids, head, log_q, torch.arange(0, TOKENS, TOKENS // MEASURED), TOKENS, CHUNK)
    else:
        backward_in_chunks(leaf * 1.0, ids, head, log_q, gradient_of(name, TOP_K), TOKENS, CHUNK)


def main(turns: int) -> None:
    torch.manual_seed(0)
    hidden, mixed = torch.randn(TOKENS, HIDDEN_SIZE), torch.randn(TOKENS, HIDDEN_SIZE)
    weight = torch.randn(VOCABULARY, HIDDEN_SIZE) / HIDDEN_SIZE**0.5
    ids = torch.randint(VOCABULARY, (TOKENS,))
    seconds: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    peaks = {}
    for name in ESTIMATORS:
        with LiveBytes() as live:
            run(name, hidden, mixed, weight, ids)
        peaks[name] = live.peak
    for turn in range(turns):
        for name in ESTIMATORS[turn % len(ESTIMATORS) :] + ESTIMATORS[: turn % len(ESTIMATORS)]:
            started = time.perf_counter()
            run(name, hidden, mixed, weight, ids)
            seconds[name].append(time.perf_counter() - started)
    rows = [
        {
            "estimator": name,
            "seconds": round(median(found), 3),
            "ratio_to_full": round(median(a / b for a, b in zip(found, seconds["full"], strict=True)), 3),
            "peak_bytes": peaks[name],
        }
        for name, found in seconds.items()
    ]
    sizes = {"tokens": TOKENS, "hidden": HIDDEN_SIZE, "vocabulary": VOCABULARY, "chunk": CHUNK, "top_k": TOP_K, "turns": turns}
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), **sizes, "rows": rows}
    OUTPUT.write_text(json.dumps(document | {"environment": environment(torch.device("cpu"))}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    main(**vars(parser.parse_args()))
