"""Flags made from a config's fields: name, type, default and help stand in the config alone."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Group, Parameter
from pydantic import BaseModel

Command = TypeVar("Command", bound=Callable[..., None])
# Flags that are no options of a config: name, type, help, group.
Flag = tuple[str, Any, str, str]
CONFIG: Flag = ("config", Path | None, "options from this YAML file, or from a run's merge.json; flags given as well win", "What to merge")
JSON: Flag = ("json", bool, "print the result as one JSON document", "Output")
QUIET: Flag = ("quiet", bool, "no progress, only the result", "Output")
DRY_RUN: Flag = ("dry_run", bool, "only show what the run would use and take, as gopd-merge plan does", "Output")
RESUME: Flag = ("resume", bool, "go on where this merge was stopped, or begin where nothing is there yet", "Output")
CALIBRATE: Flag = ("calibrate", bool, "load the base and measure a few steps, to say how long the run will take", "Machine")
PROCESSES: Flag = ("processes", int | None, "for so many processes of accelerate launch on one machine: what each takes", "Machine")
HELP_ALL = "--help-all"
ESSENTIAL = {  # what --help shows of a merge, in a line each
    "experts": "LoRA adapters: PATH, user/name or DOMAIN=either, each",
    "prompts": "DOMAIN=FILE.jsonl each, or synth (default: their own)",
    "alpha": "1 = the experts, above 1 = beyond them",
    "base": "folder or Hub id (default: what the experts name)",
    "output": "merged adapter's folder",
    "config": "options from a YAML file; gopd-merge init writes one",
    "dry_run": "only show what the run would use and take",
    "resume": "go on where this merge was stopped",
    "calibrate": "measure a few steps, to say how long the run will take",
}
NAMES = (
    "What to merge",
    "What to train",
    "Reward",
    "What to choose",
    "Prompts",
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
FIRST = Group("Options", sort_key=0)
GROUPS = {name: Group(name, sort_key=index) for index, name in enumerate(NAMES)}


def takes(model: type[BaseModel], *flags: Flag, **choices: Any) -> Callable[[Command], Command]:
    """A command that takes all options of the config, of which the command line reads its flags. `choices` are those of `signature`."""

    def with_signature(command: Command) -> Command:
        # Functions have a __signature__ that type checkers do not know of; the flags are read off it.
        command.__signature__ = signature(model, *flags, **choices)  # type: ignore[attr-defined]
        return command

    return with_signature


def signature(
    model: type[BaseModel], *flags: Flag, arguments: str = "", without: Sequence[str] = (), essential: Mapping[str, str] | None = None
) -> inspect.Signature:
    """One parameter per field of the config but those in `without`, the field `arguments` without a flag, and the flags.

    With `essential` the help shows these alone, in one group, with these words.
    """

    def shown(name: str, text: str | None, group: str) -> dict[str, Any]:
        if essential is None:
            return {"help": text, "group": GROUPS[group]}
        return {"help": essential.get(name, text), "group": FIRST, "show": name in essential}

    parameters = []
    for name, field in model.model_fields.items():
        if name in without:
            continue
        extra: dict[str, Any] = field.json_schema_extra  # type: ignore[assignment] # option() gives every field one
        if name == arguments:
            described = Parameter(**shown(name, field.description, extra["group"]), allow_leading_hyphen=False)
            parameters.append(inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL, annotation=Annotated[str, described]))
            continue
        kind = extra["cli_type"] or field.annotation
        described = Parameter(
            **shown(name, field.description, extra["group"]),
            consume_multiple=(1, None),
            converter=_whole_number if field.annotation in (int, int | None) else None,
            negative=f"--no-{name}" if field.default is True else (),
            show_default=_default_text(field.default),
        )
        default = [] if extra["cli_type"] == list[str] else field.default  # not passed on: what the user leaves out is left to the config
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described]))
    for name, kind, text, group in flags:
        converter = _whole_number if kind == int | None else None
        described = Parameter(**shown(name, text, group), negative=(), show_default=False, converter=converter)
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
    if not isinstance(default, tuple):
        return lambda _: f"{default}"
    return lambda _: ",".join(f"{x:g}" if isinstance(x, float) else f"{x}" for x in default)
