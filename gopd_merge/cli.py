"""The command line: parse, call one function, print. The only place that prints, and the last to import torch."""

import inspect
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from json import dumps as dump_json
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Group, Parameter

import gopd_merge
from gopd_merge.config import MergeConfig, make_config, read_config_file
from gopd_merge.errors import GopdError, InputError, Interrupted

HELP = """Merge LoRA experts of one base model into one adapter, by on-policy distillation (G-OPD / ExOPD).

    gopd-merge --experts adapters/math.lora adapters/code.lora --alpha 2

    gopd-merge --experts math.lora code.lora --prompts math=m.jsonl code=c.jsonl --output merged.lora

    gopd-merge --config merged.lora/merge.json --overwrite
"""
# Flags that are no options of the merge itself: name, type, help, group.
Flag = tuple[str, Any, str, str]
CONFIG: Flag = ("config", Path | None, "options from this YAML file, or from a run's merge.json; flags given as well win", "What to merge")
JSON: Flag = ("json", bool, "print the result as one JSON document", "Output")
QUIET: Flag = ("quiet", bool, "no progress, only the result", "Output")
DRY_RUN: Flag = ("dry_run", bool, "only show what the run would use and take, as gopd-merge plan does", "Output")
CALIBRATE: Flag = ("calibrate", bool, "load the base and measure a few steps, to say how long the run will take", "Machine")
GROUPS = {name: Group(name, sort_key=index) for index, name in enumerate(("What to merge", "Output", "Training", "Machine"))}


def build_app() -> App:
    """The command with one flag per field of MergeConfig."""
    app = App(
        name="gopd-merge",
        help=HELP,
        help_format="markdown",
        version=gopd_merge.__version__,
        help_on_error=False,
        group_commands=Group("Commands", sort_key=-1),
    )
    app["--help"].group = app["--version"].group = Group("Information", sort_key=9)

    def run(**options: Any) -> None:
        _plan(options) if options.pop("dry_run", False) else _merge(options)

    def plan(**options: Any) -> None:
        """Show what a merge would use and take: inputs, prompts, tokens, memory by part, time. Takes all options of the merge."""
        _plan(options)

    run.__signature__ = _signature(QUIET, DRY_RUN)  # type: ignore[attr-defined]
    plan.__signature__ = _signature(CALIBRATE)  # type: ignore[attr-defined]
    app.default(run)
    app.command(plan)
    app.command(_inspect, name="inspect")
    app.command(_doctor, name="doctor")
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 refused, 128 + n stopped by signal n."""
    app = build_app()
    tokens = list(sys.argv[1:] if argv is None else argv)
    if "--quiet" in tokens or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        if not tokens:
            app.help_print()
            return 2
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except GopdError as error:
        for line in str(error).splitlines():  # one, or a heading with its findings indented
            print(line if line.startswith("  ") else f"gopd-merge: {line}", file=sys.stderr)
        return error.exit_code
    except cyclopts.UnusedCliTokensError as error:
        name = (error.unused_tokens or [""])[0]
        print(f"gopd-merge: {name} is neither an option nor a command; name adapters with --experts, see --help", file=sys.stderr)
        return 2
    except cyclopts.CycloptsError as error:
        print(f"gopd-merge: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read stdout is gone; do not trip over it at exit
        return 1
    return 0


def _inspect(*paths: str, base: str | None = None, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show what each adapter is, where its update is large, and whether the adapters fit together.

    Parameters
    ----------
    paths
        adapter folders: PATH or DOMAIN=PATH, each
    base
        folder of the base model (default: the one that the adapters name)
    json
        print one JSON document
    """
    config = make_config({"experts": list(paths)})
    from gopd_merge.experts.intake import try_experts
    from gopd_merge.inspection import inspect as inspect_experts
    from gopd_merge.report.inspection import inspection_text

    experts, refusals = try_experts(config.experts, allow_noop=True)
    document = inspect_experts(experts, base)
    if experts or json:
        print(dump_json(document, ensure_ascii=False) if json else inspection_text(document))
    if refusals:
        raise InputError(*(line for refusal in refusals for line in refusal.lines))


