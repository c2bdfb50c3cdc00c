"""Each recipe as one of trl's trainers, on the backbone's student. They make the updates; what is sampled, when and in which order is ours.

Order, answers and the fresh adapter are functions of the seed and the step, so a trainer can be begun at any step: a run that goes on is a
new trainer for the steps that are left, with the optimiser's moments of the checkpoint.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone
from gopd_merge.distill.rollout import CHAT, generate, row_seeds, tokenize
from gopd_merge.distill.update import default_learning_rate
from gopd_merge.train_config import Recipe, TrainConfig
from gopd_merge.training.inputs import TrainingInputs
from gopd_merge.training.reading import Example

REFERENCE_ADAPTER = "ref"  # trl's name for the adapter that a policy is kept near
RATES: Mapping[Recipe, float] = {"rlvr": 0.2, "sft": 0.4, "seqkd": 0.4, "dpo": 0.05}  # of a merge's rate: 1e-4, 2e-4, 2.5e-5 at width 2048
DPO_BETA = 0.1
Reward = Callable[[Sequence[Example], Sequence[str]], list[float]]


def learning_rate(config: TrainConfig, recipe: Recipe, width: int) -> float:
    """As given, or by recipe and the base's width."""
    return config.learning_rate or RATES[recipe] * default_learning_rate(width)


def optimizer_of(backbone: Backbone, config: TrainConfig, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW and its rate: it rises over the warm-up; then rlvr keeps it, which the best validation ends, and the others fall to zero."""
    rate = learning_rate(config, recipe, backbone.hidden_size)
    optimizer = torch.optim.AdamW(backbone.student_parameters(), lr=rate, weight_decay=0.0)
    falls = recipe != "rlvr"
    return optimizer, LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (config.warmup_steps + 1)) * (1 - step / steps if falls else 1.0)
    )


def make_trainer(
    backbone: Backbone,
    config: TrainConfig,
    inputs: TrainingInputs,
    optimizers: tuple[torch.optim.Optimizer, LambdaLR],
    first: int,
    reward: Reward,
    callback: TrainerCallback,
    folder: str,
) -> Any:
    """The trainer of the steps from `first` on. `reward` is asked by rlvr, once a step."""
    order = order_of(len(inputs.splits["train"]), inputs.steps(config) * config.batch_size, config.seed)[first * config.batch_size :]
    arguments = _arguments(backbone, config, inputs.recipe, len(order) // config.batch_size, folder)
    common = {"model": backbone.peft, "processing_class": backbone.tokenizer, "callbacks": [callback], "optimizers": optimizers}
    with _kept_precision(backbone):
        if inputs.recipe == "rlvr":
            trainer = _grpo(backbone, config, inputs.splits["train"], order, common, arguments, first, reward)
        else:
            make = _dpo if inputs.recipe == "dpo" else _sft
            trainer = make(backbone, config, inputs.splits["train"], order, common, arguments)
    if REFERENCE_ADAPTER in backbone.peft.peft_config:
        _copy_to_reference(backbone)
    for one in list(trainer.callback_handler.callbacks):
        if type(one).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(one)
    return trainer


def order_of(count: int, rows: int, seed: int) -> list[int]:
    """Which example each row of the run is: all of them in a random order, then all again in another."""
    order: list[int] = []
    while len(order) < rows:
        epoch = list(range(count))
        random.Random(f"{seed} epoch {len(order) // count}").shuffle(epoch)
        order += epoch
    return order[:rows]


def encoded(backbone: Backbone, prompt: str, response: str) -> dict[str, list[int]]:
    """A prompt as the roles read it, a response and its end; the labels leave the prompt out."""
    before = list(tokenize(backbone.tokenizer, [prompt], CHAT)["input_ids"][0])
    after = [*backbone.tokenizer(response, add_special_tokens=False)["input_ids"], backbone.tokenizer.eos_token_id]
    return {"input_ids": before + after, "labels": [-100] * len(before) + after}


def reference_role(config: TrainConfig, inputs: TrainingInputs) -> str:
    """Whom dpo and rlvr's KL keep the student near: where it began."""
    return REFERENCE_ADAPTER if inputs.start else REFERENCE


class _Quiet:
    """Of trl's trainers: no counting of users over the network, and no card of its own beside checkpoints that it does not write."""

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass


class _Grpo(_Quiet, GRPOTrainer):  # type: ignore[misc] # trl is not typed
    pass


class _Sft(_Quiet, SFTTrainer):  # type: ignore[misc]
    pass


class _Dpo(_Quiet, DPOTrainer):  # type: ignore[misc]
    pass


def _grpo(
    backbone: Backbone,
    config: TrainConfig,
    examples: Sequence[Example],
    order: Sequence[int],
    common: dict[str, Any],
    arguments: dict[str, Any],
    first: int,
    reward: Reward,
) -> Any:
    def sample(prompts: list[str], trainer: Any) -> dict[str, Any]:
        """An answer to each row of the step."""
        seeds = row_seeds(config.seed, "step", first + trainer.state.global_step, count=len(prompts))
        rollout = generate(backbone, STUDENT, prompts, ("",) * len(prompts), config.max_new_tokens, seeds, config.temperature)
        trainer.model.train()  # trl asks the model whether it trains
        prompt_mask = rollout.attention_mask[:, : rollout.prompt_width].bool()
        answered = zip(rollout.ids, prompt_mask, rollout.response_mask, strict=True)
        pairs = [(ids[: len(before)][before].tolist(), ids[len(before) :][after].tolist()) for ids, before, after in answered]
        return {"prompt_ids": [prompt for prompt, _ in pairs], "completion_ids": [found for _, found in pairs], "logprobs": None}

    def rewarded(completions: list[str], index: list[int], **_: Any) -> list[float]:
        return reward([examples[i] for i in index], completions)

    rewarded.__name__ = "reward"
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func: its interface may change, the tests would see it
    beta = config.beta or 0.0
    with _named_default(backbone, beta > 0):
        return _Grpo(
            **common,
            reward_funcs=rewarded,
            rollout_func=sample,
            train_dataset=Dataset.from_list([{"prompt": e.prompt, "index": index} for index, e in enumerate(examples)]).select(order),
            args=GRPOConfig(
                **arguments,
                num_generations=config.generations,
                max_completion_length=config.max_new_tokens,
                temperature=config.temperature,
                beta=beta,
                shuffle_dataset=False,
            ),
        )


def _sft(
    backbone: Backbone,
    config: TrainConfig,
    examples: Sequence[Example],
    order: Sequence[int],
    common: dict[str, Any],
    arguments: dict[str, Any],
) -> Any:
    return _Sft(
        **common,
        train_dataset=Dataset.from_list([encoded(backbone, e.prompt, e.response or "") for e in examples]).select(order),
        args=SFTConfig(
            **arguments,
            train_sampling_strategy="sequential",
            shuffle_dataset=False,
            max_length=None,
        ),
    )


def _dpo(
    backbone: Backbone,
    config: TrainConfig,
    examples: Sequence[Example],
    order: Sequence[int],
    common: dict[str, Any],
    arguments: dict[str, Any],
) -> Any:
    chat = bool(backbone.tokenizer.chat_template)

    def message(role: str, text: str | None) -> Any:
        return [{"role": role, "content": text}] if chat else text

    pairs = [
        {"prompt": message("user", e.prompt), "chosen": message("assistant", e.chosen), "rejected": message("assistant", e.rejected)}
        for e in examples
    ]
    with _named_default(backbone, True):
        return _Dpo(
            **common,
            train_dataset=Dataset.from_list(pairs).select(order),
            args=DPOConfig(
                **arguments,
                train_sampling_strategy="sequential",
                beta=DPO_BETA if config.beta is None else config.beta,
                max_length=None,
            ),
        )


def _arguments(backbone: Backbone, config: TrainConfig, recipe: Recipe, steps: int, folder: str) -> dict[str, Any]:
    """What all of trl's configs share. The course saves, measures and logs."""
    rows = config.batch_size * (config.generations if recipe == "rlvr" else 1)
    micro = _divisor(rows, config.micro_batch_size)
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": config.activation_checkpointing,
        "seed": config.seed,
        "use_cpu": backbone.device.type == "cpu",
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _divisor(rows: int, most: int) -> int:
    """The largest size of at most `most` that divides the rows of a step."""
    return next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)


