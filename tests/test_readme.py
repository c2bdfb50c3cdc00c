"""The README names the main command, and its Python runs. tests/docs/ runs its other commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_makefile_runs_the_command_that_the_readme_names():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert "gopd-merge --experts adapters/math.lora adapters/code.lora --alpha 2" in makefile
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    assert "\nmake test" in ci
    assert "make test " in README


@pytest.mark.slow
def test_the_python_snippets_run_one_after_the_other(adapters, tmp_path):
    """As a user would, from the repository's folder: merge from Python, then load the result with PEFT."""
    loading, merging = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    assert "PeftModel" in loading
    assert "MergeConfig" in merging
    (tmp_path / "adapters").symlink_to(adapters)
    program = (
        merging + loading.replace("merged.lora", "api.lora") + "\nassert any('lora_A' in name for name, _ in model.named_parameters())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exact average" in done.stdout
