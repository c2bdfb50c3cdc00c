"""Who is measured: gopd_merge's own step, and three rivals that do the same work.

    A    trl's DistillationTrainer: the expert, merged into a copy of the base, teaches; λ = 1, as it has no reference.
    A′   a subclass of it: adapters switched on one base, and the mixed hidden state as target, so that λ may be more than 1.
    B    three models and their full logits under autograd.

Ours runs as it is by default, and lean: with --activation-checkpointing --chunk-tokens 64.

All have the interface of `Contender`. trl's own loop runs, one optimiser step a call: its clock starts where the step begins and
stops where it ends. A learning rate that moves nothing makes every repetition the same step.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

import torch
import trl
from datasets import Dataset
from peft import PeftModel
from recorded import Questions, Recorded, planned
from torch import Tensor
from transformers import AutoTokenizer, TrainerCallback
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.rollout import Rollout, generate, row_seeds
from gopd_merge.distill.target import Scale, score
from gopd_merge.distill.update import accumulate_gradient, optimizer_step
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import try_experts

RATE, MAX_NORM = 1e-12, 1.0
CHUNK, LEAN_CHUNK = 256, 64  # tokens that ours projects at once: the default, and where memory counts
Gradient = dict[str, Tensor]
Seconds = dict[str, float]


class Contender(Protocol):
    """One way to take a step. `options`: alpha, micro_batch, and what a rival has of its own."""

    def step(self, recorded: Recorded, **options: Any) -> Seconds:
        """Scoring and update on recorded responses."""

    def whole(self, questions: Questions, **options: Any) -> Seconds:
        """The same on its own responses, of planned lengths."""

    def gradient(self, recorded: Recorded, **options: Any) -> tuple[float, Gradient]:
        """The step's loss, and the gradient before it is clipped, by names without the adapter's."""


def named(parameters: Any) -> Gradient:
    """Gradients under names that all contenders share."""
    return {
        name.split("layers.", 1)[1].replace(".default.", ".").replace(f".{STUDENT}.", "."): parameter.grad.clone()
        for name, parameter in parameters
        if parameter.grad is not None
    }


class Ours:
    """gopd_merge: one base, `score`, `accumulate_gradient`, `optimizer_step`. Prompts are dealt out to the experts, all of them alike."""

    def __init__(self, folder: Path, quantize: str = "none", experts: int = 1) -> None:
        base = Base(str(folder / "base"), str(folder / "base"))
        self.domains = tuple(f"domain{number}" for number in range(experts))
        read, _ = try_experts(dict.fromkeys(self.domains, str(folder / "expert.lora")))  # a merge would refuse the same one twice
        self.backbone = Backbone(*load_base(base, quantize, "cpu"), read)
        self.backbone.load_adapter(folder / "student.lora", STUDENT)
        self.cast = plain_cast(self.backbone, self.domains)

    def _domains(self, count: int) -> tuple[str, ...]:
        return tuple(self.domains[row % len(self.domains)] for row in range(count))

    def step(self, recorded: Recorded, **options: Any) -> Seconds:
        return self._taken(lambda: self._rollout(recorded), **options)

    def whole(self, questions: Questions, **options: Any) -> Seconds:
        with planned(self.backbone.model, questions):
            return self._taken(lambda: self.answer(questions), **options)

    def answer(self, questions: Questions) -> Rollout:
        count = len(questions.prompts)
        seeds = row_seeds("side by side", count=count)
        return generate(self.backbone, STUDENT, questions.texts, self._domains(count), questions.limit, seeds)

    def record(self, questions: Questions) -> Recorded:
        """What the student answers."""
        with planned(self.backbone.model, questions):
            rollout = self.answer(questions)
        ids = torch.split(rollout.response_ids(), rollout.response_mask.sum(1).tolist())
        return Recorded(questions, tuple(tuple(row.tolist()) for row in ids))

    def gradient(self, recorded: Recorded, **options: Any) -> tuple[float, Gradient]:
        kl = self._accumulate(self._rollout(recorded), **options)
        found = named(self.backbone.peft.named_parameters())
        for parameter in self.backbone.student_parameters():
            parameter.grad = None
        return float(kl.mean()), found

    def _rollout(self, recorded: Recorded) -> Rollout:
        ids, attention_mask, response_mask = recorded.padded()
        count, limit = len(ids), recorded.questions.limit
        return Rollout(ids, attention_mask, response_mask, response_mask.sum(1) == limit, self._domains(count))

    def _taken(self, answer: Callable[[], Rollout], **options: Any) -> Seconds:
        parameters = self.backbone.student_parameters()
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        started = time.perf_counter()
        rollout = answer()
        answered = time.perf_counter()
        self._accumulate(rollout, **options)
        optimizer_step(parameters, optimizer, MAX_NORM)
        return {"rollout": answered - started, "scoring and update": time.perf_counter() - answered}

    def _accumulate(self, rollout: Rollout, alpha: float, micro_batch: int, lean: bool = False) -> Tensor:
        self.backbone.recompute_activations(lean)
        chunk = LEAN_CHUNK if lean else CHUNK
        target = score(self.cast, rollout, Scale(dict.fromkeys(self.domains, alpha)), micro_batch, chunk)
        return accumulate_gradient(self.cast, rollout, target, "full", micro_batch, chunk).kl


class Trl:
    """A: DistillationTrainer with the settings that are the fastest for it here; the expert is merged into the teacher's own copy."""

    def __init__(self, folder: Path, quantize: str = "none") -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        self.quantize = quantize
        self.model = self._load_student(folder)
        self.teacher: Any = self._load_teacher(folder)

    def _load_student(self, folder: Path) -> Any:
        return PeftModel.from_pretrained(load_model(folder, self.quantize), folder / "student.lora", is_trainable=True)

    def _load_teacher(self, folder: Path) -> Any:
        return load_merged(folder)

    def step(self, recorded: Recorded, **options: Any) -> Seconds:
        trainer = self._trainer(recorded.questions, **options)
        trainer.recorded = {p: list(r) for p, r in zip(recorded.questions.prompts, recorded.responses, strict=True)}
        return self._run(trainer)

    def whole(self, questions: Questions, **options: Any) -> Seconds:
        with planned(self.model.get_base_model(), questions):
            return self._run(self._trainer(questions, **options))

    def gradient(self, recorded: Recorded, **options: Any) -> tuple[float, Gradient]:
        trainer = self._trainer(recorded.questions, max_grad_norm=1e30, **options)
        trainer.recorded = {p: list(r) for p, r in zip(recorded.questions.prompts, recorded.responses, strict=True)}
        trainer.clock.keeps_gradient = True
        self._run(trainer)
        return float(sum(trainer.losses)), trainer.clock.gradient

    def _run(self, trainer: "Observed") -> Seconds:
        trainer.train()
        for parameter in self.model.parameters():
            parameter.grad = None
        whole = trainer.clock.seconds
        return {"rollout": trainer.rollout_seconds, "scoring and update": whole - trainer.rollout_seconds}

    def _trainer(
        self, questions: Questions, micro_batch: int, alpha: float = 1.0, checkpointing: bool = False, max_grad_norm: float = MAX_NORM
    ) -> "Observed":
        if alpha != 1:
            raise ValueError(f"trl has no reference, so λ is 1, not {alpha}")
        return self._make(Observed, questions, micro_batch, checkpointing, max_grad_norm)

    def _make(self, kind: Any, questions: Questions, micro_batch: int, checkpointing: bool, max_grad_norm: float) -> Any:
        count = len(questions.prompts)
        assert count % micro_batch == 0, "trl would leave prompts out"
        args = trl.DistillationConfig(
            output_dir=mkdtemp(),
            max_steps=1,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=count // micro_batch,
            gradient_checkpointing=checkpointing,  # its default, True, is slower
            max_completion_length=questions.limit,
            temperature=1.0,
            beta=1.0,  # reverse KL
            learning_rate=RATE,
            max_grad_norm=max_grad_norm,
            shuffle_dataset=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = Dataset.from_list([{"prompt": text} for text in questions.texts])
        stored = {parameter: parameter.data for parameter in self.model.parameters()}
        trainer = kind(model=self.model, teacher_model=self.teacher, args=args, train_dataset=dataset, processing_class=self.tokenizer)
        for parameter, values in stored.items():  # trl rounds the adapter of a quantised model to bfloat16
            parameter.data = values
        return trainer


class Clock(TrainerCallback):
    """Seconds of the optimiser step, and its gradient where that is wanted."""

    keeps_gradient = False

    def on_step_begin(self, *arguments: Any, **options: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, *arguments: Any, model: Any = None, **options: Any) -> None:
        if self.keeps_gradient:
            self.gradient = named(model.named_parameters())

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.seconds = time.perf_counter() - self.started


class Observed(trl.DistillationTrainer):
    """trl's trainer, timed; with `recorded` responses in place of its own where they are given."""

    recorded: dict[tuple[int, ...], list[int]] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clock = Clock()
        self.add_callback(self.clock)
        self.losses: list[Tensor] = []
        self.rollout_seconds = 0.0

    def _generate_single_turn(self, prompt_ids: list[list[int]], *arguments: Any, **options: Any) -> Any:
        if self.recorded is not None:
            return [self.recorded[tuple(ids)] for ids in prompt_ids]
        return super()._generate_single_turn(prompt_ids, *arguments, **options)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started = time.perf_counter()
        found = super()._generate_and_score_completions(inputs)
        self.rollout_seconds += time.perf_counter() - started
        return found

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        self.losses.append(super().training_step(*arguments, **options))
        return self.losses[-1]


class OneBase(trl.DistillationTrainer):
    """A′: trl's trainer with the expert and the reference as adapters, on and off, of the student's own base, and any λ."""

    alpha = 1.0
    compact = False  # project response tokens alone, as trl does on a GPU; on a CPU it projects padding too

    def _compute_loss(self, student: Any, inputs: Any, num_items_in_batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        mask, width = inputs["completion_mask"], inputs["completion_ids"].size(1)
        with torch.no_grad():
            student.base_model.set_adapter("expert", inference_mode=True)
            target = self.alpha * self._get_last_hidden_state(student, ids, attention_mask, width)
            student.base_model.set_adapter("default")
            if self.alpha != 1:
                with student.disable_adapter():
                    target += (1 - self.alpha) * self._get_last_hidden_state(student, ids, attention_mask, width)
        hidden = self._get_last_hidden_state(student, ids, attention_mask, width)
        if self.compact:
            hidden, target, mask = hidden[mask.bool()], target[mask.bool()], mask[mask.bool()]
        head = student.get_output_embeddings()
        return _chunked_divergence_loss(
            hidden,
            target,
            head.weight,
            head.weight,
            mask,
            self.beta,
            num_items_in_batch,
            head.bias,
            head.bias,
            temperature=self.temperature,
        )


class ObservedOneBase(Observed, OneBase):
    """A′, timed."""


class TrlOneBase(Trl):
    """A′."""

    def _load_student(self, folder: Path) -> Any:
        model = super()._load_student(folder)
        model.load_adapter(folder / "expert.lora", "expert")
        return model

    def _load_teacher(self, folder: Path) -> None:
        return None

    def _trainer(
        self,
        questions: Questions,
        micro_batch: int,
        alpha: float = 1.0,
        compact: bool = False,
        checkpointing: bool = False,
        max_grad_norm: float = MAX_NORM,
    ) -> "Observed":
        trainer = self._make(ObservedOneBase, questions, micro_batch, checkpointing, max_grad_norm)
        trainer.alpha, trainer.compact = alpha, compact
        return trainer


class Dense:
    """B: ExOPD with three models, their full logits, and autograd."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        self.student = PeftModel.from_pretrained(load_model(folder), folder / "student.lora", is_trainable=True)
        self.teacher, self.reference = load_merged(folder), load_model(folder)

    def step(self, recorded: Recorded, **options: Any) -> Seconds:
        return self._taken(recorded.padded, **options)

    def whole(self, questions: Questions, **options: Any) -> Seconds:
        with planned(self.student.get_base_model(), questions):
            return self._taken(lambda: self._answer(questions), **options)

    def gradient(self, recorded: Recorded, **options: Any) -> tuple[float, Gradient]:
        loss = self._accumulate(*recorded.padded(), **options)
        found = named(self.student.named_parameters())
        self.student.zero_grad()
        return loss, found

    @torch.no_grad()
    def _answer(self, questions: Questions) -> tuple[Tensor, Tensor, Tensor]:
        asked = self.tokenizer(questions.texts, return_tensors="pt", padding=True)
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": questions.limit}
        ids = self.student.generate(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], **options)  # (B, P + T)
        P = asked["input_ids"].shape[1]
        ends = (ids[:, P:] == self.tokenizer.eos_token_id).long()
        response_mask = (ends.cumsum(1) - ends) == 0
        return ids, torch.cat([asked["attention_mask"], response_mask.long()], 1), response_mask

    def _taken(self, answer: Callable[[], tuple[Tensor, Tensor, Tensor]], **options: Any) -> Seconds:
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        started = time.perf_counter()
        rollout = answer()
        answered = time.perf_counter()
        self._accumulate(*rollout, **options)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return {"rollout": answered - started, "scoring and update": time.perf_counter() - answered}

    def _accumulate(self, ids: Tensor, attention_mask: Tensor, response_mask: Tensor, alpha: float, micro_batch: int) -> float:
        width, num_tokens, total = response_mask.shape[1], response_mask.sum(), 0.0
        for start in range(0, len(ids), micro_batch):
            rows = slice(start, start + micro_batch)
            given = {"input_ids": ids[rows], "attention_mask": attention_mask[rows], "use_cache": False, "logits_to_keep": width + 1}
            with torch.no_grad():
                teacher = self.teacher(**given).logits[:, :-1].log_softmax(-1)  # (b, T, V)
                reference = self.reference(**given).logits[:, :-1].log_softmax(-1)
                log_q = (reference + alpha * (teacher - reference)).log_softmax(-1)
            log_p = self.student(**given).logits[:, :-1].log_softmax(-1)
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)  # (b, T)
            loss = (kl * response_mask[rows]).sum() / num_tokens
            loss.backward()
            total += loss.item()
        return total


def load_model(folder: Path, quantize: str = "none") -> Any:
    """The base, as gopd_merge loads it."""
    return load_base(Base(str(folder / "base"), str(folder / "base")), quantize, "cpu")[0]


def load_merged(folder: Path) -> Any:
    """The expert as a model of its own."""
    return PeftModel.from_pretrained(load_model(folder), folder / "expert.lora").merge_and_unload().eval().requires_grad_(False)


CONTENDERS: dict[str, Callable[[Path], Contender]] = {
    "ours": Ours,
    "A": Trl,
    "A′": TrlOneBase,
    "B": Dense,
}
CONTENDERS |= {f"ours, {count} experts": partial(Ours, experts=count) for count in (2, 8)}
CONTENDERS |= {"ours, NF4": partial(Ours, quantize="nf4"), "A′, NF4": partial(TrlOneBase, quantize="nf4")}
