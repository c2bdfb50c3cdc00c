"""What is done with each command of the README and of docs/, and how it is made to take seconds."""

import re
import shlex
import subprocess
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

from gopd_merge.cli import build_app, main
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.options import checked, read_config_file
from gopd_merge.plan import read_inputs
from gopd_merge.sweep_config import SweepConfig
from gopd_merge.train_config import TrainConfig
from gopd_merge.training.inputs import read_training

# The substitutions: with these options in place of the page's own a command takes seconds. All else of it stays as it is.
SHORT = {
    "prompts": "--synth-prompts 4 --batch-size 8 --quiet",
    "merge": "--steps 1 --batch-size 4 --max-new-tokens 8 --no-eval --quiet",
    "probe": "--alphas 1,1.5 --limit 2 --max-new-tokens 8 --quiet",
    "eval": "--limit 2 --max-new-tokens 8 --quiet",
    "compare": "--limit 2 --max-new-tokens 8 --rivals average --quiet",
}
AS_THEY_STAND = ("export", "init", "inspect", "doctor", "report", "resume", "plan")
PLANNED = ("README.md",)  # whose plans are made; a plan takes seconds, and tests/test_plan.py looks at what it says
# Merges that are run. Of the others all is read and checked that a merge reads before it loads a model: options, experts, base, prompts.
RUN = ("docs/first-merge.md", "docs/files.md", "docs/reference.md", "docs/strong-to-weak.md")
# Commands that need what a test does not have. They are parsed: by the program's own parser, or by make.
NOT_RUN = {
    "gopd-merge --experts math.lora code.lora --prompts math=catalogue:gsm8k": "needs the network, for the prompts",
    "gopd-merge sweep": "takes the time of several merges; tests/test_sweep.py runs it",
    "gopd-merge compare merged.lora --suite own,gsm8k,humaneval": "needs the network, for the questions",
    "gopd-merge train-expert --base HuggingFaceTB/SmolLM2-135M-Instruct": "needs the Hub, for base and data",
    "gopd-merge publish": "needs the Hub; tests/hub publishes to one on loopback",
    "gopd-merge --experts you/math-code-lora@COMMIT": "needs the Hub, for the adapters",
    "gopd-merge chat": "talks; tests/test_chat.py does",
    "hf auth": "needs an account",
    "vllm serve": "needs vLLM; tests/vllm starts it",
    "accelerate launch": "needs several processes; tests/distributed starts them",
    "lm-eval run": "takes longer than a test may; tests/test_harness.py runs its evaluation",
    "pip install": "needs the network",
    "make": "makes the environment that the tests run in",
}
SHELL = ("export", "head", "sed", "ls", "cat")


def lines(block: str) -> list[str]:
    """The commands of a bash block, a line each: continued lines joined, comments and the folder of the program left out."""
    joined = re.sub(r"\s*\\\n\s*", " ", block).replace(".venv/bin/", "")
    return [shlex.join(words) if ">" not in line else line for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def obey(line: str, page: str) -> str:
    """Run a command, or hold it against its parser where it is NOT_RUN; returns what was done. Raises AssertionError where it fails."""
    words = shlex.split(line)
    reason = next((name for name in NOT_RUN if line.startswith(f"{name} ") or line == name), None)
    if reason:
        parse(words)
        return "parsed"
    if words[0] in SHELL:
        subprocess.run(["bash", "-ec", line], check=True, stdout=subprocess.DEVNULL)
        return "run"
    assert words[0] == "gopd-merge", f"{line}: neither a command of ours nor one that is named here"
    command = "merge" if words[1].startswith("-") else words[1]
    if command == "train-expert":  # tests/training runs every recipe
        read_training(checked(TrainConfig, options_of(words[1:], TrainConfig)))
        return "checked"
    if (command == "merge" and page not in RUN) or (command == "plan" and page not in PLANNED):
        read_inputs(make_config(merge_options(words[1:]) | {"eval": False}))
        return "checked"
    short = SHORT.get(command, "")
    assert short or command in AS_THEY_STAND, f"{line}: say in SHORT how it takes seconds, or in NOT_RUN why it is not run"
    assert main(shortened(words[1:], shlex.split(short))) == 0, line
    return "run"


def shortened(words: list[str], options: list[str]) -> list[str]:
    """The words with these options, each in place of the page's own."""
    flags = [option for option in options if option.startswith("--")]
    kept, skipping = [], False
    for word in words:
        skipping = word in flags or (skipping and not word.startswith("--"))
        if not skipping:
            kept.append(word)
    return [*kept, *options]


def options_of(words: list[str], config: type) -> dict:
    """Those of a config, of a command's words."""
    _, bound, _ = build_app().parse_args(words, exit_on_error=False, print_error=False)
    return {name: value for name, value in bound.kwargs.items() if name in config.model_fields or name == "config"}


def merge_options(words: list[str]) -> dict:
    """What the command line makes of a merge's flags, and of the file that --config names."""
    options = options_of(words, MergeConfig)
    file = options.pop("config", None)
    return (read_config_file(Path(file)) if file else {}) | options


def parse(words: list[str]) -> None:
    """By the parser that would take it."""
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=Path(__file__).parent.parent.parent, check=True, stdout=subprocess.DEVNULL)
    elif words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[2:])
        assert launched.module
        assert launched.training_script == "gopd_merge"
        rest = launched.training_script_args
        read_inputs(make_config(merge_options(rest))) if rest[0].startswith("-") else parse(["gopd-merge", *rest])
    elif words[:2] == ["gopd-merge", "sweep"]:
        _, bound, _ = build_app().parse_args(words[1:], exit_on_error=False, print_error=False)
        assert len(checked(SweepConfig, bound.kwargs).candidates) > 1
    elif words[0] == "gopd-merge":
        build_app().parse_args(words[1:], exit_on_error=False, print_error=False)
