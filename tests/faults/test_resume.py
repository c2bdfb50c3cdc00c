"""What a run that goes on takes, passes over and refuses; all on one loaded base, stopped by its listener."""

import json
import os
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file

from gopd_merge.cli import main
from gopd_merge.disk import LOCK, alone
from gopd_merge.errors import GopdError, InputError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def whole(merge_until, tmp_path):
    """The bytes of the adapter of a run that was never stopped."""
    merge_until(output=tmp_path / "whole.lora")
    return (tmp_path / "whole.lora" / WEIGHTS).read_bytes()


def saved(tmp_path):
    return sorted(path.name for path in (tmp_path / "out.lora.partial" / "checkpoints").iterdir())


def result(tmp_path):
    return (tmp_path / "out.lora" / WEIGHTS).read_bytes()


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


def test_a_run_that_is_stopped_between_two_checkpoints_loses_no_step(merge_until, whole, tmp_path):
    merge_until(stop=3)
    assert saved(tmp_path) == ["step-000002", "step-000003"]
    assert merge_until(resume=True) == ["going on after step 3"]
    assert result(tmp_path) == whole
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.lora"]


def test_stopped_again_and_again_it_ends_the_same(merge_until, whole, tmp_path):
    for step in (1, 2, 3, 4):
        merge_until(stop=step, resume=True)
    merge_until(resume=True)
    assert result(tmp_path) == whole


@pytest.mark.parametrize(
    "options",
    [
        {"adaptive": "run", "steps": 12, "alpha": 1.5, "checkpoint_every": 4},
        {"method": "alternate"},
        {"rotate": "step", "alpha_from": 1.0},
        {"balance": True, "start": "average"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_whatever_changes_from_step_to_step_is_put_back(merge_until, tmp_path, options):
    merge_until(output=tmp_path / "whole.lora", **options)
    merge_until(stop=7 if "steps" in options else 3, **options)
    merge_until(resume=True, **options)
    assert result(tmp_path) == (tmp_path / "whole.lora" / WEIGHTS).read_bytes()
    rows = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("out.lora", "whole.lora")]
    for first, second in zip(*rows, strict=True):
        assert {**first, "tokens_per_second": 0, "memory_bytes": 0} == {**second, "tokens_per_second": 0, "memory_bytes": 0}


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "file", "said"),
    [
        (cut, WEIGHTS, f"step 3: {WEIGHTS} is not what was written"),
        (flip, "optimizer.safetensors", "step 3: optimizer.safetensors is not what was written"),
        (flip, "metrics.jsonl", "step 3: metrics.jsonl is not what was written"),
        (lambda path: path.unlink(), "state.json", "step 3: state.json cannot be read, No such file or directory"),
        (lambda path: path.write_text("{"), "checkpoint.json", "step 3: checkpoint.json is not what was written"),
        (
            lambda path: path.write_text('{"schema": 1, "step": 2, "sha256": {}}'),
            "checkpoint.json",
            "step 3: checkpoint.json is of another",
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(merge_until, whole, tmp_path, damage, file, said):
    merge_until(stop=3)
    damage(tmp_path / "out.lora.partial" / "checkpoints" / "step-000003" / file)
    first, second = merge_until(resume=True)
    assert first.startswith(f"passed over damaged checkpoints ({said}")
    assert first.endswith("going on from step 2")
    assert second == "going on after step 2"
    assert result(tmp_path) == whole


def test_where_all_are_damaged_nothing_is_begun_and_nothing_changes(merge_until, tmp_path):
    merge_until(stop=3)
    for folder in (tmp_path / "out.lora.partial" / "checkpoints").iterdir():
        cut(folder / WEIGHTS)
    before = content(tmp_path / "out.lora.partial")
    with pytest.raises(GopdError, match=r"no checkpoint is whole .step 3: .* step 2: .*; copy them again, or give --overwrite"):
        merge_until(resume=True)
    assert content(tmp_path / "out.lora.partial") == before


def test_a_checkpoint_of_another_version_is_neither_read_nor_passed_over(merge_until, tmp_path):
    merge_until(stop=3)
    manifest = tmp_path / "out.lora.partial" / "checkpoints" / "step-000003" / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 2}))
    before = content(tmp_path / "out.lora.partial")
    with pytest.raises(GopdError, match=r"another version of gopd-merge .checkpoints of form 2, this one reads 1.; go on with that one"):
        merge_until(resume=True)
    assert content(tmp_path / "out.lora.partial") == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed 0 (now 1)"),
        ({"alpha": 2.0}, "alpha 1.25 (now 2.0)"),
        ({"steps": 6, "learning_rate": 0.001}, "steps 4 (now 6), learning_rate None (now 0.001)"),
    ],
)
def test_options_that_matter_must_be_the_same_and_the_difference_is_named(merge_until, tmp_path, options, named):
    merge_until(stop=3)
    before = content(tmp_path / "out.lora.partial")
    with pytest.raises(InputError) as error:
        merge_until(resume=True, **options)
    assert f"out.lora.partial: was begun with {named}; go on with what it was begun with" in str(error.value)
    assert content(tmp_path / "out.lora.partial") == before


