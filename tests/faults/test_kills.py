"""Killed at any instant and taken up again, a merge ends with the same bytes as one that was never stopped."""

import json
import random
from collections import Counter

import pytest

WEIGHTS = "adapter_model.safetensors"
SHORT = ("--steps", "4", "--batch-size", "4", "--max-new-tokens", "8", "--eval-prompts", "8", "--checkpoint-every", "1")
# By stage: when it has come, and the longest time after that (seconds) in which the kill comes.
STAGES = {
    "load": (lambda at, steps: (at.partial / "run.json").exists(), 1.0),
    "step": (lambda at, steps: at.steps > steps, 0.3),
    "checkpoint": (lambda at, steps: at.is_writing_checkpoint(), 0.02),
    "save": (lambda at, steps: at.is_saving(), 0.05),
    "evaluation": (lambda at, steps: at.answers > 0, 0.5),
    "end": (lambda at, steps: at.is_ending(), 0.01),
}


def rows(folder):
    """What is logged of each step, but what depends on the machine's mood."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("tokens_per_second", "memory_bytes")} for row in found]


def scores(folder):
    return [(row["method"], row["domain"], row["score"]) for row in json.loads((folder / "merge.json").read_text())["results"]]


def break_again_and_again(start, at, stages, rng, options):
    """One run, killed at each of these stages and taken up after each; the stages at which a kill came, and not too late."""
    hit = Counter()
    command = ("EXPERTS", *options)
    for stage in stages:
        come, longest = STAGES[stage]
        steps = at.steps
        run = start(*command, "--quiet", "--resume")
        hit[stage] += run.send_when(lambda: come(at, steps), after=rng.uniform(0, longest))  # noqa: B023
        assert run.code in (-9, 0), run.lines
        if run.code == 0:
            break
    last = start("resume", at.output, "--quiet")
    assert last.code == 0, last.lines
    return hit


def assert_same(whole, broken):
    assert (broken / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert rows(broken) == rows(whole)
    assert scores(broken) == scores(whole)
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in (broken, whole)]
    assert names[0] == names[1]


def test_killed_at_every_stage_it_ends_with_the_bytes_of_an_unbroken_run(start, unbroken, where, tmp_path):
    options = (*SHORT, "--quantize", "none")
    at = where(tmp_path / "merged.lora")
    hit = break_again_and_again(start, at, ("load", "step", "checkpoint", "evaluation"), random.Random(0), options)
    assert hit["step"] and hit["evaluation"]  # noqa: PT018
    assert_same(unbroken(*options), at.output)
    assert [path.name for path in tmp_path.glob("merged.lora*")] == ["merged.lora"]


def test_killed_at_nf4_as_well(start, unbroken, where, tmp_path):
    options = (*SHORT, "--no-eval")
    at = where(tmp_path / "merged.lora")
    hit = break_again_and_again(start, at, ("step", "save"), random.Random(1), options)
    assert hit["step"]
    assert_same(unbroken(*options), at.output)


@pytest.mark.parametrize("count", [2, 9, 17, 30])
def test_killed_at_a_write_the_last_checkpoint_is_whole(start, unbroken, where, tmp_path, count):
    """The process kills itself at this call of fsync: in run.json, in a first checkpoint, in a second one, near the end."""
    options = (*SHORT, "--quantize", "none", "--no-eval")
    at = where(tmp_path / "merged.lora")
    assert start("EXPERTS", *options, "--quiet", die_at=count).code == -9
    last = start("EXPERTS", *options, "--quiet", "--resume")
    assert last.code == 0, last.lines
    assert not any("damaged" in line for line in last.lines)
    assert_same(unbroken(*options), at.output)
