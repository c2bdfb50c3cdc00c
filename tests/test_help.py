"""Help that fits a screen, all of it on request, and completion for shells."""

import subprocess

import pytest

from gopd_merge.cli import build_app, main
from gopd_merge.cli.options import ESSENTIAL
from gopd_merge.config import MergeConfig


@pytest.fixture
def shown(monkeypatch, capsys):
    """shown(*words, width): what the command prints on a terminal of that width."""

    def run(*words, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main([*words]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("width", [80, 100])
def test_the_help_of_the_command_fits_a_screen_and_has_what_a_first_merge_needs(shown, width):
    text = shown("--help", width=width)
    assert len(text.strip().splitlines()) <= 40
    for flag in ("--experts", "--alpha", "--prompts", "--output", "--config", "--help-all"):
        assert flag in text
    assert "--micro-batch-size" not in text
    for command in (name for name in build_app() if not name.startswith("-")):
        assert f"│ {command} " in text


def test_all_help_is_every_option_in_groups(shown):
    text = shown("--help-all")
    for name in MergeConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    for group in ("What to merge", "Method", "Training", "Machine"):
        assert f"─ {group} ─" in text
    assert "--micro-batch-size" in shown("plan", "--help-all")
    assert "--micro-batch-size" not in shown("plan", "--help")


def test_the_short_help_speaks_of_options_that_exist():
    assert set(ESSENTIAL) - set(MergeConfig.model_fields) == {"config", "dry_run", "resume", "calibrate"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script_for_each_shell(shell):
    script = build_app().generate_completion(shell=shell)
    for word in ("gopd-merge", "export", "experts", "micro-batch-size"):
        assert word in script
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_completion_is_installed_where_the_shell_looks(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert main(["--install-completion", "--shell", "bash"]) == 0
    assert "--micro-batch-size" in (tmp_path / ".local/share/bash-completion/completions/gopd-merge").read_text()
    assert str(tmp_path) in capsys.readouterr().out
