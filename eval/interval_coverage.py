"""Do 95 % intervals over questions hold the truth in 95 of 100 draws of questions? Writes eval/results/interval_coverage.json.

    python eval/interval_coverage.py

Questions have Beta-distributed difficulty and k right/wrong samples each. For scores: the percentile and BCa bootstraps on the questions
alone, and `bootstrap_interval`. For differences of two methods: `difference_interval`, where one method is better by `shift` on half of
the questions.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

from gopd_merge.artefacts import environment
from gopd_merge.evaluate.statistics import bootstrap_interval, difference_interval

QUESTIONS, SAMPLES = (10, 20, 50, 200, 1000), (1, 4, 16)
DIFFICULTIES = ((0.5, 1.0), (0.9, 1.0), (0.97, 1.0), (0.5, 10.0))  # mean, and a + b of the Beta distribution
SHIFTS = (0.0, 0.02)
RESAMPLES = 999


def bare(method: str):
    """scipy's interval of the mean of the questions alone; of no width where all score alike."""

    def interval(values, seed):
        if np.ptp(values) == 0:
            return values[0], values[0]
        found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method=method, rng=np.random.default_rng(seed))
        return found.confidence_interval

    return interval


def measured(interval, values, truth: float) -> dict:
    """How often the intervals of the rows of `values` (draws, questions) hold the truth, and their mean width."""
    found = np.array([interval(row, seed) for seed, row in enumerate(values)])
    held = (found[:, 0] <= truth + 1e-12) & (found[:, 1] >= truth - 1e-12)
    return {"coverage": round(float(held.mean()), 3), "width": round(float((found[:, 1] - found[:, 0]).mean()), 4)}


def main(draws: int, output: Path) -> None:
    made_by = environment(torch.device("cpu"))  # of the code that runs, should the checkout change meanwhile
    rng = np.random.default_rng(0)
    rows = []
    for n in QUESTIONS:
        for k in SAMPLES:
            for mean, spread in DIFFICULTIES:
                a, b = mean * spread, (1 - mean) * spread
                difficulty = rng.beta(a, b, size=(draws, n))
                scores = rng.binomial(k, difficulty) / k
                row = {"n": n, "k": k, "mean": mean, "spread": spread}
                row |= {method: measured(bare(method), scores, mean) for method in ("percentile", "BCa")}
                row["bootstrap_interval"] = measured(bootstrap_interval, scores, mean)
                for shift in SHIFTS:
                    easier = np.minimum(difficulty + shift * (rng.random((draws, n)) < 0.5), 1)
                    truth = float((np.minimum((p := rng.beta(a, b, size=10**6)) + shift, 1) - p).mean() / 2)
                    differences = rng.binomial(k, easier) / k - scores
                    row[f"difference_interval, shift {shift:g}"] = measured(difference_interval, differences, truth)
                rows.append(row)
                print(row, flush=True)
    document = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "draws": draws,
        "rows": rows,
        "environment": made_by,
    }
    output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("eval/results/interval_coverage.json"))
    main(**vars(parser.parse_args()))
