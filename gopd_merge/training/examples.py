"""What an expert learns from: rows of files as examples, checked for the recipe, and divided into three splits. No torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from gopd_merge.errors import InputError
from gopd_merge.evaluate.final_answer import FINAL, final_answer
from gopd_merge.evaluate.rows import Row, read_file
from gopd_merge.prompts.sources import Prompt
from gopd_merge.train_config import COLUMNS, Recipe, TrainConfig

SPLITS = ("train", "validation", "test")
GRADED = ("answer", "cases", "tests")
NEEDS: dict[Recipe, tuple[tuple[str, ...], ...]] = {  # of each group one column is enough
    "rlvr": (("answer", "cases", "tests"),),
    "sft": (("response",),),
    "dpo": (("chosen",), ("rejected",)),
    "seqkd": (),
}


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


Splits = Mapping[str, tuple[Example, ...]]


def read_examples(config: TrainConfig) -> tuple[Recipe, dict[str, tuple[Example, ...]]]:
    """The recipe, and the examples of each split. Raises InputError, one line."""
    rows = [row for path in config.data for row in read_file(Path(path))]
    recipe = config.recipe or _recipe_for(config, rows)
    examples = _examples(config, recipe, rows)
    given = {"validation": config.validation, "test": config.test}
    splits = {name: _examples(config, recipe, read_file(Path(path))) for name, path in given.items() if path}
    shares = {name: 0.0 if name in splits else getattr(config, f"{name}_share") for name in given}
    if not all(example.is_gradable for example in examples) or config.reward or config.reward_regex:
        shares["test"] = 0.0  # a merge could not measure on it
    found = divided(examples, shares, config.seed) | splits
    _check_apart(found, config)
    return recipe, found


def divided(examples: Sequence[Example], shares: Mapping[str, float], seed: int) -> dict[str, tuple[Example, ...]]:
    """Training, and a share of the prompts for each of the others, as the seed has it; equal prompts stay together.

    Which prompts are kept depends on their texts and the seed, not on their order. Raises InputError where nothing is left to train on.
    """
    prompts = sorted({e.prompt for e in examples}, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
    place: dict[str, str] = {}
    first = 0
    for name, share in shares.items():
        count = max(1, round(share * len(prompts))) if share else 0
        place |= dict.fromkeys(prompts[first : first + count], name)
        first += count
    found = {name: tuple(e for e in examples if place.get(e.prompt, "train") == name) for name in SPLITS}
    if not found["train"]:
        raise InputError(f"the data: {len(prompts)} prompt(s), of which none is left to train on; give more, or smaller shares")
    return found


def write_prompts(folder: Path, splits: Splits) -> None:
    """prompts/train.jsonl and so on, where a merge looks for them. What no merge could grade is not offered to it as a test."""
    folder.mkdir(exist_ok=True)
    for name, examples in splits.items():
        if examples and (name != "test" or all(example.is_gradable for example in examples)):
            rows = [example.model_dump(mode="json", include=set(COLUMNS), exclude_none=True) for example in examples]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def digest(splits: Splits) -> str:
    """sha256 of all examples, in their order."""
    texts = json.dumps(
        [[name, [e.model_dump(mode="json", exclude_none=True) for e in found]] for name, found in splits.items()], default=str
    )
    return hashlib.sha256(texts.encode()).hexdigest()


def _recipe_for(config: TrainConfig, rows: Sequence[Row]) -> Recipe:
    """What the columns of the first row, and the options, are for."""
    if config.teacher:
        return "seqkd"
    if config.reward or config.reward_regex:
        return "rlvr"
    found = _named(config, rows[0]).keys()
    choices: tuple[Recipe, ...] = ("dpo", "rlvr", "sft")
    for recipe in choices:
        if all(any(name in found for name in group) for group in NEEDS[recipe]):
            return recipe
    raise InputError(
        f"{rows[0].where}: has {_listed(found)}, which no recipe takes; beside a prompt, rlvr needs an answer, cases, tests or --reward, "
        "sft a "
        "response, dpo chosen and rejected, seqkd a --teacher. Other names: --columns answer=NAME"
    )


def _examples(config: TrainConfig, recipe: Recipe, rows: Sequence[Row]) -> tuple[Example, ...]:
    needs = () if config.reward or config.reward_regex else NEEDS[recipe]
    return tuple(_example(row.where, _named(config, row), recipe, needs) for row in rows)


def _named(config: TrainConfig, row: Row) -> dict[str, Any]:
    """The row's columns under the names that are used here; without pictures and the like, which nothing here could use."""
    values = {name: value for name, value in row.values.items() if isinstance(value, str | int | float | list | dict)}
    return values | {name: row.values[column] for name, column in config.columns.items() if column in row.values}


def _example(where: str, values: Mapping[str, Any], recipe: Recipe, needs: Sequence[Sequence[str]]) -> Example:
    values = dict(values) | {
        name: _text_of(where, name, values[name]) for name in ("prompt", "response", "chosen", "rejected") if name in values
    }
    if "prompt" not in values:
        raise InputError(f"{where}: has no prompt (it has {_listed(values)}); say which column it is: --columns prompt=NAME")
    for group in needs:
        if not any(name in values for name in group):
            raise InputError(
                f"{where}: has no {' or '.join(group)}, which --recipe {recipe} needs (it has {_listed(values)}); "
                f"add it, or say which column it is: --columns {group[0]}=NAME"
            )
    if isinstance(values.get("answer"), str) and FINAL in values["answer"]:
        values["answer"] = final_answer(values["answer"], FINAL)  # GSM8K's holds the working too
    try:
        example = Example.model_validate(values)
        example.model_dump_json()
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; correct the row") from None
    except ValueError as error:  # half of a surrogate pair, which JSON can spell and no tokenizer can read
        raise InputError(f"{where}: not text ({' '.join(str(error).split())[:120]}); correct or remove the row") from None
    for name in ("prompt", *(name for group in needs for name in group)):
        if isinstance(value := getattr(example, name), str) and not value.strip():
            raise InputError(f"{where}: its {name} is empty; remove the row")
    if recipe == "rlvr" and example.tests is not None and not (example.entry_point or "").isidentifier():
        raise InputError(f"{where}: has tests but no entry_point; add the name of the function that they call")
    return example


def _text_of(where: str, name: str, value: Any) -> str:
    """A text, or the one message of a conversation that has no other."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping) and isinstance(value[0].get("content"), str):
        return str(value[0]["content"])
    if not isinstance(value, str):
        raise InputError(f"{where}: its {name} is {type(value).__name__}, not a text, nor a single message; write it as a text")
    return value


def _check_apart(splits: Splits, config: TrainConfig) -> None:
    """Raises InputError for a prompt that is trained on and measured on: a file of the user's may hold it too."""
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = {e.prompt for e in splits.get(one, ())} & {e.prompt for e in splits.get(other, ())}
        if both:
            file = config.test if other == "test" and config.test else config.validation
            raise InputError(
                f"{file}: {len(both)} of its prompts are in the data for {one} too, {min(both)[:60]!r} first; take them out of one"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no columns"
