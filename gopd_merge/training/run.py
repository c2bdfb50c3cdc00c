"""Making an expert, read from top to bottom: check, load one base, let trl's trainer move the adapter, keep the best, write it down."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gopd_merge import artefacts
from gopd_merge.disk import LOCK, remove, write_json
from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.checkpoint import Checkpoints
from gopd_merge.distill.rollout import row_seeds
from gopd_merge.errors import GopdError, InputError, Interrupted, VerificationError
from gopd_merge.experts.base import load_base
from gopd_merge.experts.intake import CONFIG, WEIGHTS, Expert, read_expert
from gopd_merge.experts.tensor_file import file_sha256
from gopd_merge.hub.expert_card import expert_card
from gopd_merge.machine import resolve_device
from gopd_merge.plan import check_output
from gopd_merge.report.training_progress import SilentTraining
from gopd_merge.run_folder import CHECKPOINTS, RUN, check_unfinished, working_folder
from gopd_merge.train_config import TrainConfig
from gopd_merge.training.course import BEST, METRICS, Course, Listener
from gopd_merge.training.examples import digest, write_prompts
from gopd_merge.training.inputs import TRAINING, TrainingInputs, read_training
from gopd_merge.training.planning import fitting
from gopd_merge.training.recipes import learning_rate, make_trainer, optimizer_of, reference_role
from gopd_merge.training.rewards import Rewards, constant, nothing_to_learn
from gopd_merge.training.scoring import ROWS, Validator, sampled
from gopd_merge.training.teacher import ANSWERS, taught
from gopd_merge.usage import Clock, peak_memory

SCHEMA = 1
SAMPLE = 32  # prompts whose answers are rewarded before anything is trained
TRAINER = "trainer"  # a folder that trl makes and leaves empty


@dataclass(frozen=True)
class TrainResult:
    """What a training made."""

    output: Path
    document: Mapping[str, Any]  # what --json prints


def train_expert(
    config: TrainConfig, listener: Listener | None = None, inputs: TrainingInputs | None = None, resume: bool = False
) -> TrainResult:
    """Train an adapter on the base and write it to `config.output`, with its prompts, card and manifest.

    With `resume` a run that was stopped goes on; where there is none, it begins.

    Raises:
        InputError: something given is refused; nothing was computed.
        GopdError: the run failed; what was computed is in OUTPUT.partial.
    """
    listener, clock = listener or SilentTraining(), Clock()
    check_output(config.output, config.overwrite, TRAINING)
    if not resume:
        check_unfinished(config.output, config.overwrite)
    inputs = inputs or read_training(config)
    settings = inputs.settings(config)
    inputs, notes = fitting(inputs, config)
    rewards = Rewards(config)
    environment = artefacts.environment(torch.device(resolve_device(config.device))) | {"trl": importlib.metadata.version("trl")}
    about = {"command": "train-expert", "config": inputs.pin(config).model_dump(mode="json"), "settings": settings}
    about |= {"environment": environment}
    try:
        listener.started(config, inputs)
        for note in notes:
            listener.note(note)
        with working_folder(config.output, config.overwrite, about, resume, listener.note, TRAINING) as folder:
            with clock.measure("load"):
                listener.phase("loading the base")
                backbone = load_student(config, inputs)
            inputs = taught(backbone, config, inputs, folder, clock, listener) if inputs.teacher else inputs
            course = run(backbone, config, inputs, rewards, folder, clock, listener)
            document = finish(backbone, config, inputs, rewards, course, folder, clock, about)
    finally:
        rewards.close()
    remove(config.output, [RUN, LOCK, TRAINER, *(() if config.keep_checkpoints else (CHECKPOINTS,))])
    return TrainResult(config.output, document)


def load_student(config: TrainConfig, inputs: TrainingInputs) -> Backbone:
    """The base, with a fresh student or the adapter to go on from; beside it, of seqkd, the teacher."""
    model, tokenizer = load_base(inputs.base, config.quantize, resolve_device(config.device))
    backbone = Backbone(model, tokenizer, [inputs.teacher] if inputs.teacher else [])
    if inputs.start:
        backbone.load_adapter(inputs.start.path, STUDENT)
    else:
        backbone.add_student(inputs.rank, inputs.targets, config.seed)
    backbone.check_head()
    return backbone


def run(
    backbone: Backbone, config: TrainConfig, inputs: TrainingInputs, rewards: Rewards, folder: Path, clock: Clock, listener: Listener
) -> Course:
    """Train to the last step, or to where it is no use to go on. A run that is stopped leaves a checkpoint of its last full step."""
    steps = inputs.steps(config)
    optimizers = optimizer_of(backbone, config, inputs.recipe, steps)
    validator = Validator(backbone, config, inputs, rewards, reference_role(config, inputs))
    checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint_every, config.checkpoint_minutes, config.keep_checkpoints)
    course = Course(backbone, config, steps, folder, inputs.base, optimizers, validator, rewards, checkpoints, clock, listener)
    checkpoint = checkpoints.newest(listener.note)
    if inputs.recipe == "rlvr" and checkpoint is None:
        with clock.measure("sample"):
            look_at_rewards(backbone, config, inputs, rewards, listener)
    first = min(checkpoint.step, steps - 1) if checkpoint else 0  # of a run that has only its last validation to do, none is taken
    trainer = make_trainer(backbone, config, inputs, optimizers, first, course.reward, course, str(folder / TRAINER))
    course.take_up(checkpoint)  # after the trainer was made: it keeps what the student began as, if that is its reference
    try:
        course.evaluate_if_due()
        if course.step < steps and not course.stopped:
            trainer.train()
    except torch.OutOfMemoryError as error:
        course.save()
        raise GopdError(
            f"step {course.step + 1}: memory did not last; a lower --micro-batch-size, --max-new-tokens or --batch-size takes less, "
            "and so does --activation-checkpointing"
        ) from error
    except (Interrupted, GopdError):
        course.save()
        raise
    finally:
        course.close()
    return course


def look_at_rewards(backbone: Backbone, config: TrainConfig, inputs: TrainingInputs, rewards: Rewards, listener: Listener) -> None:
    """Answers to a first sample of prompts must not all be worth the same. Raises InputError."""
    listener.phase("looking at the rewards of a first sample")
    examples = [example for example in inputs.splits["train"][:SAMPLE] for _ in range(config.generations)]
    seeds = row_seeds(config.seed, "sample", count=len(examples))
    found: list[float] = []
    for start in range(0, len(examples), ROWS):
        part = slice(start, start + ROWS)
        texts = sampled(backbone, STUDENT, [e.prompt for e in examples[part]], seeds[part], config)
        found += rewards.of(examples[part], texts)
    if (value := constant(found)) is not None:
        problem, remedy = nothing_to_learn(value, len(found))
        raise InputError(f"{', '.join(config.data)}: {problem}; {remedy}")


def finish(
    backbone: Backbone,
    config: TrainConfig,
    inputs: TrainingInputs,
    rewards: Rewards,
    course: Course,
    folder: Path,
    clock: Clock,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the best adapter with all that belongs to it, read it back; the manifest comes last. Raises VerificationError."""
    if course.best and course.best.step != course.step:
        backbone.load_student(course.best_folder)
    backbone.save_student(folder, inputs.base.name, inputs.base.commit)
    artefacts.verify_adapter(backbone, folder, [e.prompt for e in inputs.splits["train"][:4]])
    check_changed(config, inputs, folder)
    write_prompts(folder / "prompts", inputs.splits)
    document = {
        "schema": SCHEMA,
        "output": str(config.output),
        "domain": config.expert,
        "recipe": inputs.recipe,
        "steps": course.step,
        "stopped": course.stopped,
        "scores": [asdict(score) for score in course.scores],
        "best": asdict(course.best) if course.best else None,
        "examples": {name: len(found) for name, found in inputs.splits.items()},
        "dropped": dict(inputs.dropped),
        "reward_calls": rewards.calls,
        "reward_failures": dict(rewards.failures),
        "learning_rate": learning_rate(config, inputs.recipe, backbone.hidden_size),
        "student": {"rank": inputs.rank, "targets": list(inputs.targets)},
        "base": {"name": inputs.base.name, "commit": inputs.base.commit, "licence": inputs.base.licence, "quantization": config.quantize},
        "start": _described(inputs.start),
        "teacher": _described(inputs.teacher),
        "data_sha256": digest(inputs.data.splits),
        "datasets": list(inputs.data.datasets),
        "data_licences": dict(inputs.data.licences),
        "left_out": dict(inputs.data.left_out),
        "seconds": clock.rounded(),
        "peak_memory_bytes": peak_memory(backbone.device),
        "environment": about["environment"],
    }
    files = {name: file_sha256(folder / name) for name in (CONFIG, WEIGHTS)}
    described = document | {"config": about["config"], "settings": about["settings"], "files": files}
    (folder / "README.md").write_text(expert_card(described, config.output.name), encoding="utf-8")
    remove(folder, [ANSWERS, *(path.name for path in folder.glob(f"{BEST}*"))])
    write_json(folder / TRAINING, described)
    return document


def check_changed(config: TrainConfig, inputs: TrainingInputs, folder: Path) -> None:
    """Raises VerificationError for an adapter that no merge would take, or that is the one that it began as."""
    try:
        written = read_expert(config.expert, str(folder))
    except InputError as error:
        raise VerificationError(f"{error}: the training has made nothing that a merge could use; look at {METRICS}") from None
    if inputs.start and written.sha256 == inputs.start.sha256:
        raise VerificationError(f"{folder}: no step has changed the adapter of --start; look at the rewards in {METRICS}")


def _described(one: Expert | None) -> dict[str, Any] | None:
    return {"name": one.name, "commit": one.commit, "sha256": one.sha256, "licence": one.licence} if one else None
