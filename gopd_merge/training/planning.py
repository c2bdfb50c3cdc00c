"""What a training will do, from the data and the tokenizer alone: the base is not loaded."""

from typing import Any

from gopd_merge.distill.rollout import prompt_lengths
from gopd_merge.experts.base import context_length, load_tokenizer
from gopd_merge.train_config import TrainConfig
from gopd_merge.training.inputs import TrainingInputs, without_long

NO_TEMPLATE = "the base has no chat template: prompts are plain text, as they will be in a merge"


def plan(config: TrainConfig, inputs: TrainingInputs) -> dict[str, Any]:
    """The document of --dry-run. Raises InputError for what only the tokenizer can tell."""
    inputs, notes = fitting(inputs, config)
    return {
        "schema": 1,
        "output": str(config.output),
        "domain": config.expert,
        "recipe": inputs.recipe,
        "base": {"name": inputs.base.name, "commit": inputs.base.commit, "quantization": config.quantize},
        "start": inputs.start.name if inputs.start else None,
        "teacher": inputs.teacher.name if inputs.teacher else None,
        "student": {"rank": inputs.rank, "targets": list(inputs.targets)},
        "examples": {name: len(found) for name, found in inputs.splits.items()},
        "dropped": dict(inputs.dropped),
        "steps": inputs.steps(config),
        "batch_size": config.batch_size,
        "generations": config.generations if inputs.recipe == "rlvr" else None,
        "notes": notes,
    }


def fitting(inputs: TrainingInputs, config: TrainConfig) -> tuple[TrainingInputs, list[str]]:
    """Without the examples that are too long for the base, and what the user should know. Raises InputError where all are too long."""
    tokenizer = load_tokenizer(inputs.base)
    answers = inputs.recipe in ("rlvr", "seqkd")
    lengths = {}
    for name, examples in inputs.splits.items():
        prompts = prompt_lengths(tokenizer, [e.prompt for e in examples]) if examples else []
        texts = [[text for text in (e.response, e.chosen, e.rejected) if text] for e in examples]
        longest = [max((1 + len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in given), default=0) for given in texts]
        lengths[name] = [p + (config.max_new_tokens if answers else r) for p, r in zip(prompts, longest, strict=True)]
    found = without_long(inputs, lengths, context_length(inputs.base))
    notes = [] if tokenizer.chat_template else [NO_TEMPLATE]
    notes += [f"{count:,} row(s) of the data are left out: each {why}" for why, count in inputs.data.left_out.items()]
    if count := sum(found.dropped.values()):
        notes.append(f"{count:,} example(s) are longer than the context of {inputs.base.name} and are left out")
    if any(prompt_responses := [e.response for e in inputs.splits["train"]]) and inputs.recipe == "rlvr":
        notes.append(f"{sum(map(bool, prompt_responses)):,} examples have a response, which rlvr does not read; --recipe sft learns them")
    return found, notes
