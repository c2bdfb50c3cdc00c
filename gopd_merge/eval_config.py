"""Every option of `gopd-merge eval` and `gopd-merge compare`, with its default, its help and its check."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from gopd_merge.options import expert_domain, names, option, pairs

OWN = "own"  # the suite of the prompts that come with each expert
STATIC_RIVALS = ("average", "task_arithmetic", "ties", "dare_ties", "sce", "svd", "expo")
OPD = "opd"


class EvalConfig(BaseModel):
    """What is measured, on what and how. Frozen; equal configs on equal inputs give equal answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    adapters: tuple[str, ...] = option((), "the adapters to measure: folders or Hub ids user/name[@revision]", "What to measure")
    suite: tuple[str, ...] = option(
        (OWN,),
        "benchmarks: names such as own,gsm8k,humaneval (own = the prompts that come with the experts), a suite's YAML file, "
        "or DOMAIN=FILE.jsonl with your own questions",
        "What to measure",
        list[str],
    )
    data: dict[str, str] = option(
        {}, "a local file for a suite's data, SUITE=FILE each (default: the Hub, or its cache)", "What to measure", list[str]
    )
    base: str | None = option(None, "folder or Hub id of the base model (default: the one that the adapters name)", "What to measure")
    limit: int = option(1000, "questions per benchmark (as many as there are, if fewer)", "What to measure", ge=1)

    temperature: float | None = option(None, "of sampling; 0 is greedy (default: the suite's)", "Sampling", ge=0)
    samples: int | None = option(None, "answers to each question, of which the mean counts (default: the suite's)", "Sampling", ge=1)
    max_new_tokens: int | None = option(None, "longest answer in tokens (default: the suite's)", "Sampling", ge=1)
    seed: int | None = option(None, "seed of the sampling (default: the merge's, else 0)", "Sampling", ge=0, lt=2**31)

    judge: str | None = option(
        None, "URL of a server with an OpenAI-compatible chat API that compares answers in open-ended domains", "Judge"
    )
    judge_model: str | None = option(None, "the model that it runs (default: the first that it lists)", "Judge")

    output: Path | None = option(
        None, "folder for answers and results (default: evaluation/ in the first adapter's folder if it is a merge, else here)", "Output"
    )
    overwrite: bool = option(False, "ask everything again, instead of going on with the answers that are there", "Output")

    batch_size: int | None = option(None, "questions asked at once (default: the merge's --batch-size, else 64)", "Machine", ge=1)
    quantize: Literal["nf4", "none"] | None = option(None, "precision of the base in memory (default: the merge's, else nf4)", "Machine")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to run", "Machine")
    unsafe_exec: bool = option(False, "run a model's code without a sandbox: only in a container that holds nothing of value", "Machine")

    @field_validator("suite", mode="before")
    @classmethod
    def _suite(cls, value: Any) -> Any:
        return names(value)

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping) else pairs("--data", value)

    @model_validator(mode="after")
    def _fits_together(self) -> "EvalConfig":
        if not self.adapters:
            raise ValueError("adapters: none given; name at least one folder or Hub id, such as merged.lora")
        if len(set(self.suite)) < len(self.suite):
            raise ValueError(f"--suite {','.join(self.suite)} names a suite twice; name each once")
        if self.judge_model and not self.judge:
            raise ValueError(f"--judge-model {self.judge_model} has no server to run on; give its URL with --judge")
        return self


class CompareConfig(EvalConfig):
    """The same for a merge against its experts and its rivals."""

    experts: dict[str, str] = option(
        {}, "the experts that were merged, DOMAIN=PATH each (default: those that the merge was made of)", "What to measure", list[str]
    )
    rivals: tuple[str, ...] = option(
        STATIC_RIVALS,
        f"what the merge is compared with: {','.join(STATIC_RIVALS)} (the default), opd (trained here with α = 1), all, or none",
        "What to measure",
        list[str],
    )
    tune_limit: int = option(200, "validation questions per benchmark for each point of a rival's grid", "What to measure", ge=1)

    @field_validator("experts", mode="before")
    @classmethod
    def _experts(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping) else pairs("--experts", value, default_key=expert_domain)

    @field_validator("rivals", mode="before")
    @classmethod
    def _rivals(cls, value: Any) -> Any:
        given = names(value)
        every = (*STATIC_RIVALS, OPD)
        for name in given:
            if name not in (*every, "all", "none"):
                raise ValueError(f"--rivals {name} is not known; choose among {', '.join(every)}, all and none")
        if "none" in given:
            return ()
        return every if "all" in given else tuple(name for name in every if name in given)
