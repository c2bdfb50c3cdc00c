"""Prompts out of JSON lines: a file of the user's, or the ones that come with an adapter."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gopd_merge.errors import InputError


class Case(BaseModel):
    """One hidden case of a code prompt: f(*args) must equal `expected`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    args: list[Any]
    expected: Any


class Prompt(BaseModel):
    """One line of a prompt file. `answer`, `cases`, or `tests` and `entry_point` make it gradable; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)
    prompt: str
    answer: str | None = None
    cases: list[Case] | None = None
    tests: str | list[str] | None = None  # Python with asserts that call the function `entry_point`
    entry_point: str | None = None
    stub: str | None = None  # the code that the prompt wraps in words; an answer may go on where it ends
    response: str | None = None  # a whole answer, as --method sft learns it


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one domain."""

    domain: str
    path: Path
    prompts: tuple[Prompt, ...]


def read_prompts(domain: str, path: Path) -> PromptSet:
    """Raises InputError, one line, when the file is missing, empty, or has a line that is no prompt."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file with --prompts {domain}=FILE.jsonl") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompts.append(_parse(path, number, line))
    if not prompts:
        raise InputError(f'{path}: holds no prompts; write one {{"prompt": "…"}} a line')
    return PromptSet(domain, path, tuple(prompts))


def own_prompts(adapter: Path) -> Path:
    """Where the prompts are that come with an adapter, if some do."""
    return adapter / "prompts" / "train.jsonl"


def training_prompts(domain: str, adapter: Path | None, override: str | None) -> PromptSet:
    """The named file, else the prompts that come with the adapter, if that is here. Raises InputError."""
    if adapter is None:
        if override is None:
            raise InputError(
                f"{domain}: its expert is behind a server, so no prompts come with it; name some with --prompts {domain}=FILE.jsonl"
            )
        return read_prompts(domain, Path(override))
    own = own_prompts(adapter)
    if override is None and not own.is_file():
        raise InputError(f"{adapter}: no prompts come with this adapter ({own} is missing); name some with --prompts {domain}=FILE.jsonl")
    return read_prompts(domain, Path(override) if override else own)


def _parse(path: Path, number: int, line: bytes) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f'{path}: line {number} is not JSON ({error}); write one {{"prompt": "…"}} a line') from None
    try:
        prompt = Prompt.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InputError(f'{path}: line {number}: {where}: {first["msg"]}; write one {{"prompt": "…"}} a line') from None
    if not prompt.prompt.strip():
        raise InputError(f"{path}: line {number}: the prompt is empty; remove the line")
    return prompt