def test_inputs_must_be_the_same_whatever_they_are_called(merge_until, adapters, tmp_path):
    experts = {d: str(shutil.copytree(adapters / f"{d}.lora", tmp_path / "copies" / f"{d}.lora")) for d in ("math", "code")}
    base = {"base": str(adapters / "tiny-base")}
    merge_until(stop=3, experts=experts, **base)
    merge_until(stop=4, resume=True, experts={d: str(adapters / f"{d}.lora") for d in ("math", "code")})  # the same adapters elsewhere
    with (tmp_path / "copies" / "math.lora" / "prompts" / "train.jsonl").open("a") as file:
        file.write('{"prompt": "1 + 1"}\n')
    settings = tmp_path / "copies" / "code.lora" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 1}))
    with pytest.raises(InputError) as error:
        merge_until(resume=True, experts=experts, **base)
    assert "settings of expert code" in str(error.value)
    assert "prompts of math" in str(error.value)
    assert "expert math" not in str(error.value)


def test_options_that_change_no_adapter_may_be_others(merge_until, whole, tmp_path):
    merge_until(stop=1)
    merge_until(stop=3, resume=True, checkpoint_every=1, checkpoint_minutes=0, remote_patience=1)
    assert json.loads((tmp_path / "out.lora.partial" / "run.json").read_text())["config"]["checkpoint_every"] == 1  # so does `resume`
    assert merge_until(resume=True, memory="4GB", keep_checkpoints=True) == ["going on after step 3"]
    assert result(tmp_path) == whole


def test_a_fresh_run_does_not_throw_away_what_was_computed(merge_until, whole, tmp_path):
    merge_until(stop=3)
    with pytest.raises(InputError, match=r"was stopped at step 3; go on with gopd-merge resume .*out.lora, or give --overwrite"):
        merge_until()
    assert saved(tmp_path) == ["step-000002", "step-000003"]
    assert merge_until(overwrite=True) == []  # it began anew
    assert result(tmp_path) == whole


def test_a_run_that_computed_nothing_is_in_nobodys_way(merge_until, whole, tmp_path):
    merge_until(stop=1)
    shutil.rmtree(tmp_path / "out.lora.partial" / "checkpoints")  # as if it had been killed in its first step
    assert merge_until() == []
    assert result(tmp_path) == whole


def test_what_cannot_go_on_is_kept_and_said_to_be_so(merge_until, tmp_path):
    (tmp_path / "out.lora.partial").mkdir()
    (tmp_path / "out.lora.partial" / WEIGHTS).write_bytes(b"hours of work of an older version")
    for resume in (False, True):
        with pytest.raises(InputError, match="holds a student of a run that cannot go on; move it away, or give --overwrite"):
            merge_until(resume=resume)
    assert (tmp_path / "out.lora.partial" / WEIGHTS).is_file()


def test_checkpoints_are_adapters_and_stay_where_that_is_asked_for(merge_until, both_loaded, tmp_path):
    merge_until(keep_checkpoints=True, checkpoint_every=1)
    kept = tmp_path / "out.lora" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == [f"step-00000{step}" for step in (1, 2, 3, 4)]
    assert sorted(path.name for path in (tmp_path / "out.lora").iterdir()) == [
        "README.md", "adapter_config.json", WEIGHTS, "checkpoints", "merge.json", "metrics.jsonl",
    ]  # fmt: skip
    last, first = (load_file(kept / f"step-00000{step}" / WEIGHTS) for step in (4, 1))
    merged = load_file(tmp_path / "out.lora" / WEIGHTS)
    assert all(torch.equal(last[name], merged[name]) for name in merged)
    assert any(not torch.equal(first[name], merged[name]) for name in merged)
    both_loaded.load_adapter(kept / "step-000001", "readback")  # plain PEFT, with every tensor in its place
    both_loaded.remove("readback")


def test_an_end_that_was_cut_off_is_brought_to_an_end(merge_until, tmp_path, monkeypatch, capsys):
    """Killed after the rename and before the rest is tidied up: the result is whole, and going on does no work."""
    from gopd_merge import run_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "tidy", lambda output, keep: None)
        merge_until()
    assert (tmp_path / "out.lora" / "checkpoints").is_dir()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["resume", "out.lora"]) == 0
        assert capsys.readouterr().out == "out.lora is complete, nothing is left to do\n"
        assert not {"checkpoints", "run.json", LOCK} & {path.name for path in (tmp_path / "out.lora").iterdir()}


def test_there_must_be_something_to_go_on_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "out.lora"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "gopd-merge: out.lora: no run was stopped there; begin one with gopd-merge --experts … --output out.lora"


def test_a_folder_in_which_another_run_works_is_left_alone(merge_until, tmp_path):
    with alone(tmp_path / "out.lora.partial"):
        with pytest.raises(InputError) as error:
            merge_until(overwrite=True)
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert str(error.value) == f"{tmp_path / 'out.lora.partial'}: {who} is writing there; wait for it, or choose another --output"


def test_the_lock_of_a_dead_run_is_no_lock(merge_until, whole, tmp_path):
    (tmp_path / "out.lora.partial").mkdir()
    (tmp_path / "out.lora.partial" / LOCK).write_text(f"{os.getpid()}\nanother-host\n")
    merge_until()
    assert result(tmp_path) == whole
