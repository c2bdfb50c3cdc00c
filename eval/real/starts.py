"""What the student's start is worth where experts are far from the base and steps are few: the study's first method, begun twice.

    python eval/real/study.py --work eval/work/real-none --start none --stage base data experts search
    python eval/real/study.py --work eval/work/real --stage base data experts search
    python eval/real/starts.py eval/work/real-none eval/work/real

The study was begun this way: where its merges begin was chosen by this, on validation questions, before any was measured on a test.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import binomtest

from gopd_merge.disk import read_json_lines, write_json

METHOD, RATE, LAST = "exopd-1.25", 1e-3, 3  # steps whose mean is the distance at the end: one step's is a few prompts'
OUTPUT = Path("eval/results/smollm2_start.json")


def row(work: Path) -> dict[str, Any]:
    """One start: distances, time, and right answers on validation questions with Wilson's interval."""
    name = f"{METHOD}-rate-{RATE:g}"
    merge = work / "merges" / f"{name}-seed-0.lora"
    manifest, found = (json.loads(path.read_text()) for path in (merge / "merge.json", work / "search" / f"{name}.json"))
    steps = read_json_lines(merge / "metrics.jsonl")
    domains = {}
    for domain, share in found["scores"].items():
        right, asked = round(share * found["questions"]), found["questions"]
        low, high = binomtest(right, asked).proportion_ci(method="wilson")
        kl = [step["domains"][domain]["kl_to_target"] for step in steps]
        domains[domain] = {"right": right, "asked": asked, "low": low, "high": high, "kl_first": kl[0], "kl_last": fmean(kl[-LAST:])}
    config = manifest["config"]
    kept = {key: config[key] for key in ("start", "steps", "batch_size", "learning_rate", "alpha", "seed")}
    return kept | {"domains": domains, "seconds": manifest["seconds"]["total"], "environment": manifest["environment"]}


if __name__ == "__main__":
    works = [Path(given) for given in sys.argv[1:]]
    if not works:
        sys.exit(__doc__)
    command = f"python eval/real/starts.py {' '.join(sys.argv[1:])}"
    write_json(OUTPUT, {"schema": 1, "command": command, "last": LAST, "rows": [row(work) for work in works]})
