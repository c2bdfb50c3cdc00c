"""Rows of files and data sets as examples, in the columns that trl's data sets and our own prompt files have. No torch.

A row that cannot be used is refused with its place where the user can correct it, in a file; in a data set it is left out and counted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, ValidationError

from gopd_merge.errors import InputError
from gopd_merge.evaluate.final_answer import FINAL, final_answer
from gopd_merge.prompt_source import NamedSource, parse_source
from gopd_merge.prompts.catalogue import entry
from gopd_merge.prompts.conversation import LeftOut, asked
from gopd_merge.prompts.files import Row
from gopd_merge.prompts.rows import read_table
from gopd_merge.prompts.sources import Prompt, read_source
from gopd_merge.train_config import Recipe, TrainConfig

GRADED = ("answer", "cases", "tests")
NEEDS: dict[Recipe, tuple[tuple[str, ...], ...]] = {  # of each group one column is enough
    "rlvr": (GRADED,),
    "sft": (("response",),),
    "dpo": (("chosen",), ("rejected",)),
    "seqkd": (),
}
KEPT = (str, int, float, list, dict)  # not pictures and the like, which nothing here could use


class Example(Prompt):
    """One row: a prompt, and what the recipe needs beside it. Its other columns are kept: a user's own reward gets them."""

    model_config = ConfigDict(frozen=True, extra="allow", coerce_numbers_to_str=True)
    chosen: str | None = None
    rejected: str | None = None

    @property
    def is_gradable(self) -> bool:
        """Whether our graders can tell a right answer to it."""
        return any(getattr(self, name) is not None for name in GRADED)

    @property
    def others(self) -> dict[str, Any]:
        """All columns but the prompt, by name."""
        return self.model_dump(mode="json", exclude={"prompt"}, exclude_none=True)


@dataclass(frozen=True)
class Rows:
    """What a source holds, and what is to be told of it."""

    rows: tuple[Row, ...]
    column: str | None  # of the prompts, where the source names it
    dataset: str | None  # on the Hub, with its commit
    licence: str | None


def read_rows(text: str) -> Rows:
    """A file, a data set, or an entry of the catalogue, as --data names it. Raises InputError, one line."""
    source = parse_source(text)
    if isinstance(source, NamedSource) and source.entry is not None:
        found = read_source("data", text)
        rows = tuple(Row(f"{text}: row {i}", one.model_dump(exclude_none=True)) for i, one in enumerate(found.prompts, start=1))
        where = entry(source.entry).where
        return Rows(rows, None, f"{where.repo}@{where.revision}", found.origin.licence)
    table = read_table(text)
    return Rows(table.rows, table.source.column, table.dataset, table.licence)


def examples_of(found: Rows, config: TrainConfig, recipe: Recipe) -> tuple[tuple[Example, ...], Counter[str]]:
    """The examples, and why how many rows of a data set are none. Raises InputError at the first that is none of a file."""
    needs = () if config.reward or config.reward_regex else NEEDS[recipe]
    examples, left_out = [], Counter[str]()
    for row in found.rows:
        try:
            examples.append(_example(row, found.column, config, recipe, needs))
        except _UnusableError as error:
            if found.dataset is None or (not examples and left_out.total() + 1 == len(found.rows)):
                raise InputError(f"{row.where}: {error.problem}; {error.remedy}") from None
            left_out[error.problem] += 1
    return tuple(examples), left_out


def recipe_for(config: TrainConfig, found: Rows) -> Recipe:
    """What the options, and the columns of the first row, are for. Raises InputError."""
    if config.teacher:
        return "seqkd"
    if config.reward or config.reward_regex:
        return "rlvr"
    try:
        columns = _named(found.rows[0], found.column, config).keys()
    except _UnusableError:
        columns = found.rows[0].values.keys()
    choices: tuple[Recipe, ...] = ("dpo", "rlvr", "sft")
    for recipe in choices:
        if all(any(name in columns for name in group) for group in NEEDS[recipe]):
            return recipe
    raise InputError(
        f"{found.rows[0].where}: has {_listed(columns)}, which no recipe takes; beside a prompt, rlvr needs an answer, cases, tests or "
        "--reward, sft a response, dpo chosen and rejected, seqkd a --teacher. Other names: --columns answer=NAME"
    )


class _UnusableError(Exception):
    """A row of which no example can be made: what is wrong with it, and what to do."""

    def __init__(self, problem: str, remedy: str = "correct the row, or remove it") -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


def _named(row: Row, column: str | None, config: TrainConfig) -> dict[str, Any]:
    """The row's columns under the names that are used here, conversations as texts."""
    values = {name: value for name, value in row.values.items() if isinstance(value, KEPT)}
    names = ({"prompt": column} if column else {}) | config.columns
    values |= {name: row.values[place] for name, place in names.items() if place in row.values}
    if "response" not in values and "completion" in values:  # as trl has it
        values["response"] = values.pop("completion")
    for name in ("messages", "chosen", "rejected", "response", "prompt"):
        if name in values:
            texts = _texts(name, values[name], values)
            values |= texts
            if name not in texts:
                del values[name]
    return values


def _texts(name: str, value: Any, others: Mapping[str, Any]) -> dict[str, str]:
    """A column's text. Of a conversation, the first turns: its prompt too, where no column has that."""
    if name in ("chosen", "rejected", "response") and isinstance(value, list) and len(value) == 1:
        value = value[0].get("content") if isinstance(value[0], dict) else value  # the answer alone
    if isinstance(value, str):
        return {name: value}
    try:
        prompt, response = asked(value)
    except TypeError as error:
        raise _UnusableError(f"its {name} is of type {error}, not a text or a list of messages") from None
    except LeftOut as error:
        raise _UnusableError(f"its {name} {error}") from None
    if name == "prompt":
        return {"prompt": prompt}
    answered = {"response" if name == "messages" else name: response} if response is not None else {}
    return answered | ({} if "prompt" in others else {"prompt": prompt})


def _example(row: Row, column: str | None, config: TrainConfig, recipe: Recipe, needs: Sequence[Sequence[str]]) -> Example:
    values = _named(row, column, config)
    if "prompt" not in values:
        raise _UnusableError(f"has no prompt (it has {_listed(values)})", "say which column it is: --columns prompt=NAME")
    for group in needs:
        if not any(name in values for name in group):
            raise _UnusableError(
                f"has no {' or '.join(group)}, which --recipe {recipe} needs (it has {_listed(values)})",
                f"add it, or say which column it is: --columns {group[0]}=NAME",
            )
    if isinstance(values.get("answer"), str) and FINAL in values["answer"]:
        values["answer"] = final_answer(values["answer"], FINAL)  # GSM8K's holds the working too
    try:
        example = Example.model_validate(values)
        example.model_dump_json()
    except ValidationError as error:
        first = error.errors()[0]
        raise _UnusableError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:  # half of a surrogate pair, which JSON can spell and no tokenizer can read
        raise _UnusableError(f"not text ({' '.join(str(error).split())[:120]})") from None
    for name in ("prompt", *(name for group in needs for name in group)):
        if isinstance(value := getattr(example, name), str) and not value.strip():
            raise _UnusableError(f"its {name} is empty")
    if recipe == "rlvr" and example.tests is not None and not (example.entry_point or "").isidentifier():
        raise _UnusableError("has tests but no entry_point", "add the name of the function that they call")
    return example


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no columns"
