"""Base and expert on the test questions of each further domain. Writes eval/results/domains.json.

    python eval/domains/train.py
    python eval/domains/measure.py

What was answered is kept in the folder of the experts, so that the command can be stopped and given again.
"""

import argparse
import json
import sys
from pathlib import Path

from gopd_merge.comparison.run import compare
from gopd_merge.eval_config import EvalConfig
from gopd_merge.report.progress import Progress


def main(experts: Path, limit: int, temperature: float, output: Path) -> None:
    rows, environment = [], {}
    command = " ".join(["python", *sys.argv])
    for folder in sorted(experts.glob("*.lora")):
        answers = experts / f"answers-temperature-{temperature:g}" / folder.name.removesuffix(".lora")
        config = EvalConfig(adapters=(str(folder),), temperature=temperature, limit=limit, batch_size=250, output=answers)
        with Progress() as listener:
            document = compare(config, command, listener).document
        training = json.loads((folder / "training.json").read_text())
        made = {name: training[name] for name in ("rank", "targets", "steps", "seconds")}
        rows.append({"domain": training["domain"], "training": made, "results": document["results"]})
        environment = document["environment"]
        scores = (f"{row['method']} {row['score']:.3f} ({row['low']:.3f}–{row['high']:.3f})" for row in document["results"])
        print(training["domain"], *scores, flush=True)
    if not rows:
        raise SystemExit(f"{experts}: no experts there; make them with python eval/domains/train.py --output {experts}")
    document = {"schema": 1, "command": command, "temperature": temperature, "domains": rows, "environment": environment}
    output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=Path, default=Path("eval/work/experts"))
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("eval/results/domains.json"))
    main(**vars(parser.parse_args()))
