"""The long versions, by `make soak`: fifty kills, every write that can fail, two hundred runs in a row, a thousand steps.

Their counts go to eval/results/soak.json.
"""

import os
import random
import tempfile
import threading
from collections import Counter
from functools import partial

import numpy as np
import psutil
import pytest
from scipy.stats import linregress

from gopd_merge import MergeConfig, merge, pipeline
from gopd_merge.casting import load_backbone
from gopd_merge.errors import Interrupted
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent

SEED = 7
KILLS, RUNS, STEPS, WARM = 50, 200, 1000, 200


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_fifty_kills(start, unbroken, where, harness, tmp_path, record, quantize):
    """25 at each precision, the stage drawn anew each time; a run that got to its end is followed by another."""
    rng, hit, runs = random.Random(f"{SEED} {quantize}"), Counter(), 0
    options = (*harness.SHORT, "--quantize", quantize)
    while hit.total() < KILLS // 2:
        stages = rng.choices(list(harness.STAGES), k=8)
        at = where(tmp_path / f"{runs}" / "merged.lora")
        at.output.parent.mkdir()
        hit += harness.break_again_and_again(partial(start, cwd=at.output.parent), at, stages, rng, options)
        harness.assert_same(unbroken(*options), at.output)
        runs += 1
    record(f"kills_{quantize}", {"kills": hit.total(), "by_stage": dict(sorted(hit.items())), "runs": runs, "same_bytes": runs})


@pytest.mark.parametrize("stage", ["load", "step", "checkpoint", "save", "evaluation", "end"])
def test_the_command_as_a_user_starts_it(command, unbroken, where, harness, tmp_path, record, stage):
    """The same with an interpreter of its own for each run."""
    options = (*harness.SHORT, "--quantize", "none")
    at = where(tmp_path / "merged.lora")
    hit = harness.break_again_and_again(command, at, [stage], random.Random(f"{SEED} {stage}"), options)
    harness.assert_same(unbroken(*options), at.output)
    record("kills_of_the_command", {stage: hit.total()}, add=True)


def test_every_write_that_can_fail(harness, small_run, tmp_path, record):
    with harness.full_from(10**9) as made:
        small_run(tmp_path / "whole.lora")
    whole = (tmp_path / "whole.lora" / "adapter_model.safetensors").read_bytes()
    for number in range(1, len(made) + 1):
        harness.check_failing_write(small_run, tmp_path / f"{number}.lora", number, whole)
    record("failing_writes", {"writes": len(made), "went_on_to_the_same_bytes": len(made)})


class StopsAfter(Silent):
    def __init__(self, step=None):
        self.at = step

    def step(self, step, steps, metrics):
        if step == self.at:
            raise Interrupted("stopped", 15)


def held():
    """What a process can leak, by name."""
    process = psutil.Process()
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "processes": len(process.children(recursive=True)),
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
        "temporary": len(os.listdir(tempfile.gettempdir())),
    }


def test_two_hundred_runs_leave_nothing_behind(adapters, tmp_path, record, monkeypatch):
    """Every second one is stopped after a step drawn at random and taken up again; all are measured too."""
    monkeypatch.setattr(pipeline, "look_ahead", lambda *_: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rng, found, stopped = random.Random(SEED), [], 0
    config = MergeConfig(
        experts={d: str(adapters / f"{d}.lora") for d in ("math", "code")}, output=tmp_path / "merged.lora", overwrite=True,
        steps=2, batch_size=2, max_new_tokens=4, eval_prompts=2, checkpoint_every=1, quantize="none",
    )  # fmt: skip
    for number in range(RUNS):
        if number % 2:
            with pytest.raises(Interrupted):
                merge(config, StopsAfter(rng.randint(1, 2)))
            stopped += 1
        merge(config, resume=bool(number % 2))
        found.append(held() | {"files_of_the_run": len(list(tmp_path.rglob("*")))})
    first, last = found[9], found[-1]
    record("runs", {"runs": RUNS, "stopped_and_taken_up": stopped, "after_10": first, "after_all": last})
    assert first == last


def test_the_memory_of_a_thousand_steps_does_not_grow(adapters, tmp_path, record):
    sizes = {"steps": STEPS, "batch_size": 2, "max_new_tokens": 4, "quantize": "none", "eval": False, "output": tmp_path / "merged.lora"}
    config = MergeConfig(experts={"math": str(adapters / "math.lora")}, **sizes)
    inputs, process, resident = read_inputs(config), psutil.Process(), []

    class Weighs(Silent):
        def step(self, step, steps, metrics):
            resident.append(process.memory_info().rss)

    merge(config, Weighs(), inputs, load_backbone(config, inputs))
    blocks = np.array(resident[WARM:]).reshape(-1, 40).mean(1)  # neighbours are alike: means of 40 are the observations
    fit = linregress(40 * np.arange(len(blocks)), blocks)
    grown = fit.slope * (STEPS - WARM)
    record(
        "memory",
        {
            "steps": STEPS,
            "first_left_out": WARM,
            "bytes_per_step": round(fit.slope, 1),
            "standard_error": round(float(np.nan_to_num(fit.stderr)), 1),  # scipy has none for a line that is exactly flat
            "bytes_at_the_end": resident[-1],
            "share_grown": round(grown / blocks.mean(), 5),
        },
    )
    assert abs(grown) < 0.005 * blocks.mean()
