"""A training that is stopped goes on to the same bytes, by the same words and exit codes as a merge."""

import hashlib
import json
import os
import signal

import pytest

from gopd_merge.cli import main
from gopd_merge.disk import partial_of
from gopd_merge.errors import InputError, Interrupted
from gopd_merge.report.training_progress import SilentTraining

OPTIONS = {"sft": {"recipe": "sft", "learning_rate": 1e-3}, "rlvr": {"reward_regex": "[0-4]$"}}
RUN = {"steps": 3, "checkpoint_every": 1, "eval_every": 2, "max_new_tokens": 12}


class StopsAfter(SilentTraining):
    """A signal while a step is drawn."""

    def __init__(self, step):
        self._step = step

    def step(self, step, steps, metrics):
        if step == self._step:
            raise Interrupted("stopped", signal.SIGINT)


def sha256(folder):
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=["sft", "rlvr"])
def two(request, train, sums, tmp_path_factory):
    """A run that was never stopped, and one that was stopped after two steps, between a checkpoint and a validation, and went on."""
    folder, options = tmp_path_factory.mktemp(request.param), OPTIONS[request.param] | RUN
    whole = train(folder / "whole.lora", sums, **options)
    with pytest.raises(Interrupted):
        train(folder / "stopped.lora", sums, listener=StopsAfter(2), **options)
    return whole, train(folder / "stopped.lora", sums, resume=True, **options)


def test_a_run_that_was_stopped_comes_to_the_same_bytes(two, manifest, metrics):
    whole, resumed = two
    assert sha256(whole) == sha256(resumed)
    assert manifest(whole)["scores"] == manifest(resumed)["scores"]
    timeless = [[{k: v for k, v in row.items() if k not in ("seconds", "memory_bytes")} for row in metrics(output)] for output in two]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in timeless[0]] == [1, 2, 3]


def test_another_seed_comes_to_other_bytes(two, train, sums, tmp_path):
    if "0.0" in str(two):
        return
    whole, _ = two
    options = OPTIONS["sft"] | RUN
    if json.loads((whole / "training.json").read_text())["recipe"] == "sft":
        assert sha256(train(tmp_path / "other.lora", sums, seed=1, **options)) != sha256(whole)


def test_what_is_there_is_not_thrown_away(sums, train, tmp_path, config):
    options = OPTIONS["sft"] | RUN
    with pytest.raises(Interrupted):
        train(tmp_path / "a.lora", sums, listener=StopsAfter(1), **options)
    with pytest.raises(
        InputError, match=r"holds a run that was stopped at step 1; go on with gopd-merge resume .*a\.lora, or give --overwrite"
    ):
        train(tmp_path / "a.lora", sums, **options)
    with pytest.raises(InputError, match=r"was begun with learning_rate 0.001 \(now 0.002\)"):
        train(tmp_path / "a.lora", sums, resume=True, **options | {"learning_rate": 2e-3})


def test_the_command_says_how_to_go_on_resume_does_and_a_finished_one_is_kept(sums, tmp_path, capsys, monkeypatch):
    """With a real signal, sent while the second step is under way."""
    from gopd_merge.report import training_progress

    output = tmp_path / "b.lora"
    monkeypatch.setattr(
        training_progress.SilentTraining, "step", lambda self, step, steps, row: step == 1 and os.kill(os.getpid(), signal.SIGTERM)
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    words = ["train-expert", "--base", "adapters/tiny-base", "--data", sums, "--recipe", "sft", "--output", str(output), "--quiet"]
    words += ["--steps", "2", "--batch-size", "4", "--eval-prompts", "4", "--max-new-tokens", "8"]
    try:
        assert main(words) == 143
        assert capsys.readouterr().err == f"gopd-merge: stopped at step 1; everything is saved. Go on with: gopd-merge resume {output}\n"
        assert partial_of(output).is_dir()
        monkeypatch.undo()
        assert main(["resume", str(output), "--quiet"]) == 0
        assert "b.lora written and verified" in capsys.readouterr().out
        assert main(words) == 2
        assert "exists; add --overwrite to replace it, or choose another --output" in capsys.readouterr().err
        assert main([*words, "--resume"]) == 0
        assert capsys.readouterr().out == f"{output} is complete, nothing is left to do\n"
        assert main(["resume", str(output)]) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
