"""Every option of the merge with its default, its help and its check.

The command line's flags, the YAML file and `merge.json` are all made from `MergeConfig`; nothing else holds a default.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, field_validator, model_validator

from gopd_merge.consistency import AUTO, COPYING, contradiction
from gopd_merge.options import EVERY, checked, expert_paths, names, option, pairs, prompt_sources
from gopd_merge.server import check_url, is_remote

BASE, TEACHER_BASE = "base", "teacher-base"
REFERENCES = (BASE, TEACHER_BASE, "teacher", "student-start")  # the words for --reference; anything else is a folder
HF, VLLM = "hf", "vllm"  # who may sample the student's answers, besides a server
AUTO_ALPHAS = (1.0, 1.25, 1.5, 2.0, 3.0)  # what --alpha auto chooses among
METHOD_OPTIONS = (
    *("estimator", "top_k", "reference", "kl_reference", "alpha_from", "adaptive", "alpha_max", "bound", "deterministic"),
    *("rotate", "weights", "start", "balance", "teacher_base", "horizon"),
)


class MergeConfig(BaseModel):
    """What to merge and how. Frozen; equal configs on equal inputs give equal adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    experts: dict[str, str] = option(
        {},
        "the LoRA adapters to merge: folders or Hub ids user/name[@revision], or DOMAIN=either, each (math.lora is the domain math), or "
        "DOMAIN=http://HOST/v1#NAME on a server",
        "What to merge",
        list[str],
    )
    alpha: float | dict[str, float] | Literal["auto"] = option(
        1.25,
        "reward scale: 0 = base, 1 = the experts, above 1 = beyond them; one NUMBER, or DOMAIN=NUMBER each, or auto: gopd-merge probe "
        "measures the target on validation questions first and chooses",
        "What to merge",
        list[str],
    )
    base: str | None = option(None, "folder or Hub id of the base model (default: the one that the experts name)", "What to merge")
    teacher_base: str | None = option(
        None,
        "strong to weak: the larger base that the experts are on; the merged adapter is for --base, with the same tokenizer",
        "What to merge",
    )
    prompts: dict[str, str] = option(
        {},
        "training prompts, SOURCE for all domains or DOMAIN=SOURCE: FILE.jsonl (or .json, .csv, .parquet), a data set on the Hub as "
        "user/name:CONFIG/SPLIT#COLUMN, catalogue:NAME (gopd-merge prompts lists them), own = prompts/train.jsonl in the adapter's folder, "
        "synth = the expert writes them (default: own)",
        "What to merge",
        list[str],
    )
    allow_noop: bool = option(False, "take an expert that changes nothing (every lora_B zero)", "What to merge")

    method: Literal["exopd", "opd", "seqkd", "sft", "rkl", "alternate"] = option(
        "exopd",
        "exopd; or what it is compared with: opd = α 1, seqkd = learn the experts' own answers by heart, sft = the response of each "
        "prompt, rkl = the experts answer instead of the student, alternate = one domain after the other",
        "Method",
    )
    estimator: Literal["full", "sampled", "topk", "forward", "hidden"] = option(
        "full",
        "loss: full = exact reverse KL over the vocabulary, sampled = the paper's policy gradient on the sampled token, topk = the "
        "target's likeliest tokens and one bucket for the rest, forward = KL(target, student), hidden = distance of hidden "
        "states (experimental)",
        "Method",
    )
    top_k: int = option(64, "tokens that --estimator topk looks at (a remote teacher's server may allow fewer)", "Method", ge=1)
    reference: str | None = option(
        None,
        "what a teacher's reward is measured against: base, teacher-base, teacher (α cancels: plain OPD), student-start, or an adapter's "
        "or model's folder (default: teacher-base where there is one, else base)",
        "Method",
    )
    kl_reference: str | None = option(None, "what the student is kept close to, same choices (default: the same as --reference)", "Method")

    horizon: int | None = option(
        None,
        "train on the first so many tokens of each response, and sample no more of it; what is measured is answered in full (default: "
        "--max-new-tokens)",
        "Method",
        ge=1,
    )

    max_prompts: int = option(
        10_000,
        "rows that are read of a source for each domain, drawn at random but the same every time; it bounds a download",
        "Prompts",
        ge=1,
    )
    decontaminate: tuple[str, ...] = option(
        (),
        "leave out prompts that are in these evaluation suites or share a long run of words with one of their questions, such as "
        "own,gsm8k,humaneval",
        "Prompts",
        list[str],
    )
    synth_prompts: int = option(1000, "prompts that an expert writes with --prompts synth", "Prompts", ge=1)
    synth_tokens: int = option(256, "longest prompt in tokens that an expert writes", "Prompts", ge=8)

    probe_prompts: int = option(
        300, "validation questions per domain for --alpha auto (as many as there are, if fewer)", "Reward scale", ge=2
    )
    alpha_from: float | None = option(
        None, "begin with this reward scale and go in a line to --alpha at the last step", "Reward scale", ge=0
    )
    adaptive: Literal["none", "token", "run"] = option(
        "none",
        "token: extrapolate each token as far as teacher and reference disagree on it; run: raise α from --alpha while entropy, length and "
        "reward are calm, lower it when they are not",
        "Reward scale",
    )
    alpha_max: float = option(3.0, "the highest that --adaptive run goes", "Reward scale", ge=1)
    bound: float | None = option(
        None, "clip log(teacher/reference) of every token of the vocabulary to this, in nats", "Reward scale", gt=0
    )
    deterministic: float | None = option(
        None, "α is at most 1 where the teacher gives one token more than this probability, such as 0.99", "Reward scale", gt=0, lt=1
    )

    rotate: Literal["prompt", "step", "all"] = option(
        "prompt",
        "who teaches: prompt = each prompt's own expert, all domains in every batch; step = one expert and its domain a step; all = every "
        "expert on every prompt (a product of experts)",
        "Teachers",
    )
    weights: dict[str, float] = option(
        {}, "how much of each expert, DOMAIN=NUMBER each: α is multiplied by it (default: 1 each)", "Teachers", list[str]
    )
    start: str = option(
        "none",
        "where the student begins: none = at the base, a static merge (average, task_arithmetic, ties, dare_ties, sce, svd, expo) or a "
        "merged adapter's folder",
        "Teachers",
    )
    balance: bool = option(False, "rescale each domain's gradient to their mean norm, so that no teacher drowns the others", "Teachers")

    output: Path = option(Path("merged.lora"), "folder to write the merged adapter to", "Output")
    overwrite: bool = option(False, "replace the output folder if it exists", "Output")
    checkpoint_every: int = option(10, "steps after which all that the run needs to go on is saved", "Output", ge=1)
    checkpoint_minutes: float = option(10, "minutes after which it is saved at the latest, at the end of a step", "Output", ge=0)
    keep_checkpoints: bool = option(
        False, "keep every checkpoint; each is an adapter that can be measured (default: the last two)", "Output"
    )
    track: Literal["none", "tensorboard", "wandb", "trackio"] = option(
        "none", "tracker that gets each step's metrics too, and the options once; it must be installed", "Output"
    )
    eval: bool = option(True, "measure base, experts, average and the merge at the end", "Output")
    eval_prompts: int = option(1000, "test prompts per domain for that (as many as there are, if fewer)", "Output", ge=1)

    steps: int = option(50, "optimiser steps", "Training", ge=1)
    batch_size: int = option(64, "prompts per step, shared equally by the domains (what does not divide is left out)", "Training", ge=1)
    micro_batch_size: int = option(32, "sequences per forward pass of scoring and update; changes memory and time only", "Training", ge=1)
    max_new_tokens: int = option(96, "longest response in tokens", "Training", ge=1)
    learning_rate: float | None = option(
        None,
        "AdamW's learning rate after warm-up; it falls to zero in a line (default: by the base's width, 0.002 at 128, 0.0005 at 2048)",
        "Training",
        gt=0,
    )
    warmup_steps: int = option(4, "steps over which the learning rate rises to its value", "Training", ge=0)
    max_grad_norm: float = option(1.0, "gradient norm above which a step is scaled down", "Training", gt=0)
    lora_rank: int | None = option(
        None, "rank of the merged adapter (default: the largest rank among the experts)", "Training", ge=1, le=4096
    )
    stop_on_divergence: bool = option(
        False,
        "end the run, with a checkpoint, when KL to the target rises, entropy collapses or every answer ends at the limit",
        "Training",
    )
    seed: int = option(0, "seed of prompts, sampling and the fresh adapter", "Training", ge=0, lt=2**31)

    quantize: Literal["nf4", "none"] = option(
        "nf4", "precision of the base in memory: 4-bit NF4, or as it is stored (float32 on CPU)", "Machine"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to run", "Machine")
    memory: ByteSize | None = option(
        None,
        "memory that the run may take (of several processes: each), such as 24GB; one that needs more is refused (default: what is free)",
        "Machine",
        str | None,
    )
    shard_base: bool = option(
        False,
        "several processes of accelerate launch: each holds a part of every layer of the base, for one that does not fit a device (FSDP2)",
        "Machine",
    )
    chunk_tokens: int = option(256, "response tokens projected to the vocabulary at once; changes memory and time only", "Machine", ge=1)
    rollout: str = option(
        HF,
        "who samples the student's answers: hf = the base that is loaded, vllm = vLLM, which this run starts beside it, or a running vllm "
        "serve at http://HOST:PORT/v1 that loads the student anew every step",
        "Machine",
    )
    activation_checkpointing: bool = option(
        False, "keep only the input of each layer for the update's way back and compute the rest again: less memory, more time", "Machine"
    )
    remote_patience: float = option(
        600,
        "seconds to wait for the server of a remote expert or of --rollout that does not answer, before the run ends",
        "Machine",
        ge=0,
    )
    unsafe_exec: bool = option(False, "run a model's code without a sandbox: only in a container that holds nothing of value", "Machine")

    @field_validator("experts", mode="before")
    @classmethod
    def _experts(cls, value: Any) -> Any:
        return expert_paths(value)

    @field_validator("alpha", mode="before")
    @classmethod
    def _alpha(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[0] if len(value) == 1 and "=" not in str(value[0]) else pairs("--alpha", value)
        if isinstance(value, Mapping):
            return {domain: _number(number, f"{domain}=") for domain, number in value.items()}
        return AUTO if value == AUTO else _number(value)

    @model_validator(mode="before")
    @classmethod
    def _alpha_of_method(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("method") in COPYING:
            return {"alpha": 1.0, **values}
        return values

    @field_validator("weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        given = value if isinstance(value, Mapping) else pairs("--weights", value)
        return {domain: _number(number, f"{domain}=", "--weights") for domain, number in given.items()}

    @field_validator("prompts", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        return prompt_sources(value)

    @field_validator("decontaminate", mode="before")
    @classmethod
    def _decontaminate(cls, value: Any) -> Any:
        return names(value)

    @field_validator("rollout")
    @classmethod
    def _rollout(cls, value: str) -> str:
        if is_remote(value):
            check_url(value)
        elif value not in (HF, VLLM):
            raise ValueError(f"--rollout {value} is nobody who samples; write hf, vllm, or the URL of a running vllm serve")
        return value

    @field_validator("memory", mode="wrap")
    @classmethod
    def _memory(cls, value: Any, check: Callable[[Any], ByteSize]) -> Any:
        try:
            size = None if value is None else check(value)
        except ValueError:
            size = ByteSize(0)
        if size is not None and size <= 0:
            raise ValueError(f"--memory {value} is not an amount of memory; write a number and a unit, such as 24GB")
        return size

    @model_validator(mode="after")
    def _fits_together(self) -> "MergeConfig":
        if not self.experts:
            raise ValueError("experts: none given; name at least one LoRA adapter: --experts math.lora code.lora")
        named = " and ".join(self.experts)
        for flag, given in (("--prompts", self.prompts), ("--weights", self.weights), ("--alpha", self.alpha)):
            for domain in given if isinstance(given, dict) else ():
                if domain not in (*self.experts, EVERY):
                    raise ValueError(f"{flag} names the domain {domain}, but the experts are {named}; use one of those")
        if isinstance(self.alpha, dict) and (missing := [d for d in self.experts if d not in self.alpha]):
            raise ValueError(f"--alpha has no value for {missing[0]}; add {missing[0]}=NUMBER, or give one number for all")
        count = len(self.experts)
        if self.batch_size < count:
            raise ValueError(f"--batch-size {self.batch_size} leaves no prompt for some of the {count} experts; use {count} or more")
        if problem := contradiction(self):
            raise ValueError(problem)
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains in the order in which everything is computed, so that the order of the flags cannot matter."""
        return tuple(sorted(self.experts))

    def prompts_of(self, domain: str) -> str | None:
        """Where the domain's prompts come from; None where nothing says so."""
        return self.prompts.get(domain, self.prompts.get(EVERY))

    @property
    def trained_tokens(self) -> int:
        """The longest response that the training sees; what is measured may be as long as `max_new_tokens`."""
        return self.horizon or self.max_new_tokens

    @property
    def prompts_per_step(self) -> int:
        """Prompts that a step asks: the same number of each domain, so what of `batch_size` does not divide is left out."""
        return self.batch_size // len(self.experts) * len(self.experts)

    def alpha_of(self, domain: str) -> float:
        """λ of a domain. A domain without one is an error, never a default (raises KeyError), and so is one not chosen yet."""
        if self.alpha == AUTO:
            raise KeyError(f"α of {domain} is not chosen yet")
        return self.alpha[domain] if isinstance(self.alpha, dict) else float(self.alpha)

    @property
    def cancels_alpha(self) -> bool:
        """Whether the teacher is its own reference: then its reward is zero, and it is copied whatever α is."""
        return self.reference == "teacher"

    @property
    def copies_experts(self) -> bool:
        """Whether every target is the prompt's own expert as it is: plain OPD, however that was asked for."""
        if self.cancels_alpha:
            return True
        reference = self.reference or (TEACHER_BASE if self.teacher_base else BASE)
        one = self.alpha != AUTO and all(self.alpha_of(domain) == 1 for domain in self.domains)
        stays = self.alpha_from in (None, 1) and self.adaptive != "run"
        alone = (self.rotate != "all" or len(self.experts) == 1) and all(weight == 1 for weight in self.weights.values())
        return one and stays and alone and self.bound is None and self.kl_reference in (None, reference)

    @property
    def changes(self) -> dict[str, Any]:
        """The options of the method that are not the defaults: what makes this merge another method than the default one."""
        return {name: getattr(self, name) for name in METHOD_OPTIONS if getattr(self, name) != type(self).model_fields[name].default}


def _number(value: Any, label: str = "", flag: str = "--alpha") -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{flag} {label}{value} is not a number; expected 0 or more, such as 1.25") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{flag} {label}{value} must be finite and 0 or more; 1 copies the experts, 2 goes as far again")
    return number


def make_config(options: Mapping[str, Any]) -> MergeConfig:
    """A checked config of a merge. Raises InputError with one line when an option does not hold."""
    return checked(MergeConfig, options)
