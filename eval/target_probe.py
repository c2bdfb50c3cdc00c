"""What a merge can reach: accuracy of the target q ∝ teacher^α · reference^(1−α) itself, sampled without a student, on test questions.

    python eval/target_probe.py

`gopd-merge probe` does the same on validation questions, to choose α. Writes eval/results/target_probe.json.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gopd_merge import MergeConfig
from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.measuring import Setup
from gopd_merge.plan import read_inputs
from gopd_merge.probe_config import ALPHAS
from gopd_merge.report.progress import Progress
from gopd_merge.scaling.probe import probe_on
from gopd_merge.settings import identity


def main(seed: int, output: Path, questions: int) -> None:
    experts = {domain: f"adapters/{domain}.lora" for domain in ("math", "code")}
    config = MergeConfig(experts=experts, output=Path("unused.lora"), eval_prompts=questions)
    inputs = read_inputs(config)
    backbone = load_backbone(config, inputs)
    with TemporaryDirectory() as folder, Progress() as listener:
        setup = Setup(Path(folder), identity(inputs.base, inputs.experts, config.quantize), seed, batch_size=250)
        found = probe_on(backbone, inputs.test, ALPHAS, setup, listener)
    document = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "results": [{**point.model_dump(mode="json"), "split": "test", "temperature": 1.0} for point in found.points],
        "environment": environment(backbone.device),
    }
    output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=2500)
    parser.add_argument("--output", type=Path, default=Path("eval/results/target_probe.json"))
    main(**vars(parser.parse_args()))
