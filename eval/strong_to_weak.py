"""Strong to weak on the embedded bases: an expert on the larger base teaches a student on the smaller one.

    python eval/strong_to_weak.py --seeds 0 1 2 3 4
    python eval/strong_to_weak.py --summary

Rows: the smaller base, the larger base and its expert; a student that learns the expert's own answers by heart (sequence-level
distillation, the SFT of the paper's table), OPD, ExOPD with the smaller base as reference (no correction), with the larger base as
reference (the paper's reward correction), and decoupled (reward against the larger base, KL to the smaller one). Kept in
eval/work/strong_to_weak, so that it can be stopped and given again. Writes eval/results/strong_to_weak.json.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone, load_teachers
from gopd_merge.comparison.contenders import BASE, Contender, of_experts, read_entry
from gopd_merge.comparison.measuring import Measured, Setup, key_of, measure, result, scores
from gopd_merge.comparison.training import train_on
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.distill.backbone import REFERENCE
from gopd_merge.evaluate.statistics import paired, with_holm
from gopd_merge.plan import MANIFEST, own_questions, read_inputs
from gopd_merge.report.progress import Silent
from gopd_merge.settings import identity

OUTPUT = Path("eval/results/strong_to_weak.json")
QUESTIONS = 2500
COMMON: dict[str, Any] = {
    "experts": {"math": "adapters/big-math.lora"},
    "teacher_base": "adapters/big-base",
    "base": "adapters/tiny-base",
    "eval": False,
}
DECOUPLED = {"reference": "teacher-base", "kl_reference": "base"}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {  # name: (the row that it is compared with, options)
    "SFT on the expert's answers": ("the smaller base", {"method": "seqkd"}),
    "OPD": ("SFT on the expert's answers", {"method": "opd"}),
    "ExOPD 1.25, no correction": ("OPD", {"alpha": 1.25, "reference": "base"}),
    "ExOPD 1.25, corrected": ("ExOPD 1.25, no correction", {"alpha": 1.25}),
    "ExOPD 1.25, decoupled": ("ExOPD 1.25, corrected", {"alpha": 1.25, **DECOUPLED}),
    "decoupled, alpha 1": ("OPD", {"alpha": 1.0, **DECOUPLED}),
    "ExOPD 1.5, no correction": ("OPD", {"alpha": 1.5, "reference": "base"}),
    "ExOPD 1.5, corrected": ("ExOPD 1.5, no correction", {"alpha": 1.5}),
}
MODELS = ("the smaller base", "the larger base", "the expert on the larger base")


def config_of(work: Path, name: str, seed: int) -> MergeConfig:
    """Of one run."""
    folder = f"{name.replace(' ', '-').replace(',', '').replace(chr(39), '')}-seed-{seed}.lora"
    return make_config({**COMMON, **ROWS[name][1], "seed": seed, "output": work / folder})


def run(work: Path, seeds: list[int]) -> None:
    """Train and measure whatever is missing."""
    first = config_of(work, "OPD", 0)
    inputs = read_inputs(first)
    backbone = load_backbone(first, inputs)
    for contender in models(load_teachers(first, inputs)):
        print(f"{contender.method}: {score_of(answers_of(work, contender, backbone, first)):.4f}", flush=True)
    for seed in seeds:
        for name in ROWS:
            config = config_of(work, name, seed)
            if not (config.output / MANIFEST).is_file():
                train_on(backbone, config, read_inputs(config), Silent())
            contender = read_entry(str(config.output)).contender(among_experts=True)
            print(f"seed {seed}, {name}: {score_of(answers_of(work, contender, backbone, config)):.4f}", flush=True)


def score_of(measured: Measured) -> float:
    """On the one domain that there is."""
    (answers,) = measured.answers.values()
    return fmean(answer.score for answer in answers)


def models(teachers: Any = None) -> list[Contender]:
    """What is not trained here, on its own base."""
    inputs = read_inputs(make_config(COMMON))
    larger = Contender("larger base", "base", role=REFERENCE, home=teachers)
    return [BASE, larger, *of_experts(inputs.experts, teachers)]


def answers_of(work: Path, contender: Contender, backbone: Any, config: MergeConfig) -> Measured:
    """Asked if there is a backbone, else read."""
    inputs = read_inputs(config)
    folder = work / "evaluation" / (contender.folder.name if contender.folder else contender.slug)
    setup = Setup(folder, identity(inputs.base, inputs.experts, config.quantize), 0, 250)
    questions = own_questions(inputs.experts, config.model_copy(update={"eval_prompts": QUESTIONS}))
    return Measured(contender, {key_of(b): measure(backbone, contender, b, setup) for b in questions})


def summarise(work: Path, seeds: list[int]) -> dict[str, Any]:
    """Every row that has at least one seed, over the seeds that it has."""
    first = config_of(work, "OPD", 0)
    (question,) = own_questions(read_inputs(first).experts, first.model_copy(update={"eval_prompts": QUESTIONS}))
    found = {name: [answers_of(work, one, None, first)] for name, one in zip(MODELS, models(), strict=True)}
    for name in ROWS:
        configs = [config for seed in seeds if ((config := config_of(work, name, seed)).output / MANIFEST).is_file()]
        if configs:
            found[name] = [answers_of(work, read_entry(str(c.output)).contender(True), None, c) for c in configs]
    compared = [
        paired(
            scores(found[name], question),
            scores(found[against], question),
            suite=question.suite.name,
            domain=question.domain,
            method=name,
            rival=against,
            rival_is="row before",
        )
        for name, (against, _) in ROWS.items()
        if name in found and against in found
    ]
    rows = [{"name": name, "result": asdict(result(measured, question, 0))} for name, measured in found.items()]
    return {"rows": rows, "comparisons": [asdict(c) for c in with_holm(compared)]}


def main(work: Path, seeds: list[int], summary: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not summary:
        run(work, seeds)
    document = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        **summarise(work, seeds),
        "environment": environment(torch.device("cpu")),
    }
    OUTPUT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/strong_to_weak"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--summary", action="store_true", help="only write the document of what is there")
    main(**vars(parser.parse_args()))
