"""SeqKD: the teacher, an adapter on the same base, answers every prompt once; its answers are what the student learns."""

from dataclasses import replace
from pathlib import Path

from gopd_merge.disk import append_json_line, read_json_lines, write_json_lines
from gopd_merge.distill.backbone import Backbone, expert
from gopd_merge.distill.rollout import answers, generate, row_seeds
from gopd_merge.errors import GopdError
from gopd_merge.train_config import TrainConfig
from gopd_merge.training.course import Listener
from gopd_merge.training.inputs import TrainingInputs
from gopd_merge.training.reading import Example
from gopd_merge.usage import Clock

ANSWERS = "teacher.jsonl"  # a line an answer, so that a run that is stopped asks nothing twice
ROWS = 64  # answers sampled at once


def taught(
    backbone: Backbone, config: TrainConfig, inputs: TrainingInputs, folder: Path, clock: Clock, listener: Listener
) -> TrainingInputs:
    """The examples with the teacher's answers as responses; then the teacher is put away. An answer that the limit cut is left out.

    Raises GopdError where it finishes none.
    """
    assert inputs.teacher is not None
    role = expert(inputs.teacher.domain)
    asked = [(name, example) for name in ("train", "validation") for example in inputs.splits[name]]
    path = folder / ANSWERS
    known = read_json_lines(path)
    known = known if len(known) == len(asked) else known[: len(known) // ROWS * ROWS]  # a batch that was cut off is asked again
    write_json_lines(path, known)
    seeds = row_seeds(config.seed, "teacher", count=len(asked))
    with clock.measure("teacher"):
        for first in range(len(known), len(asked), ROWS):
            listener.evaluating(first, len(asked), "the teacher's answers")
            prompts = [example.prompt for _, example in asked[first : first + ROWS]]
            given = seeds[first : first + ROWS]
            rollout = generate(backbone, role, prompts, ("",) * len(prompts), config.max_new_tokens, given, config.temperature)
            found = answers(backbone, rollout)
            for text, capped in zip(found.texts, found.capped, strict=True):
                append_json_line(path, {"text": text, "capped": capped})
    known = read_json_lines(path)
    backbone.remove(role)
    whole: dict[str, list[Example]] = {"train": [], "validation": []}
    for (name, example), answer in zip(asked, known, strict=True):
        if not answer["capped"]:
            whole[name].append(example.model_copy(update={"response": answer["text"]}))
    if not whole["train"]:
        raise GopdError(
            f"{inputs.teacher.name}: none of its {len(asked)} answers ends within {config.max_new_tokens} tokens; "
            "give more --max-new-tokens"
        )
    if cut := len(asked) - sum(map(len, whole.values())):
        listener.note(f"{cut} of {len(asked)} answers of the teacher did not end within {config.max_new_tokens} tokens and are left out")
    return replace(inputs, splits={**inputs.splits, **{name: tuple(found) for name, found in whole.items()}})