def _doctor(*, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show what this machine has for a merge, what is missing, and what each part is for.

    Parameters
    ----------
    json
        print one JSON document
    """
    _quieten_libraries()
    from gopd_merge.doctor import examine, is_healthy
    from gopd_merge.report.inspection import checks_text

    checks = examine()
    print(dump_json({"schema": 1, "checks": [asdict(c) for c in checks]}) if json else checks_text(checks))
    if not is_healthy(checks):
        raise GopdError("this machine cannot run a merge; see the lines that are not ok")


def _signature(*flags: Flag) -> inspect.Signature:
    """One parameter per field of MergeConfig, and the flags."""
    parameters = []
    for name, field in MergeConfig.model_fields.items():
        extra: dict[str, Any] = field.json_schema_extra  # type: ignore[assignment]
        kind = extra["cli_type"] or field.annotation
        described = Parameter(
            help=field.description,
            group=GROUPS[extra["group"]],
            consume_multiple=(1, None),
            converter=_whole_number if field.annotation in (int, int | None) else None,
            negative=f"--no-{name}" if field.default is True else (),
            show_default=_default_text(field.default),
        )
        default = [] if extra["cli_type"] == list[str] else field.default  # not passed on: what the user leaves out is left to MergeConfig
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described]))
    for name, kind, text, group in (CONFIG, JSON, *flags):
        described = Parameter(help=text, group=GROUPS[group], negative=(), show_default=False)
        default = False if kind is bool else None
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described]))
    return inspect.Signature(sorted(parameters, key=lambda p: p.name != "experts"))


def _whole_number(_: Any, tokens: Sequence[Any]) -> int:
    """The library would round 3.5 prompts to 4."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError("Give a whole number.") from None


def _default_text(default: Any) -> Callable[[Any], str] | bool:
    """How --help shows a default: as the config has it, and not at all where it says nothing."""
    return (lambda _: f"{default}") if default not in (None, {}, False) else False


def _plan(options: dict[str, Any]) -> None:
    as_json, with_time = options.pop("json", False), options.pop("calibrate", False)
    options.pop("quiet", False)
    config = _config(options)
    from rich.console import Console

    from gopd_merge.plan import check_output, read_inputs

    console = Console(stderr=True)
    inputs = read_inputs(config, weights=with_time)
    _quieten_libraries()
    with console.status("counting tokens and memory"):
        from gopd_merge.forecast import Forecast
        from gopd_merge.report.plan import plan_text

        forecast = Forecast(config, inputs)
        document = forecast.document()
    try:
        check_output(config.output, config.overwrite)
    except InputError as error:
        document["warnings"].append(str(error))  # the merge will not begin, but its plan is worth seeing
    if with_time and forecast.fits:
        from gopd_merge.calibration import calibrate

        with console.status("measuring a few steps"):
            document["seconds"] = calibrate(config, inputs, forecast)
    print(dump_json(document, ensure_ascii=False) if as_json else plan_text(document))
    forecast.check()


def _merge(options: dict[str, Any]) -> None:
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    config = _config(options)
    from gopd_merge.plan import check_output, read_inputs

    check_output(config.output, config.overwrite)
    inputs = read_inputs(config)  # refuses within a second, before torch is imported

    _quieten_libraries()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    from gopd_merge.pipeline import merge
    from gopd_merge.report.progress import Progress, Silent

    with Silent() if quiet else Progress() as listener:
        try:
            result = merge(config, listener, inputs)
        except OSError as error:
            raise GopdError(f"{error.filename or config.output}: {error.strerror or error}; {_kept(config.output)}") from error
        except Interrupted as error:
            raise Interrupted(f"stopped; {_kept(config.output)}", error.exit_code - 128) from None
    print(dump_json(result.document, ensure_ascii=False) if as_json else _summary(result.table, config))


def _config(options: dict[str, Any]) -> MergeConfig:
    file = options.pop("config", None)
    return make_config((read_config_file(file) if file else {}) | options)


def _kept(output: Path) -> str:
    """Where a run that did not finish left the student."""
    partial = output.with_name(output.name + ".partial")
    kept = f"{partial} holds the student so far" if (partial / "adapter_model.safetensors").is_file() else "no step was finished"
    return f"{kept}; {output} was not touched"


def _summary(table: str, config: MergeConfig) -> str:
    return f"{table}\n\n{config.output} written and verified".lstrip()


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    raise Interrupted("stopped", number)


def _quieten_libraries() -> None:
    """Their progress bars and notices would hide ours; their errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module="(transformers|peft|bitsandbytes|torch)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # the forecast reports what it cannot do itself
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
