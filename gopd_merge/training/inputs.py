"""What a training will use, read and checked before any model is loaded. No torch."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError
from gopd_merge.experts.base import Base, linear_kinds, resolve_base
from gopd_merge.experts.intake import Expert, read_expert
from gopd_merge.experts.tensor_file import file_sha256
from gopd_merge.plan import pinned
from gopd_merge.settings import base_digest
from gopd_merge.train_config import Recipe, TrainConfig
from gopd_merge.training.examples import Data, digest, read_data
from gopd_merge.training.reading import Example
from gopd_merge.training.rewards import check_rewards

TRAINING = "training.json"
RANK = 16  # where nothing says another
STEPS = 100  # of rlvr
# Options that change no adapter, or that stand in the settings by what was found there.
ASIDE = {
    *("base", "data", "columns", "start", "teacher", "reward", "validation", "test", "domain", "recipe", "steps", "epochs"),
    *("output", "overwrite", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "micro_batch_size", "device"),
    *("activation_checkpointing", "unsafe_exec", "targets", "lora_rank"),
}


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that a training reads, checked."""

    data: Data
    base: Base
    splits: Mapping[str, tuple[Example, ...]]  # train, validation, test, as they are trained on
    start: Expert | None
    teacher: Expert | None
    rank: int
    targets: tuple[str, ...]
    dropped: Mapping[str, int]  # examples of each split that are longer than the context

    @property
    def recipe(self) -> Recipe:
        """As given, or what the data are for."""
        return self.data.recipe

    def steps(self, config: TrainConfig) -> int:
        """Optimiser steps."""
        if config.steps or self.recipe == "rlvr":
            return config.steps or STEPS
        return max(1, round(config.epochs * len(self.splits["train"]) / config.batch_size))

    def settings(self, config: TrainConfig) -> dict[str, Any]:
        """All that the adapter depends on but the machine: two runs of which it is equal are the same run."""
        settings = config.model_dump(mode="json", exclude=ASIDE)
        settings |= {"recipe": self.recipe, "steps": self.steps(config), "lora_rank": self.rank, "targets": list(self.targets)}
        settings |= {"base": base_digest(self.base), "data": digest(self.data.splits)}
        settings["reward"] = file_sha256(Path(config.reward.rpartition(":")[0])) if config.reward else None
        for name, one in (("start", self.start), ("teacher", self.teacher)):
            settings[name] = one.sha256 if one else None
        return settings

    def pin(self, config: TrainConfig) -> TrainConfig:
        """The config with the commits that were found for its Hub ids, so that it means the same tomorrow."""
        update: dict[str, Any] = {"base": pinned(config.base, self.base), "recipe": self.recipe}
        update |= {name: pinned(getattr(config, name), one) for name, one in (("start", self.start), ("teacher", self.teacher)) if one}
        return config.model_copy(update=update)


def read_training(config: TrainConfig) -> TrainingInputs:
    """Raises InputError for whatever the training would refuse and can be seen without the tokenizer."""
    check_installed(config)
    data = read_data(config)
    if data.recipe == "rlvr":
        check_rewards(config, [example for found in data.splits.values() for example in found])
    start = read_expert("start", config.start) if config.start else None
    teacher = read_expert("teacher", config.teacher) if config.teacher else None
    base = resolve_base([one for one in (start, teacher) if one], config.base, "all", config.quantize)
    if start and config.lora_rank not in (None, start.rank):
        raise InputError(f"--lora-rank {config.lora_rank}: the rank is that of --start {start.name}, {start.rank}; leave it out")
    kinds = linear_kinds(base)
    if unknown := [name for name in config.targets if name not in kinds]:
        raise InputError(f"--targets {unknown[0]}: {base.name} has no such linear layer; it has {', '.join(kinds)}")
    rank, targets = (start.rank, start.targets) if start else (config.lora_rank or RANK, config.targets or kinds)
    return TrainingInputs(data, base, data.splits, start, teacher, rank, tuple(sorted(targets)), {})


def check_installed(config: TrainConfig) -> None:
    """Raises InputError where trl is missing."""
    if importlib.util.find_spec("trl") is None:
        raise InputError(f"--output {config.output}: train-expert needs trl, which is missing; give pip install 'gopd-merge[train]' first")


def without_long(inputs: TrainingInputs, lengths: Mapping[str, list[int]], room: int | None) -> TrainingInputs:
    """Without the examples that take more than `room` tokens. Raises InputError where a split has no others."""
    if room is None:
        return inputs
    kept, dropped = {}, {}
    for name, found in inputs.splits.items():
        kept[name] = tuple(example for example, length in zip(found, lengths[name], strict=True) if length <= room)
        dropped[name] = len(found) - len(kept[name])
        if found and not kept[name]:
            raise InputError(
                f"the data: all of {len(found)} {name} examples are longer than the {room:,} tokens that the context of {inputs.base.name} "
                "has room for; shorten them, lower --max-new-tokens, or take a base with a longer context"
            )
    return replace(inputs, splits=kept, dropped=dropped)
