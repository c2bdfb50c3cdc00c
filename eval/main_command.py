"""Wall time and peak memory of the main command, by phase, over several runs. Writes eval/results/main_command.json.

python eval/main_command.py --runs 3
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main(runs: int, output: Path) -> None:
    command = [str(Path(sys.executable).with_name("gopd-merge")), "--experts", "adapters/math.lora", "adapters/code.lora", "--alpha", "2"]
    measured, environment = [], {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            done = subprocess.run([*command, "--json", "--output", f"{folder}/merged.lora"], capture_output=True, text=True, check=True)
            wall = time.perf_counter() - started
        document = json.loads(done.stdout)
        environment = document["environment"]
        measured.append({"wall_seconds": round(wall, 1)} | {k: document[k] for k in ("seconds", "peak_memory_bytes", "tokens")})
        print(measured[-1], flush=True)
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "runs": measured, "environment": environment}
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("eval/results/main_command.json"))
    main(**vars(parser.parse_args()))
