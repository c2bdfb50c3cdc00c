"""Everything runs on the embedded base and experts, offline, from the installed package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = ROOT / "adapters"


@pytest.fixture(scope="session")
def adapters() -> Path:
    """The folder of the embedded default: tiny-base, math.lora, code.lora."""
    return ADAPTERS


@pytest.fixture
def math_copy(tmp_path) -> Path:
    """A copy of the math expert to damage. Its base is found beside it."""
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "tiny-base").symlink_to(ADAPTERS / "tiny-base")
    return shutil.copytree(ADAPTERS / "math.lora", tmp_path / "adapters" / "math.lora")


@pytest.fixture
def code_copy(tmp_path, math_copy) -> Path:
    return shutil.copytree(ADAPTERS / "code.lora", tmp_path / "adapters" / "code.lora")


@pytest.fixture
def edit_config():
    """Change keys of an adapter's config: edit_config(folder, bias="all")."""

    def edit(folder: Path, **changes: object) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.fixture
def run_cli(tmp_path):
    """Run the installed command in a folder of its own; returns the finished process."""
    command = Path(sys.executable).with_name("gopd-merge")

    def run(*args: object, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [command, *map(str, args)],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"} | env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run