@contextmanager
def _kept_precision(backbone: Backbone) -> Iterator[None]:
    """trl rounds a quantised model's adapter to bfloat16 when a trainer is made, as QLoRA's paper does; here it stays float32."""
    held = [(parameter, parameter.data) for parameter in backbone.student_parameters()]
    yield
    for parameter, data in held:
        parameter.data = data


@contextmanager
def _named_default(backbone: Backbone, needs_reference: bool) -> Iterator[None]:
    """While a trainer is made that is to keep near a reference: trl adds the adapter REFERENCE_ADAPTER then, like one called default."""
    configs = backbone.peft.peft_config
    if needs_reference:
        configs["default"] = configs[STUDENT]
    try:
        yield
    finally:
        configs.pop("default", None)


def _copy_to_reference(backbone: Backbone) -> None:
    """Make the reference the student as it begins: trl would copy one called default, and rounds what it adds to bfloat16."""
    for name, parameter in backbone.peft.named_parameters():
        if f".{REFERENCE_ADAPTER}." in name:
            parameter.data = parameter.data.float()
    state = get_peft_model_state_dict(backbone.peft, adapter_name=STUDENT, save_embedding_layers=False)
    set_peft_model_state_dict(backbone.peft, state, adapter_name=REFERENCE_ADAPTER)
    backbone.peft.set_adapter(STUDENT)
