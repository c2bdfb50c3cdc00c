"""How well does `gopd-merge probe` say before training what the trained student will score?

    python eval/methods.py --study alpha
    python eval/probe_prediction.py

For every seed the probe with its defaults (300 validation questions a domain), against that seed's students of eval/methods.py on the
test questions, at every α that both have; the student of α = 0 is the base, which training toward the base leaves as it is. Writes
eval/results/probe_prediction.json: Spearman's rank correlation over α, the gap (student minus target), the α that the probe chose, and how
far the student of that α is behind the best student of the seed.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from methods import EXPERTS, answers_of, folder_of, questions_of, rows
from scipy.stats import spearmanr

from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.contenders import BASE
from gopd_merge.comparison.measuring import Setup, measure
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.plan import read_inputs
from gopd_merge.probe_config import ProbeConfig
from gopd_merge.scaling.probe import probe
from gopd_merge.settings import identity

OUTPUT = Path("eval/results/probe_prediction.json")


def base_scores(work: Path, config: MergeConfig) -> dict[str, float]:
    """The base on the test questions, by domain."""
    inputs = read_inputs(config)
    setup = Setup(work / "evaluation" / "base", identity(inputs.base, inputs.experts, config.quantize), 0, 250)
    backbone = load_backbone(config, inputs)
    return {b.domain: fmean(a.score for a in measure(backbone, BASE, b, setup)) for b in questions_of(config)}


def student_scores(work: Path, seed: int, config: MergeConfig) -> dict[tuple[str, float], float]:
    """Of the merges at every α, by domain and α."""
    found = {}
    for row in rows():
        folder = folder_of(work, row, seed)
        if row.study == "alpha" and len(list((work / "evaluation" / folder.name / "answers").glob("*.jsonl"))) == len(EXPERTS):
            for (_, domain), answers in answers_of(work, folder, None, config).answers.items():
                found[domain, float(row.options["alpha"])] = fmean(answer.score for answer in answers)
    return found


def compared(domain: str, seed: int, points: Mapping[float, Mapping[str, Any]], students: Mapping[float, float], chosen: float) -> dict:
    """One domain and seed: the probe's points by α, and the students' scores by α."""
    alphas = sorted(points.keys() & students.keys())
    target, student = [points[a]["score"] for a in alphas], [students[a] for a in alphas]
    return {
        "domain": domain,
        "seed": seed,
        "alphas": alphas,
        "target": target,
        "student": student,
        "rank_correlation": float(spearmanr(target, student).statistic),
        "mean_gap": fmean(s - t for s, t in zip(student, target, strict=True)),
        "chosen": chosen,
        "chosen_is_behind_best_student": max(student) - students[chosen],
    }


def main(work: Path, seeds: list[int]) -> None:
    config = make_config({"experts": EXPERTS, "eval": False})
    base = base_scores(work, config)
    results = []
    for seed in seeds:
        students = student_scores(work, seed, config) | {(domain, 0.0): score for domain, score in base.items()}
        options = ProbeConfig(experts=EXPERTS, seed=seed, output=work / f"probe-seed-{seed}")
        document = probe(options, f"gopd-merge probe --experts {' '.join(EXPERTS.values())} --seed {seed}").document
        for domain in sorted(EXPERTS):
            points = {point["alpha"]: point for point in document["points"] if point["domain"] == domain}
            of_domain = {alpha: score for (name, alpha), score in students.items() if name == domain}
            results.append(compared(domain, seed, points, of_domain, document["chosen"][domain]))
            print({key: value for key, value in results[-1].items() if not isinstance(value, list)}, flush=True)
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "questions": options.limit, "results": results}
    OUTPUT.write_text(json.dumps(document | {"environment": environment(torch.device("cpu"))}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/methods"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    main(**vars(parser.parse_args()))
