"""Every option of `gopd-merge probe`, with its default, its help and its check."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from gopd_merge.eval_config import OWN
from gopd_merge.options import expert_paths, option, pairs
from gopd_merge.server import is_remote

ALPHAS = (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0)


class ProbeConfig(BaseModel):
    """Which targets are sampled, on what and how. Frozen; equal configs on equal inputs give equal answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    experts: dict[str, str] = option(
        {},
        "the LoRA adapters that are to be merged: folders or Hub ids user/name[@revision], or DOMAIN=either, each",
        "What to merge",
        list[str],
    )
    alphas: tuple[float, ...] = option(ALPHAS, "the values of α to try, such as 1,1.5,2", "What to measure", list[str])
    base: str | None = option(None, "folder or Hub id of the base model (default: the one that the experts name)", "What to merge")
    allow_noop: bool = option(False, "take an expert that changes nothing (every lora_B zero)", "What to merge")
    suite: tuple[str, ...] = option(
        (OWN,),
        "whose validation questions are asked: names such as own,gsm8k (own = the prompts that come with the experts), a suite's YAML "
        "file, or DOMAIN=FILE.jsonl with your own questions",
        "What to measure",
        list[str],
    )
    data: dict[str, str] = option(
        {}, "a local file for a suite's data, SUITE=FILE each (default: the Hub, or its cache)", "What to measure", list[str]
    )
    limit: int = option(300, "questions per benchmark and α (as many as there are, if fewer)", "What to measure", ge=1)

    temperature: float | None = option(None, "of sampling; 0 is greedy (default: the suite's)", "Sampling", ge=0)
    max_new_tokens: int | None = option(None, "longest answer in tokens (default: the suite's)", "Sampling", ge=1)
    seed: int = option(0, "seed of the sampling", "Sampling", ge=0, lt=2**31)

    output: Path = option(Path("probe"), "folder for answers and scale.json", "Output")
    overwrite: bool = option(False, "ask everything again, instead of going on with the answers that are there", "Output")

    batch_size: int = option(64, "questions asked at once; each runs as two rows, expert and base", "Machine", ge=1)
    quantize: Literal["nf4", "none"] = option(
        "nf4", "precision of the base in memory: 4-bit NF4, or as it is stored (float32 on CPU)", "Machine"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to run", "Machine")
    unsafe_exec: bool = option(False, "run a model's code without a sandbox: only in a container that holds nothing of value", "Machine")

    @field_validator("experts", mode="before")
    @classmethod
    def _experts(cls, value: Any) -> Any:
        return expert_paths(value)

    @field_validator("alphas", mode="before")
    @classmethod
    def _alphas(cls, value: Any) -> Any:
        parts = value if isinstance(value, list | tuple) else [value]
        numbers = [_alpha(text) for part in parts for text in str(part).split(",") if text.strip()]
        if not numbers:
            raise ValueError(f"--alphas {value!r} holds no number; give some of 0 or more, such as 1,1.5,2")
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"--alphas {','.join(f'{n:g}' for n in numbers)} names a value twice; name each once")
        return tuple(sorted(numbers))

    @field_validator("suite", mode="before")
    @classmethod
    def _suite(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        return tuple(name for text in texts for name in str(text).split(",") if name)

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping) else pairs("--data", value)

    @model_validator(mode="after")
    def _fits_together(self) -> "ProbeConfig":
        if not self.experts:
            raise ValueError("experts: none given; name at least one LoRA adapter: --experts math.lora code.lora")
        if remote := [domain for domain, path in self.experts.items() if is_remote(path)]:
            raise ValueError(
                f"{', '.join(remote)}: a teacher behind a server cannot be sampled beside the base; name an adapter that is here"
            )
        if len(set(self.suite)) < len(self.suite):
            raise ValueError(f"--suite {','.join(self.suite)} names a suite twice; name each once")
        return self


def _alpha(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"--alphas {text} is not a number; expected 0 or more, such as 1,1.5,2") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"--alphas {text} must be finite and 0 or more; 0 is the base, 1 the experts, above 1 lies beyond them")
    return number
