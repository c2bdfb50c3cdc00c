"""mkdocs calls this: pages of the site that are other files of the repository, and the reference, made from the program itself."""

import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from cyclopts import App
from cyclopts.argument import Argument
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from gopd_merge.cli import build_app
from gopd_merge.config import MergeConfig
from gopd_merge.eval_config import CompareConfig, EvalConfig
from gopd_merge.probe_config import ProbeConfig
from gopd_merge.sweep_config import SweepConfig
from gopd_merge.train_config import TrainConfig

ROOT = Path(__file__).parent.parent
# Pages whose text stands elsewhere, where GitHub and contributors look for it.
ELSEWHERE = {"index.md": "README.md", "results.md": "eval/README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
CONFIGS = {
    "": MergeConfig,
    "plan": MergeConfig,
    "sweep": SweepConfig,
    "probe": ProbeConfig,
    "eval": EvalConfig,
    "compare": CompareConfig,
    "train-expert": TrainConfig,
    "prompts": MergeConfig,
}
INHERITED = {
    "plan": "",
    "prompts": "",
    "sweep": "",
    "compare": "eval",
}  # commands that take all options of another one, and some of their own
MARK = "<!-- options -->"  # of reference.md, where they go
BOUNDS = {"ge": "{:,} or more", "gt": "above {:,}", "le": "at most {:,}", "lt": "below {:,}"}
KINDS = {int: "whole number", float: "number", bool: "switch", str: "text", Path: "path", ByteSize: "amount, such as 24GB"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are files elsewhere."""
    for page, path in ELSEWHERE.items():
        files.append(File.generated(config, page, content=relinked((ROOT / path).read_text(), path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files elsewhere lead to their pages, and the reference is filled in."""
    if page.file.src_uri in ELSEWHERE:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}").replace(MARK, reference())


def relinked(text: str, path: str) -> str:
    """A file's text with links for the site. One to a file of the repository that has no page becomes its name."""
    pages = {(ROOT / source).resolve(): page for page, source in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        file = ((ROOT / path).parent / target).resolve()
        if file in pages:
            return f"[{label}]({pages[file]}{anchor})"
        if file.is_relative_to(ROOT / "docs"):
            return f"[{label}]({file.relative_to(ROOT / 'docs')}{anchor})"
        return label

    return re.sub(r"\[([^\]\n]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", link, text)


def reference() -> str:
    """Every command with every option: its type, bounds, default and what it does."""
    return "\n\n".join(section(command) for command in ["", *(name for name in build_app() if not name.startswith("-"))])


def section(command: str) -> str:
    """A command and its options; of those that it shares with another command, to the word, only that it takes them."""
    app = command_app(command)
    arguments = list(app.assemble_argument_collection(parse_docstring=True))
    fields = CONFIGS[command].model_fields if command in CONFIGS else {}
    lines = [f"## `{f'gopd-merge {command}'.strip()}`", _first_paragraph(app.help)]
    if command in INHERITED:
        arguments, shared = beyond(command, INHERITED[command])
        lines.append(shared)
    groups: dict[str, list[str]] = {}
    for one in arguments:
        field = fields.get(one.field_info.name)
        groups.setdefault(group_of(one, field), []).append(row(one, field))
    for group, rows in groups.items():
        title = [] if len(groups) == 1 else [f"### {group}" if not command else f"**{group}**"]
        lines += [*title, "\n".join(["| option | value | default | |", "|---|---|---|---|", *rows])]
    return "\n\n".join(lines)


def beyond(command: str, other: str) -> tuple[list[Argument], str]:
    """What a command has beyond another one, and a sentence about what it shares with it."""
    own, theirs = (
        {one.field_info.name: one for one in command_app(name).assemble_argument_collection(parse_docstring=True)}
        for name in (command, other)
    )
    said, fields = (
        {name: help_of(one, CONFIGS[other].model_fields.get(name)) for name, one in theirs.items()},
        CONFIGS[command].model_fields,
    )
    more = [one for name, one in own.items() if said.get(name) != help_of(one, fields.get(name))]
    without = [f"`{one.names[0]}`" for name, one in theirs.items() if name not in own]
    title = f"gopd-merge {other}".strip()
    but = f" but {', '.join(without)}" if without else ""
    return more, f"It takes all options of [`{title}`](#{title.replace(' ', '-')}){but}{', and:' if more else '.'}"


def command_app(command: str) -> App:
    """The parser of a command, of the merge where there is no name."""
    return build_app()[command] if command else build_app()


def row(argument: Argument, field: FieldInfo | None) -> str:
    """One line of a table."""
    is_flag = argument.field_info.kind is not argument.field_info.VAR_POSITIONAL and argument.names and argument.names[0].startswith("-")
    required = argument.field_info.default is argument.field_info.empty
    name = " ".join(f"`{n}`" for n in argument.names) if is_flag and not required else f"`{argument.field_info.name.upper()}`"
    return f"| {name} | {value_text(argument, field)} | {default_text(argument, field)} | {_cell(help_of(argument, field))} |"


def help_of(argument: Argument, field: FieldInfo | None) -> str:
    """What an option does: the config's words where it is one of a config's."""
    return (field.description if field else argument.parameter.help) or ""


def group_of(argument: Argument, field: FieldInfo | None) -> str:
    """The heading that it stands under."""
    extra = field.json_schema_extra if field else None
    return str(extra["group"]) if isinstance(extra, dict) else argument.parameter.group[0].name


def value_text(argument: Argument, field: FieldInfo | None) -> str:
    """What may be given: a kind, or choices, and its bounds."""
    hint: Any = field.annotation if field else argument.hint
    several = argument.hint == list[str] or get_origin(hint) is tuple
    kind = "one or more" if several else kind_text(hint)
    bounds = [
        BOUNDS[name].format(getattr(check, name)) for check in (field.metadata if field else ()) for name in BOUNDS if hasattr(check, name)
    ]
    return ", ".join([kind, *bounds])


def kind_text(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(kind_text(part) for part in get_args(hint) if part is not NoneType)
    return "one or more" if get_origin(hint) is list else KINDS[hint]


def default_text(argument: Argument, field: FieldInfo | None) -> str:
    """The default, if it says anything."""
    default = field.default if field else argument.field_info.default
    if default is argument.field_info.empty or default in (None, (), {}, [], "") or default is False:
        return ""
    shown = ",".join(f"{x:g}" if isinstance(x, float) else str(x) for x in default) if isinstance(default, tuple) else str(default)
    return f"`{'on' if default is True else shown}`"


def _first_paragraph(text: str) -> str:
    return text.strip().split("\n\n")[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
