"""A commented merge.yaml: every option of the merge with its help, those at their default commented out. No torch."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from gopd_merge.config import MergeConfig

WIDTH = 100
HEAD = """\
# A merge of {domains}. Run it with: gopd-merge --config {name}
# What is commented out is at its default. Flags that are given as well win over this file. Paths are seen from where the command runs.
"""


def commented_yaml(name: str, given: Mapping[str, Any]) -> str:
    """The file called `name`, with the options that are given in it."""
    parts = [HEAD.format(domains=" and ".join(given["experts"]), name=name)]
    group = None
    for option, field in MergeConfig.model_fields.items():
        extra: dict[str, Any] = field.json_schema_extra  # type: ignore[assignment] # option() gives every field one
        if extra["group"] != group:
            group = extra["group"]
            parts.append(f"# --- {group} ---\n")
        parts.append("\n".join([*_help(field), *_lines(option, field, given)]) + "\n")
    return "\n".join(parts)


def _help(field: FieldInfo) -> list[str]:
    choices = f" [{', '.join(get_args(field.annotation))}]" if get_origin(field.annotation) is Literal else ""
    return textwrap.wrap(f"{field.description}{choices}", WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _lines(option: str, field: FieldInfo, given: Mapping[str, Any]) -> Iterator[str]:
    """The option's own lines. JSON is YAML, and quotes what YAML would take for something else."""
    key = option.replace("_", "-")
    if option not in given:
        yield f"# {key}: {json.dumps(field.default, ensure_ascii=False, default=str)}"
    elif isinstance(given[option], Mapping):
        yield f"{key}:"
        yield from (f"  {domain}: {json.dumps(value, ensure_ascii=False)}" for domain, value in given[option].items())
    else:
        yield f"{key}: {json.dumps(given[option], ensure_ascii=False)}"
