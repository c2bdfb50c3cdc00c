"""Does it pay to extrapolate the student along its own update direction, as EffOPD (arXiv 2605.11739) proposes for OPD?

    python eval/extrapolated_steps.py --seeds 0 1 2 3 4

Every few optimiser steps the student is also tried further along the way that it went since the last time, θ + γ(θ − θ_before), and stays
where the KL to the target is lowest on the answers that it gave to held-out prompts. The paper does not say how it tries; this is the plain
form of its idea. Runs of 12, 25 and 50 steps with and without it, everything else being the default merge; the runs without are those of
eval/methods.py. Writes eval/results/extrapolated_steps.json.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from methods import EXPERTS, answers_of, questions_of, rows
from methods import folder_of as plain_folder
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.measuring import result, scores
from gopd_merge.comparison.training import train_on
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.objective import reverse_kl
from gopd_merge.distill.rollout import generate, row_seeds
from gopd_merge.distill.target import Scale, score
from gopd_merge.evaluate.statistics import paired, with_holm
from gopd_merge.evaluate.validation import load_validation
from gopd_merge.plan import MANIFEST, read_inputs
from gopd_merge.report.progress import Silent

OUTPUT = Path("eval/results/extrapolated_steps.json")
EVERY = 4  # optimiser steps between two tries
FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)
HELD_OUT = 32  # prompts of each domain
STEPS = (12, 25, 50)


class Extrapolation:
    """After every `EVERY`-th optimiser step the student moves on by the best of `FACTORS`."""

    def __init__(self, backbone: Backbone, config: MergeConfig) -> None:
        self.backbone, self.config = backbone, config
        self.cast = plain_cast(backbone, config.domains)
        folders = {e.domain: e.path for e in read_inputs(config).experts}
        questions = load_validation(folders, limit=HELD_OUT, max_new_tokens=config.max_new_tokens)
        self.prompts = [item.prompt for benchmark in questions for item in benchmark.items]
        self.domains = [benchmark.domain for benchmark in questions for _ in benchmark.items]
        self.before: list[torch.Tensor] = []  # the student at the last try, or as it was made
        self.steps = 0
        self.chosen: list[float] = []

    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.backbone.student_parameters()]

    def begin(self, *_: Any) -> None:
        """Before every optimiser step."""
        self.before = self.before or self.parameters()

    @torch.no_grad()
    def go_on(self, *_: Any) -> None:
        """After every optimiser step."""
        self.steps += 1
        if self.steps % EVERY:
            return
        here = self.parameters()
        seeds = row_seeds(self.config.seed, "extrapolation", self.steps, count=len(self.prompts))
        rollout = generate(self.backbone, STUDENT, self.prompts, self.domains, self.config.max_new_tokens, seeds)
        alphas = {domain: self.config.alpha_of(domain) for domain in self.config.domains}
        target = score(self.cast, rollout, Scale(alphas), 32, 1024)
        found = {factor: self.kl(here, factor, rollout, target) for factor in FACTORS}
        best = min(found, key=lambda factor: found[factor])
        self.move(here, best)
        self.before = self.parameters()
        self.chosen.append(best)

    def move(self, here: list[torch.Tensor], factor: float) -> None:
        for parameter, now, then in zip(self.backbone.student_parameters(), here, self.before, strict=True):
            parameter.copy_(now + factor * (now - then))

    def kl(self, here: list[torch.Tensor], factor: float, rollout: Any, target: Any) -> float:
        self.move(here, factor)
        logits = self.backbone.logits(rollout.predicting(self.backbone.hidden(STUDENT, rollout.ids, rollout.attention_mask)))
        log_q = target.log_probs(self.cast, torch.arange(rollout.num_tokens), logits)
        return float(reverse_kl(logits, log_q, rollout.response_ids()).mean())


def folder_of(work: Path, steps: int, seed: int) -> Path:
    """Of a run with extrapolation."""
    return work / f"extrapolated-{steps}-steps-seed-{seed}.lora"


def run(work: Path, seeds: list[int]) -> None:
    """Train and measure whatever is missing."""
    backbone = None
    for seed in seeds:
        for steps in STEPS:
            output = folder_of(work, steps, seed)
            config = make_config({"experts": EXPERTS, "seed": seed, "steps": steps, "output": output, "eval": False})
            inputs = read_inputs(config)
            backbone = backbone or load_backbone(config, inputs)
            if not (output / MANIFEST).is_file():
                extrapolation = Extrapolation(backbone, config)
                hooks = [register_optimizer_step_pre_hook(extrapolation.begin), register_optimizer_step_post_hook(extrapolation.go_on)]
                try:
                    train_on(backbone, config, inputs, Silent())
                finally:
                    for hook in hooks:
                        hook.remove()
                (output / "extrapolation.json").write_text(json.dumps({"every": EVERY, "factors": extrapolation.chosen}) + "\n")
            found = answers_of(work, output, backbone, config)
            print(seed, steps, {k[1]: sum(a.score for a in v) / len(v) for k, v in found.answers.items()}, flush=True)


def summarise(work: Path, seeds: list[int]) -> dict[str, Any]:
    """Each number of steps with and without, over the seeds that both have."""
    config = make_config({"experts": EXPERTS, "eval": False})
    plain = {row.options.get("steps", 50): row for row in rows() if row.name in ("alpha 1.25", "25 steps", "12 steps")}
    documents, compared = [], []
    for steps in STEPS:
        both = [s for s in seeds if (folder_of(work, steps, s) / "extrapolation.json").is_file()]
        both = [s for s in both if (plain_folder(work, plain[steps], s) / MANIFEST).is_file()]
        if not both:
            continue
        ours = [answers_of(work, folder_of(work, steps, s), None, config) for s in both]
        theirs = [answers_of(work, plain_folder(work, plain[steps], s), None, config) for s in both]
        factors = [json.loads((folder_of(work, steps, s) / "extrapolation.json").read_text())["factors"] for s in both]
        for benchmark in questions_of(config):
            names = {"suite": benchmark.suite.name, "domain": benchmark.domain}
            compared.append(
                paired(
                    scores(ours, benchmark),
                    scores(theirs, benchmark),
                    **names,
                    method=f"extrapolated, {steps} steps",
                    rival=f"{steps} steps",
                    rival_is="without",
                )
            )
            both_rows = {"extrapolated": asdict(result(ours, benchmark, 0)), "plain": asdict(result(theirs, benchmark, 0))}
            documents.append({"steps": steps, "seeds": both, "factors": factors, **both_rows})
    return {"rows": documents, "comparisons": [asdict(c) for c in with_holm(compared)]}


def main(work: Path, seeds: list[int], summary: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not summary:
        run(work, seeds)
    found = summarise(work, seeds)
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "every": EVERY, "factors": FACTORS, **found}
    OUTPUT.write_text(json.dumps(document | {"environment": environment(torch.device("cpu"))}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/methods"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--summary", action="store_true", help="only write the document of what is there")
    main(**vars(parser.parse_args()))
