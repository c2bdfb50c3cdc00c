"""Nobody waits for a library that is not needed: what a command imports in a process of its own."""

import os
import subprocess
import sys

import pytest

from gopd_merge.cli import COMMANDS
from gopd_merge.cli.quiet import SPINS, quieten_libraries

LIBRARIES = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "scipy", "datasets", "pandas", "huggingface_hub", "plotly"}
PROGRAM = """
import sys
from gopd_merge.cli import main
code = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def imported(adapters):
    """imported(*words): the modules that a command has imported when it has ended well, in the repository's folder."""

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-Ic", PROGRAM, *words], cwd=adapters.parent, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr[:1000]
        assert done.stdout
        return set(done.stderr.split())

    return run


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_no_library_and_no_other_command(imported, flag):
    modules = imported(flag)
    assert not modules & (LIBRARIES | {"numpy", "yaml", "tokenizers", "markdown_it"})
    others = {f"gopd_merge.cli.{function.split(':')[0]}" for _, function, _ in COMMANDS} - {"gopd_merge.cli.merging"}
    assert len(others) > 4
    assert not modules & (others | {"gopd_merge.plan", "gopd_merge.forecast", "gopd_merge.eval_config"})


def test_a_plan_of_a_plain_base_imports_no_torch(imported):
    """Prompts are counted by the tokenizers library alone, memory from the base's config."""
    modules = imported("plan", "--experts", "adapters/math.lora", "adapters/code.lora", "--alpha", "2", "--overwrite")
    assert not modules & LIBRARIES
    assert {"tokenizers", "gopd_merge.forecast"} <= modules  # a control: the names are those of modules


def test_what_holds_a_model_is_imported_without_the_compiler():
    """bitsandbytes decorates functions with torch.compile; the control is that importing it alone brings the compiler."""
    imported = "import sys; print('torch._inductor.compile_fx' in sys.modules, 'torch._dynamo.convert_frame' in sys.modules)"
    ours = "from gopd_merge.cli.quiet import import_libraries as i; import torch; c = torch.compile; i(); assert torch.compile is c;"
    programs = {"ours": ours, "plain": "import bitsandbytes;"}
    found = {
        name: subprocess.run([sys.executable, "-Ic", program + imported], capture_output=True, text=True, timeout=60, check=True).stdout
        for name, program in programs.items()
    }
    assert "True" not in found["ours"]
    assert "True" in found["plain"]


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nobody has said", "the user has", "the user has said how to wait"],
)
def test_threads_do_not_wait_long_at_the_expense_of_other_programs(monkeypatch, given, spins):
    monkeypatch.setattr(os, "environ", dict(given))
    quieten_libraries()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
