"""Run the commands of docs/first-merge.md as they stand and show there what they print. Writes eval/results/first_merge.json.

python eval/first_merge.py

It can be stopped and given again: the merge goes on from its last checkpoint. With `--keep` blocks that are in the results as they stand
are not run again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

PAGE = Path("docs/first-merge.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def with_output(page: str) -> list[tuple[str, str]]:
    """Language and source of the blocks whose output a page shows: each is the last one before a block of text."""
    blocks = BLOCK.findall(page)
    return [before for before, (language, _) in pairwise(blocks) if language == "text"]


def printed(language: str, source: str, folder: Path) -> str:
    """What a block of the page prints, run in the folder; a merge is taken up where it was stopped."""
    if language == "python":
        command = [sys.executable, "-c", source]
    else:
        goes_on = source.strip().replace("gopd-merge --", "gopd-merge --resume --")
        command = ["bash", "-ec", goes_on]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip() + "\n"


def main(folder: Path, output: Path, keep: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "adapters"
    if not link.exists():
        link.symlink_to(Path("adapters").resolve())
    page = PAGE.read_text()
    known = json.loads(output.read_text())["outputs"] if keep else {}
    outputs = {}
    for language, source in with_output(page):
        outputs[source] = known.get(source) or printed(language, source, folder)
        print(outputs[source], flush=True)
    environment = json.loads((folder / "merged.lora" / "merge.json").read_text())["environment"]
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "outputs": outputs, "environment": environment}
    output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    texts = iter(outputs.values())
    PAGE.write_text(BLOCK.sub(lambda block: f"```text\n{next(texts)}```" if block[1] == "text" else block[0], page))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("eval/work/first-merge"))
    parser.add_argument("--output", type=Path, default=Path("eval/results/first_merge.json"))
    parser.add_argument("--keep", action="store_true")
    main(**vars(parser.parse_args()))
