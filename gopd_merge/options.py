"""What the configs of all commands are made of: options, KEY=VALUE texts, option files, and errors in one line."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from gopd_merge.errors import InputError
from gopd_merge.prompt_source import parse_source

HUB_REVISION = re.compile(r"^([\w.-]+/[\w.-]+)@.*")
DOMAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
EVERY = "*"  # stands for all domains that are not named
Config = TypeVar("Config", bound=BaseModel)


def option(default: Any, help: str, group: str, cli_type: Any = None, **checks: Any) -> Any:
    """A field of the config. `cli_type` is what the command line parses where that differs from the field's own type."""
    return Field(default=default, description=help, json_schema_extra={"group": group, "cli_type": cli_type}, **checks)


def expert_domain(path: str) -> str:
    """The domain that an adapter's name stands for: `some/where/math.lora` is `math`, and so is `you/math@revision`."""
    return Path(HUB_REVISION.sub(r"\1", path)).name.removesuffix(".lora")


def expert_paths(value: Any) -> Any:
    """What --experts names, by domain. Raises ValueError for what cannot name a domain; anything but text is left to pydantic."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Sequence):
        value = pairs("--experts", value, default_key=expert_domain)
    if isinstance(value, Mapping):
        for domain in value:
            if not DOMAIN_NAME.fullmatch(str(domain)):
                raise ValueError(f"{domain!r} cannot name a domain (a letter, then letters, digits, - or _); write DOMAIN=PATH")
    return value


def prompt_sources(value: Any) -> Any:
    """What --prompts names, by domain; a source without a domain is for EVERY other one. Raises ValueError for what is no source."""
    if isinstance(value, str | Sequence):
        texts = [value] if isinstance(value, str) else list(map(str, value))
        for_all = [text for text in texts if "=" not in text]
        if len(for_all) > 1:
            raise ValueError(f"--prompts {' '.join(for_all)}: several sources for all domains; write DOMAIN=SOURCE, or name one")
        value = pairs("--prompts", [text for text in texts if "=" in text]) | dict.fromkeys([EVERY] * len(for_all), *for_all)
    if isinstance(value, Mapping):
        for domain, text in value.items():
            try:
                parse_source(str(text))
            except InputError as error:
                problem = f"--prompts {'' if domain == EVERY else f'{domain}='}{error}"
                raise ValueError(problem) from None
    return value


def names(value: Any) -> Any:
    """Names that are given apart, or with commas between them."""
    texts = [value] if isinstance(value, str) else value
    return tuple(name for text in texts for name in str(text).split(",") if name)


def pairs(flag: str, values: Sequence[str], default_key: Callable[[str], str] | None = None) -> dict[str, str]:
    """KEY=VALUE texts to a mapping; a text without = goes under `default_key(text)`."""
    pairs: dict[str, str] = {}
    for text in [values] if isinstance(values, str) else map(str, values):
        key, equals, value = text.partition("=")
        if not equals and default_key:
            key, value = default_key(text), text
        if not key or not value:
            raise ValueError(f"{flag} {text} is not of the form DOMAIN=VALUE; write the domain, = and its value")
        if key in pairs:
            remedy = f"give one of them another name: {key}2=PATH" if default_key else "name it once"
            raise ValueError(f"{flag}: the domain {key} is named twice; {remedy}")
        pairs[key] = value
    return pairs


def checked(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """A config of that kind. Raises InputError with one line when an option does not hold."""
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "value_error":
            raise InputError(message) from None
        if first["type"] == "extra_forbidden":
            raise InputError(f"{name} is not an option; see gopd-merge --help") from None
        given = first["input"]
        raise InputError(f"--{name.replace('_', '-')} {given}: {message[0].lower()}{message[1:]}; see gopd-merge --help") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """Options out of a YAML file, or out of a run's merge.json. Raises InputError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror}); give an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"--config {path}: not valid YAML{where}; write one `option: value` a line") from None
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content = content["config"]  # a merge.json
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: expected `option: value` lines, found {type(content).__name__}; write one option a line")
    return {str(key).replace("-", "_"): value for key, value in content.items()}
