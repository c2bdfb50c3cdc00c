"""Five seeds of the main command at four reward scales, compared with experts and tuned static merges on all test questions.

    python eval/embedded_seeds.py

Every merge is the default command but for α and the seed. Answers are sampled at temperature 1, or greedy with --temperature 0.
Everything is kept in eval/work as it is made, so that the command can be stopped and given again. Writes
eval/results/embedded_seeds.json, or the file that is named, without the sample answers and the training curves, which are long.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from gopd_merge import MergeConfig, merge
from gopd_merge.comparison.run import compare
from gopd_merge.eval_config import CompareConfig
from gopd_merge.report.progress import Progress

EXPERTS = {"math": "adapters/math.lora", "code": "adapters/code.lora"}
ALPHAS = (1.25, 1.0, 1.5, 2.0)  # the first, the default, is what the comparisons are about: choosing one by its score would flatter it
QUESTIONS, TUNING_QUESTIONS = 2500, 1000


def merged(work: Path, alpha: float, seed: int) -> str:
    """The folder of a merge, made if it is not there."""
    folder = work / f"alpha-{alpha:g}-seed-{seed}.lora"
    if not (folder / "merge.json").is_file():
        started = time.time()
        merge(MergeConfig(experts=EXPERTS, alpha=alpha, seed=seed, output=folder, overwrite=folder.exists(), eval=False))
        print(f"merged {folder.name} in {time.time() - started:.0f} s", flush=True)
    return str(folder)


def main(work: Path, seeds: int, temperature: float, output: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    adapters = tuple(merged(work, alpha, seed) for alpha in ALPHAS for seed in range(seeds))
    config = CompareConfig(
        adapters=adapters,
        temperature=temperature,
        limit=QUESTIONS,
        tune_limit=TUNING_QUESTIONS,
        seed=0,
        batch_size=250,
        output=work / f"temperature-{temperature:g}",
    )
    with Progress() as listener:
        found = compare(config, " ".join(["python", *sys.argv]), listener)
    print(found.table, flush=True)
    kept = {key: value for key, value in found.document.items() if key not in ("samples", "curves")}
    output.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("eval/results/embedded_seeds.json"))
    main(**vars(parser.parse_args()))
