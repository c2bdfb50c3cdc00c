"""The command line: parse, call one function, print. The only place that prints, and the last to import torch."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import cyclopts
from cyclopts import App, Group

import gopd_merge
from gopd_merge.cli import merging
from gopd_merge.cli.options import CALIBRATE, CONFIG, DRY_RUN, ESSENTIAL, HELP_ALL, JSON, PROCESSES, QUIET, RESUME, takes
from gopd_merge.config import MergeConfig
from gopd_merge.errors import GopdError, InputError, Interrupted
from gopd_merge.parallel import launched

HELP = """Merge LoRA experts of one base model into one adapter, by on-policy distillation (G-OPD / ExOPD).

- gopd-merge --experts adapters/math.lora adapters/code.lora
- gopd-merge compare merged.lora && gopd-merge report merged.lora
- gopd-merge chat merged.lora
"""


# What is not the merge itself is imported when it is asked for: name, function, help.
COMMANDS = (
    ("resume", "merging:resume", "Go on with a merge or a training that was stopped."),
    ("probe", "probing:probe", "Choose α on validation questions, without training."),
    ("sweep", "sweeping:sweep", "Choose α, learning rate, steps by short merges, then merge."),
    ("eval", "evaluating:evaluate", "Measure adapters on benchmarks, beside their base."),
    ("compare", "evaluating:compare", "Is it better? A merge against experts and tuned rivals."),
    ("report", "evaluating:report", "Write what was measured as one page: verdict, scores, answers."),
    ("chat", "chatting:chat", "Talk to a merged adapter, beside its experts or the base."),
    ("train-expert", "training:train_expert", "Make an expert: RLVR, SFT, DPO or SeqKD."),
    ("prompts", "prompting:prompts", "List known prompt data sets, or write what a merge would ask."),
    ("init", "starting:init", "Write a commented merge.yaml for these adapters."),
    ("export", "using:export", "Write an adapter as GGUF, or as one bfloat16 model."),
    ("publish", "publishing:publish", "Put a merged adapter and its card on the Hub, in one commit."),
    ("inspect", "looking:inspect", "Show what adapters are, and whether they fit together."),
    ("doctor", "looking:doctor", "Show what this machine has for a merge, and what is missing."),
)


def build_app(full: bool = True) -> App:
    """The command with one flag per field of its config. Unless `full`, the help of a merge shows those that a first one needs."""
    app = App(
        name="gopd-merge",
        help=HELP,
        help_format="plaintext",
        version=lambda: gopd_merge.__version__,
        help_on_error=False,
        group_commands=Group("Commands", sort_key=-1),
    )
    about = Group("Information", sort_key=99)
    app["--help"].group = app["--version"].group = about
    app.command(app.help_print, name=HELP_ALL, help="Every option, in groups.", group=about)
    app.register_install_completion_command(help="Install completion for the shell in use (bash, zsh, fish).", group=about)
    if not full:
        app["--version"].show = app["--install-completion"].show = False
    essential = None if full else ESSENTIAL

    @takes(MergeConfig, CONFIG, JSON, QUIET, DRY_RUN, RESUME, essential=essential)
    def run(**options: Any) -> None:
        merging.plan(options) if options.pop("dry_run", False) else merging.merge(options)

    @takes(MergeConfig, CONFIG, JSON, CALIBRATE, PROCESSES, essential=essential)
    def plan(**options: Any) -> None:
        """Show what a merge would use and take: memory, tokens, time."""
        merging.plan(options)

    app.default(run)
    app.command(plan)
    for name, function, text in COMMANDS:
        app.command(f"gopd_merge.cli.{function}", name=name, help=text)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 refused, 128 + n stopped by signal n."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    app = build_app(full=HELP_ALL in tokens or (bool(tokens) and not {"--help", "-h"} & set(tokens)))
    tokens = ["--help" if token == HELP_ALL else token for token in tokens]
    name = "gopd-merge"
    if "--quiet" in tokens or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        processes = launched()
        if processes.rank > 0:
            name = f"gopd-merge, process {processes.rank}"
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - results are the first one's, to the end of the program
        if not tokens:
            app.help_print()
            return 2
        if processes.count > 1:
            with processes.one_voice():
                _check_trains(app, tokens)
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except (GopdError, Interrupted) as error:
        for line in str(error).splitlines():  # one, or a heading with its findings indented
            print(line if line.startswith("  ") else f"{name}: {line}", file=sys.stderr)
        return error.exit_code
    except cyclopts.CycloptsError as error:
        if processes.local_rank == 0:
            print(f"{name}: {_usage(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read stdout is gone; do not trip over it at exit
        return 1
    return 0


def _usage(error: cyclopts.CycloptsError) -> str:
    """What is wrong with the words of the command, in one line."""
    if isinstance(error, cyclopts.UnusedCliTokensError):
        token = (error.unused_tokens or [""])[0]
        return f"{token} is neither an option nor a command; name adapters with --experts, see --help"
    return " ".join(str(error).split())


def _check_trains(app: App, tokens: list[str]) -> None:
    """Several processes have a merge to do together, and nothing else. Raises InputError."""
    command = (
        tokens[0]
        if tokens[0] in set(app) - {"resume"} and not tokens[0].startswith("-")
        else "--dry-run"
        if "--dry-run" in tokens
        else None
    )
    if command:
        raise InputError(f"{command} runs in one process; start it without accelerate launch")
