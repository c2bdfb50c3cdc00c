"""What an expert learns from, divided into training, validation and test by the prompts' texts and the seed. No torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gopd_merge.errors import InputError
from gopd_merge.train_config import COLUMNS, Recipe, TrainConfig
from gopd_merge.training.reading import Example, examples_of, read_rows, recipe_for

SPLITS = ("train", "validation", "test")
Splits = Mapping[str, tuple[Example, ...]]


@dataclass(frozen=True)
class Data:
    """All that was read."""

    recipe: Recipe
    splits: Splits
    left_out: Mapping[str, int]  # of data sets: why -> how many rows
    datasets: tuple[str, ...]  # on the Hub, each with its commit
    licences: Mapping[str, str | None]  # of those, as their cards say


def read_data(config: TrainConfig) -> Data:
    """The recipe, and the examples of each split. Raises InputError, one line."""
    sources = {text: read_rows(text) for text in (*config.data, config.validation, config.test) if text}
    recipe = config.recipe or recipe_for(config, sources[config.data[0]])
    read, left_out = {}, Counter[str]()
    for text, found in sources.items():
        read[text], counted = examples_of(found, config, recipe)
        left_out += counted
    examples = [example for text in config.data for example in read[text]]
    given = {"validation": config.validation, "test": config.test}
    splits = {name: read[text] for name, text in given.items() if text}
    shares = {name: 0.0 if name in splits else getattr(config, f"{name}_share") for name in given}
    if not all(example.is_gradable for example in examples) or config.reward or config.reward_regex:
        shares["test"] = 0.0  # a merge could not measure on it
    found_splits = divided(examples, shares, config.seed) | splits
    _check_apart(found_splits, config)
    on_hub = {found.dataset: found.licence for found in sources.values() if found.dataset}
    return Data(recipe, found_splits, dict(left_out), tuple(on_hub), on_hub)


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


def _check_apart(splits: Splits, config: TrainConfig) -> None:
    """Raises InputError for a prompt that is trained on and measured on: a file of the user's may hold it too."""
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = {e.prompt for e in splits.get(one, ())} & {e.prompt for e in splits.get(other, ())}
        if both:
            file = config.test if other == "test" and config.test else config.validation
            raise InputError(
                f"{file}: {len(both)} of its prompts are in the data for {one} too, {min(both)[:60]!r} first; take them out of one"
            )
