"""Quality against `--horizon` on the embedded default: how much of each response must be seen?

    python eval/horizon.py
    python eval/horizon.py --summary

The default command with several horizons and seeds, trained on one loaded base and measured on the same test questions, which are answered
in full. Runs and answers are kept in eval/work/horizon, so that the command can be stopped and given again. `--summary` writes
eval/results/horizon.json: for each horizon and domain the score with its 95 % interval and the paired difference from whole responses,
tests corrected by Holm; the response tokens that were trained on; and the share of responses that the horizon cut.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

import torch
from methods import EXPERTS, Row, folder_of, run, summarise

from gopd_merge.artefacts import environment
from gopd_merge.distillation import METRICS

OUTPUT = Path("eval/results/horizon.json")
HORIZONS = (None, 4, 8, 16, 24, 32)
QUESTIONS = 1000  # a domain


def rows() -> list[Row]:
    """Whole responses first: the others are compared with them."""
    names = {horizon: f"horizon {horizon}" if horizon else "whole responses" for horizon in HORIZONS}
    return [Row("horizon", name, {"horizon": horizon}, names[None]) for horizon, name in names.items()]


def past_horizon(work: Path, row: Row, seeds: list[int]) -> float | None:
    """The share of responses that were cut, over all steps and domains."""
    metrics = [(folder_of(work, row, seed) / METRICS).read_text().splitlines() for seed in seeds]
    shares = [domain.get("past_horizon") for lines in metrics for line in lines for domain in json.loads(line)["domains"].values()]
    return None if row.options["horizon"] is None else fmean(shares)


def main(work: Path, seeds: list[int], summary: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not summary:
        run(work, rows(), seeds, QUESTIONS)
        return
    found = summarise(work, rows(), seeds, QUESTIONS)
    of = {row.name: row for row in rows()}
    for one in found["rows"]:
        one["past_horizon"] = past_horizon(work, of[one["name"]], one["seeds"])
    command = " ".join(["python", *sys.argv])
    document = {"schema": 1, "command": command, "experts": EXPERTS, **found, "environment": environment(torch.device("cpu"))}
    OUTPUT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for one in document["rows"]:
        print(one["name"], one["seeds"], one["tokens"], {r["domain"]: f"{100 * r['score']:.1f}" for r in one["results"]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/horizon"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--summary", action="store_true", help="only write the document of what is there")
    main(**vars(parser.parse_args()))
