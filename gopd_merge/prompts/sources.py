"""Prompts out of what `--prompts` names: a file or data set, an entry of the catalogue, or the ones that come with an adapter."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gopd_merge.errors import InputError
from gopd_merge.prompt_source import OWN, SYNTH, FileSource, NamedSource, parse_source
from gopd_merge.prompts.catalogue import Entry, entry
from gopd_merge.prompts.conversation import EMPTY, LeftOut, asked
from gopd_merge.prompts.files import Row
from gopd_merge.prompts.rows import Table, read_table

CHOSEN = ("prompt", "messages")  # the columns that are taken where none is named


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
class Origin:
    """Where a domain's prompts come from, and what became of those that were there."""

    source: str  # as --prompts names it, with splits and commit
    licence: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)  # why -> how many of them
    read: int = 0  # rows
    dataset: str | None = None  # its id and commit on the Hub, user/name@commit


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one domain. None where its expert is still to write them."""

    domain: str
    prompts: tuple[Prompt, ...]
    origin: Origin
    lengths: tuple[int, ...] = ()  # tokens of each, once they are counted; of what is still to be written the most that they may be

    @property
    def is_synthetic(self) -> bool:
        """Whether the expert writes them."""
        return self.origin.source == SYNTH

    @property
    def size(self) -> int:
        """How many prompts there are, or will be."""
        return len(self.prompts) or len(self.lengths)

    @property
    def name(self) -> str:
        """As a message calls it."""
        return self.origin.source


def own_prompts(adapter: Path) -> Path:
    """Where the prompts are that come with an adapter, if some do."""
    return adapter / "prompts" / "train.jsonl"


def training_prompts(domain: str, adapter: Path | None, source: str | None, limit: int | None = None) -> PromptSet:
    """At most `limit` prompts of what is named, else those that come with the adapter, if that is here. Raises InputError."""
    if source == SYNTH:
        if adapter is None:
            raise InputError(
                f"{domain}={SYNTH}: its expert is behind a server, and an expert writes prompts only here; name a file instead"
            )
        return PromptSet(domain, (), Origin(SYNTH))
    if source is None or source == OWN:
        remedy = f"name some with --prompts {domain}=FILE.jsonl, or let the expert write them: --prompts {domain}={SYNTH}"
        if adapter is None:
            raise InputError(
                f"{domain}: its expert is behind a server, so no prompts come with it; name some with --prompts {domain}=FILE.jsonl"
            )
        if not own_prompts(adapter).is_file():
            raise InputError(f"{adapter}: no prompts come with this adapter ({own_prompts(adapter)} is missing); {remedy}")
        found = read_source(domain, str(own_prompts(adapter)), limit)
        return replace(found, origin=replace(found.origin, source=OWN))
    return read_source(domain, source, limit)


def read_source(domain: str, text: str, limit: int | None = None) -> PromptSet:
    """At most `limit` prompts of a source that has rows. Raises InputError, one line, when it is missing, empty, or has no such column."""
    source, listed = parse_source(text), None
    if isinstance(source, NamedSource) and source.entry is not None:
        listed = entry(source.entry)
    table = read_table(text, limit)
    column = None if listed else _column(table)
    named = text if listed else str(table.source)
    dropped: Counter[str] = Counter()
    prompts = []
    for row in table.rows:
        try:
            prompts.append(_listed(row, listed) if listed else _prompt(row, str(column), isinstance(source, FileSource)))
        except LeftOut as problem:
            dropped[str(problem)] += 1
    if not prompts:
        raise InputError(f"{table.name}: none of its {len(table.rows):,} rows is a prompt ({counted(dropped)}); name another source")
    return PromptSet(domain, tuple(prompts), Origin(named, table.licence, dict(dropped), len(table.rows), table.dataset))


def counted(dropped: Mapping[str, int]) -> str:
    """What was left out and why, in words."""
    return ", ".join(f"{number:,} {why}" for why, number in dropped.items())


def _column(table: Table) -> str:
    """Where the prompts are. Raises InputError where that column is not there."""
    named, columns = table.source.column, table.columns
    if named is None:
        named = next((name for name in CHOSEN if name in columns), None)
    if named in columns:
        return str(named)
    problem = f"has no column {table.source.column or CHOSEN[0]}"
    like = f"{str(table.source).partition('#')[0]}#{next(iter(columns), 'COLUMN')}"
    raise InputError(f"{table.name}: {problem}; its columns are {', '.join(columns)}: name that of the prompts, such as {like}")


def _prompt(row: Row, column: str, is_file: bool) -> Prompt:
    """Raises InputError for what a user would have to correct, as every bad line of a file is; LeftOut for what cannot be asked."""
    try:
        text, response = asked(row.values.get(column, ""))
    except TypeError as error:
        raise InputError(f"{row.where}: {column} is of type {error}, not a text or a list of messages; name another column") from None
    except LeftOut as problem:
        if is_file and str(problem) == EMPTY:
            raise InputError(f"{row.where}: the {column} is missing or empty; fill it in, or remove the line") from None
        raise
    given = {} if response is None else {"response": response}
    if is_file:
        given |= row.values
    elif isinstance(row.values.get("response"), str):
        given["response"] = row.values["response"]
    return _checked(row, {**given, "prompt": text})


def _listed(row: Row, listed: Entry) -> Prompt:
    """A prompt as the catalogue makes it."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    templates = {name: getattr(listed, name) for name in ("prompt", "answer", "response")}
    try:
        fields = {name: environment.from_string(text).render(row.values) for name, text in templates.items() if text}
    except Exception as error:
        raise InputError(f"{row.where}: {error}; the data set is not what the catalogue knows, name its column instead") from None
    return _checked(row, fields)


def _checked(row: Row, fields: Mapping[str, Any]) -> Prompt:
    try:
        return Prompt.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InputError(f'{row.where}: {where}: {first["msg"]}; write one {{"prompt": "…"}} a line') from None
