"""What the pages are tested in: a folder like the repository's, in which a user's own files are there as well."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from gopd_merge.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILES = {  # what the pages call the user's own -> what stands in for it
    "math.lora": "adapters/math.lora",
    "code.lora": "adapters/code.lora",
    "math.jsonl": "adapters/math.lora/prompts/train.jsonl",
    "code.jsonl": "adapters/code.lora/prompts/train.jsonl",
    "math-test.jsonl": "adapters/math.lora/prompts/test.jsonl",
    "adapters": "adapters",
}
MORE = {"law.lora": "math.lora", "style.lora": "code.lora"}  # further experts: copies with other weights, as the same adapter is refused
MERGED = ("merged.lora", "other.lora")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return BLOCK.findall(page)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder, with merges of one step that were measured on two questions."""
    folder = tmp_path_factory.mktemp("world")
    for name, path in FILES.items():
        (folder / name).symlink_to(ROOT / path)
    for name, path in MORE.items():
        shutil.copytree(ROOT / "adapters" / path, folder / name)
        weights = load_file(folder / name / "adapter_model.safetensors")
        save_file({key: 1.001 * value for key, value in weights.items()}, folder / name / "adapter_model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experts = ["--experts", "adapters/math.lora", "adapters/code.lora"]
        short = ["--steps", "1", "--batch-size", "4", "--max-new-tokens", "8", "--eval-prompts", "2", "--quiet"]
        assert main([*experts, *short, "--output", "merged.lora"]) == 0
        assert main([*experts, *short, "--output", "other.lora", "--seed", "1", "--no-eval"]) == 0
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A folder with all that, in which a page may write."""
    for path in world.iterdir():
        shutil.copytree(path, tmp_path / path.name) if path.name in MERGED else (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
