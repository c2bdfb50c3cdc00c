"""Killed at any instant and taken up again, a merge ends with the same bytes as one that was never stopped."""

import random

import pytest


def test_killed_at_every_stage_it_ends_with_the_bytes_of_an_unbroken_run(start, unbroken, where, harness, tmp_path):
    options = (*harness.SHORT, "--quantize", "none")
    at = where(tmp_path / "merged.lora")
    hit = harness.break_again_and_again(start, at, ("step", "checkpoint", "evaluation"), random.Random(0), options)
    assert (hit["step"], hit["evaluation"]) == (1, 1)
    harness.assert_same(unbroken(*options), at.output)
    assert [path.name for path in tmp_path.glob("merged.lora*")] == ["merged.lora"]


def test_killed_at_nf4_as_well(start, unbroken, where, harness, tmp_path):
    options = (*harness.SHORT, "--no-eval")
    at = where(tmp_path / "merged.lora")
    hit = harness.break_again_and_again(start, at, ("step",), random.Random(1), options)
    assert hit["step"] == 1
    harness.assert_same(unbroken(*options), at.output)


@pytest.mark.parametrize("count", [2, 17, 40])
def test_killed_at_a_write_the_last_checkpoint_is_whole(start, unbroken, where, harness, tmp_path, count):
    """The process kills itself at this call of fsync: in run.json, in a first checkpoint, in a later one."""
    options = (*harness.SHORT, "--no-eval")
    at = where(tmp_path / "merged.lora")
    assert start("EXPERTS", *options, "--quiet", die_at=count).code == -9
    last = start("EXPERTS", *options, "--quiet", "--resume")
    assert last.code == 0, last.lines
    assert not any("damaged" in line for line in last.lines)
    harness.assert_same(unbroken(*options), at.output)
