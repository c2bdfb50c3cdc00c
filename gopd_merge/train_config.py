"""Every option of `gopd-merge train-expert`, with its default, its help and its check. No torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from gopd_merge.options import DOMAIN_NAME, expert_domain, option, pairs

Recipe = Literal["rlvr", "sft", "dpo", "seqkd"]
COLUMNS = ("prompt", "answer", "cases", "tests", "entry_point", "stub", "response", "chosen", "rejected")


class TrainConfig(BaseModel):
    """What an expert is trained on and how. Frozen; equal configs on equal data give equal adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    domain: str | None = option(None, "name of what the expert is for (default: the output's, so math for math.lora)", "What to train")
    recipe: Recipe | None = option(
        None,
        "rlvr = GRPO, rewarded where an answer is right; sft = learn the responses by heart; dpo = chosen over rejected; seqkd = learn the "
        "answers of --teacher by heart (default: what the data are for, see docs/training.md)",
        "What to train",
    )
    base: str | None = option(None, "folder or Hub id of the base model (default: that of --start or --teacher)", "What to train")
    data: tuple[str, ...] = option(
        (),
        "examples: files (.jsonl, .json, .csv, .parquet), user/dataset:CONFIG/SPLIT on the Hub, or catalogue:NAME",
        "What to train",
        list[str],
    )
    columns: dict[str, str] = option(
        {}, "columns that have other names in the data, such as prompt=question response=solution", "What to train", list[str]
    )
    start: str | None = option(
        None, "adapter to go on from: the usual way is sft first, then rlvr; its rank and layers are kept", "What to train"
    )
    teacher: str | None = option(None, "adapter on the same base whose answers seqkd learns", "What to train")

    reward: str | None = option(
        None,
        "your own reward instead of the graders: FILE.py:FUNCTION, called as FUNCTION(prompt, response, …columns), gives a number",
        "Reward",
    )
    reward_regex: str | None = option(None, "1 for a response in which this regular expression is found, else 0", "Reward")
    reward_seconds: float = option(5.0, "longest that one call of --reward or one search of --reward-regex may take", "Reward", gt=0)
    final: str = option(
        "any", "where a final answer stands: any = the last box or what follows the last ####, boxed, or a marker of your own", "Reward"
    )
    generations: int = option(8, "answers to each prompt; each is rewarded against the others' mean", "Reward", ge=2)
    temperature: float = option(1.0, "of sampling, in training and in validation", "Reward", gt=0)

    validation: str | None = option(None, "examples to validate on (default: a share of the data)", "What to measure")
    validation_share: float = option(0.1, "share of the data that is kept for validation", "What to measure", ge=0, lt=1)
    test: str | None = option(None, "examples for the test that merges measure on (default: a share of the data)", "What to measure")
    test_share: float = option(0.1, "share of the data that is kept for that, where it can be graded", "What to measure", ge=0, lt=1)
    eval_every: int | None = option(None, "steps between validations (default: a tenth of all)", "What to measure", ge=1)
    eval_prompts: int = option(200, "examples of each validation (as many as there are, if fewer)", "What to measure", ge=2)
    patience: int = option(4, "stop after so many validations in a row that are worse than the best; 0 = never", "What to measure", ge=0)

    output: Path = option(Path("expert.lora"), "folder to write the adapter to, with its prompts, card and manifest", "Output")
    overwrite: bool = option(False, "replace the output folder if it exists", "Output")
    checkpoint_every: int = option(10, "steps after which all that the run needs to go on is saved", "Output", ge=1)
    checkpoint_minutes: float = option(10, "minutes after which it is saved at the latest, at the end of a step", "Output", ge=0)
    keep_checkpoints: bool = option(False, "keep every checkpoint; each is an adapter that can be measured", "Output")

    steps: int | None = option(None, "optimiser steps (default: 100 for rlvr, else --epochs)", "Training", ge=1)
    epochs: float = option(2.0, "passes over the data, where --steps is not given; rlvr takes 100 steps", "Training", gt=0)
    batch_size: int = option(16, "prompts per step; rlvr answers each of them --generations times", "Training", ge=1)
    micro_batch_size: int = option(16, "sequences per forward pass of the update; changes memory and time only", "Training", ge=1)
    max_new_tokens: int = option(256, "longest response in tokens", "Training", ge=1)
    learning_rate: float | None = option(
        None, "AdamW's learning rate after warm-up (default: by recipe and the base's width, see docs/training.md)", "Training", gt=0
    )
    warmup_steps: int = option(4, "steps over which the learning rate rises to its value", "Training", ge=0)
    beta: float | None = option(
        None, "weight of staying near the start: rlvr's KL (default 0: none), dpo's β (default 0.1)", "Training", ge=0
    )
    max_grad_norm: float = option(1.0, "gradient norm above which a step is scaled down", "Training", gt=0)
    lora_rank: int | None = option(None, "rank of the adapter (default: 16, or that of --start)", "Training", ge=1, le=4096)
    targets: tuple[str, ...] = option(
        (), "last parts of the names of the layers to adapt, such as q_proj,v_proj (default: all linear layers)", "Training", list[str]
    )
    seed: int = option(0, "seed of splits, order, sampling and the fresh adapter", "Training", ge=0, lt=2**31)

    quantize: Literal["nf4", "none"] = option(
        "nf4", "precision of the base in memory: 4-bit NF4, or as it is stored (float32 on CPU)", "Machine"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to run", "Machine")
    activation_checkpointing: bool = option(
        False, "keep only the input of each layer for the way back and compute the rest again: less memory, more time", "Machine"
    )
    unsafe_exec: bool = option(False, "run a model's code without a sandbox: only in a container that holds nothing of value", "Machine")

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value)

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str) else value
        return tuple(part for text in given for part in str(text).split(",") if part)

    @field_validator("columns", mode="before")
    @classmethod
    def _columns(cls, value: Any) -> Any:
        given = value if isinstance(value, Mapping) else pairs("--columns", value)
        for name in given:
            if name not in COLUMNS:
                raise ValueError(f"--columns {name}={given[name]}: {name} is no column that is used; those are {', '.join(COLUMNS)}")
        return given

    @field_validator("reward_regex")
    @classmethod
    def _regex(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"--reward-regex {value}: is no regular expression ({error}); correct it") from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if not self.data:
            raise ValueError("data: none given; name a file of examples: --data math.jsonl")
        if not DOMAIN_NAME.fullmatch(self.expert):
            raise ValueError(f"{self.expert!r} cannot name a domain (a letter, then letters, digits, - or _); give another --domain")
        if not (self.base or self.start or self.teacher):
            raise ValueError("base: none given; name the model that the expert is for: --base FOLDER or user/name")
        if self.reward and self.reward_regex:
            raise ValueError("--reward and --reward-regex are both given; give one of them, a function can search as well")
        if self.reward and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", self.reward):
            raise ValueError(f"--reward {self.reward} is not of the form FILE.py:FUNCTION; write the file, a colon and the function's name")
        if self.recipe == "seqkd" and not self.teacher:
            raise ValueError("--recipe seqkd learns the answers of a teacher, and there is none; name an adapter with --teacher")
        if self.teacher and self.recipe not in (None, "seqkd"):
            raise ValueError(f"--teacher {self.teacher}: --recipe {self.recipe} learns from no teacher; leave it out, or use seqkd")
        if (self.reward or self.reward_regex) and (self.teacher or self.recipe not in (None, "rlvr")):
            raise ValueError(f"--recipe {self.recipe or 'seqkd'} has no reward; leave out --reward, or use --recipe rlvr")
        if self.start and self.targets:
            raise ValueError("--targets: the layers are those of --start; leave it out")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("--validation-share and --test-share leave nothing to train on; give less than 1 in all")
        return self

    @property
    def expert(self) -> str:
        """The domain's name."""
        return self.domain or expert_domain(str(self.output))
