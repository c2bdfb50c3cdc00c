"""Five seeds of the main command at four reward scales, against base, experts, exact average and task arithmetic.

    python eval/embedded_seeds.py

Every merge is the default command but for α and the seed. Each model answers all test questions of both domains at temperature 1
(with the seed of the run) and greedily. The coefficient of task arithmetic is chosen on the validation split. Rows are kept in
eval/work as they are measured, so that the command can be stopped and given again. Writes eval/results/embedded_seeds.json.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from gopd_merge import MergeConfig, merge
from gopd_merge.artefacts import environment
from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.evaluate.tasks import Task
from gopd_merge.experts.deltas import load_updates
from gopd_merge.experts.static import weighted_sum
from gopd_merge.pipeline import load_backbone, measure, result_row
from gopd_merge.plan import Inputs, read_inputs
from gopd_merge.prompts.sources import graded_prompts

EXPERTS = {"math": "adapters/math.lora", "code": "adapters/code.lora"}
ALPHAS = (1.0, 1.25, 1.5, 2.0)
GRID = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)  # task arithmetic: the coefficient of every expert's update
TUNING_QUESTIONS = 1000


class Study:
    """One loaded backbone, and the rows measured so far."""

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        self.rows_file = work / "rows.jsonl"
        self.rows = [json.loads(line) for line in self.rows_file.read_text().splitlines()] if self.rows_file.exists() else []
        self.config = MergeConfig(experts=EXPERTS, output=work / "unused", batch_size=250)  # of questions asked at once
        self.inputs: Inputs = read_inputs(self.config)
        self.backbone: Backbone = load_backbone(self.config, self.inputs)
        self.environment = environment(self.backbone.device)  # of the code that runs, should the checkout change meanwhile
        self.updates = [load_updates(e) for e in self.inputs.experts]

    def tasks(self, split: str, n: int | None = None) -> list[Task]:
        sets = [graded_prompts(e.domain, e.path, split) for e in self.inputs.experts]
        return [Task(s.domain, s.prompts[:n]) for s in sets if s]

    def measure(
        self, method: str, role: str, seed: int, temperature: float, split: str = "test", parameters=None, alpha=None, n=None
    ) -> None:
        """Measure a role on both domains, unless that row is there already."""
        for task in self.tasks(split, n):
            wanted = {"method": method, "domain": task.domain, "seed": seed, "temperature": temperature}
            wanted |= {"split": split, "parameters": parameters, "alpha": alpha}
            if any(all(row[k] == v for k, v in wanted.items()) for row in self.rows):
                continue
            config = self.config.model_copy(update={"seed": seed})
            outcome = measure(self.backbone, role, task, config, temperature)
            row = asdict(result_row("embedded", outcome, metric=task.metric, **wanted))
            self.rows.append(row)
            with self.rows_file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{method} α={alpha} {parameters or ''} {task.domain} T={temperature:g} seed {seed} {split}: {row['score']:.4f}", flush=True
            )

    def tuned_coefficient(self) -> float:
        """The coefficient with the best mean validation accuracy over both domains."""
        scores = {}
        for coefficient in GRID:
            self.backbone.add_updates("grid", weighted_sum(self.updates, [coefficient] * len(self.updates)))
            self.measure("task_arithmetic", "grid", 0, 1.0, "validation", {"coefficient": coefficient}, n=TUNING_QUESTIONS)
            self.backbone.remove("grid")
            scores[coefficient] = sum(
                r["score"] for r in self.rows if r["split"] == "validation" and r["parameters"] == {"coefficient": coefficient}
            )
        return max(scores, key=scores.__getitem__)


def main(work: Path, seeds: int, output: Path) -> None:
    study = Study(work)
    backbone = study.backbone
    backbone.add_updates("average", weighted_sum(study.updates, [1 / len(study.updates)] * len(study.updates)))
    coefficient = study.tuned_coefficient()
    backbone.add_updates("tuned", weighted_sum(study.updates, [coefficient] * len(study.updates)))
    rivals = [("base", REFERENCE, None), *((f"expert:{d}", expert(d), None) for d in sorted(EXPERTS))]
    rivals += [("average", "average", {"weights": "1/n"}), ("task_arithmetic", "tuned", {"coefficient": coefficient})]
    for method, role, parameters in rivals:
        study.measure(method, role, 0, 0.0, parameters=parameters)
    for seed in range(seeds):
        for method, role, parameters in rivals:
            study.measure(method, role, seed, 1.0, parameters=parameters)
        for alpha in ALPHAS:
            folder = work / f"alpha-{alpha:g}-seed-{seed}.lora"
            if not (folder / "merge.json").is_file():
                started = time.time()
                merge(MergeConfig(experts=EXPERTS, alpha=alpha, seed=seed, output=folder, overwrite=folder.exists(), eval=False))
                print(f"merged {folder.name} in {time.time() - started:.0f} s", flush=True)
            backbone.load_adapter(folder, "merged")
            for temperature in (1.0, 0.0):
                study.measure("opd" if alpha == 1 else "exopd", "merged", seed, temperature, alpha=alpha)
            backbone.remove("merged")
    document = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "config": MergeConfig(experts=EXPERTS).model_dump(mode="json", exclude={"output", "alpha", "seed"}),
        "tuned_coefficient": coefficient,
        "tuning_grid": GRID,
        "results": study.rows,
        "environment": study.environment,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("eval/results/embedded_seeds.json"))
    main(**vars(parser.parse_args()))
