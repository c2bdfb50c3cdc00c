"""Flags made from a config's fields: name, type, default and help stand in the config alone."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel

# Flags that are no options of a config: name, type, help, group.
Flag = tuple[str, Any, str, str]
CONFIG: Flag = ("config", Path | None, "options from this YAML file, or from a run's merge.json; flags given as well win", "What to merge")
JSON: Flag = ("json", bool, "print the result as one JSON document", "Output")
QUIET: Flag = ("quiet", bool, "no progress, only the result", "Output")
DRY_RUN: Flag = ("dry_run", bool, "only show what the run would use and take, as gopd-merge plan does", "Output")
RESUME: Flag = ("resume", bool, "go on where this merge was stopped, or begin where nothing is there yet", "Output")
CALIBRATE: Flag = ("calibrate", bool, "load the base and measure a few steps, to say how long the run will take", "Machine")
PROCESSES: Flag = ("processes", int | None, "for so many processes of accelerate launch on one machine: what each takes", "Machine")
NAMES = (
    "What to merge",
    "What to choose",
    "What to measure",
    "Sampling",
    "Judge",
    "Output",
    "Method",
    "Reward scale",
    "Teachers",
    "Training",
    "Machine",
)
GROUPS = {name: Group(name, sort_key=index) for index, name in enumerate(NAMES)}


def signature(model: type[BaseModel], *flags: Flag, arguments: str = "", without: Sequence[str] = ()) -> inspect.Signature:
    """One parameter per field of the config but those in `without`, the field `arguments` without a flag, and the flags."""
    parameters = []
    for name, field in model.model_fields.items():
        if name in without:
            continue
        extra: dict[str, Any] = field.json_schema_extra  # type: ignore[assignment] # option() gives every field one
        if name == arguments:
            described = Parameter(help=field.description, group=GROUPS[extra["group"]], allow_leading_hyphen=False)
            parameters.append(inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL, annotation=Annotated[str, described]))
            continue
        kind = extra["cli_type"] or field.annotation
        described = Parameter(
            help=field.description,
            group=GROUPS[extra["group"]],
            consume_multiple=(1, None),
            converter=_whole_number if field.annotation in (int, int | None) else None,
            negative=f"--no-{name}" if field.default is True else (),
            show_default=_default_text(field.default),
        )
        default = [] if extra["cli_type"] == list[str] else field.default  # not passed on: what the user leaves out is left to the config
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described]))
    for name, kind, text, group in flags:
        converter = _whole_number if kind == int | None else None
        described = Parameter(help=text, group=GROUPS[group], negative=(), show_default=False, converter=converter)
        default = False if kind is bool else None
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described]))
    return inspect.Signature(sorted(parameters, key=lambda p: (p.kind != inspect.Parameter.VAR_POSITIONAL, p.name != "experts")))


def _whole_number(_: Any, tokens: Sequence[Any]) -> int:
    """The library would round 3.5 prompts to 4."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError("Give a whole number.") from None


def _default_text(default: Any) -> Callable[[Any], str] | bool:
    """How --help shows a default: as the config has it, and not at all where it says nothing."""
    if default in (None, {}, (), False):
        return False
    return lambda _: ",".join(f"{x:g}" if isinstance(x, float) else x for x in default) if isinstance(default, tuple) else f"{default}"
