"""Trackers get the lines of metrics.jsonl, each once, also of a run that is stopped and goes on; read back with their own readers."""

import importlib.util
import json
import os
import struct

import pytest
import trackio
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gopd_merge import MergeConfig, tracking
from gopd_merge.cli import main
from gopd_merge.disk import read_json_lines
from gopd_merge.errors import GopdError
from gopd_merge.tracking import flattened

QUANTITIES = ("kl_to_target", "grad_norm", "learning_rate", "math/reward", "code/kl_to_target")
SECRET = "0123456789" * 4


@pytest.fixture
def killed(merge_until, tmp_path):
    """killed(**options): a run that had logged three steps and whose last checkpoint is of the second."""

    def start(**options):
        merge_until(stop=3, **options)
        for path in (tmp_path / "out.lora.partial" / "checkpoints" / "step-000003").iterdir():
            path.unlink()
        (tmp_path / "out.lora.partial" / "checkpoints" / "step-000003").rmdir()

    return start


def from_tensorboard(folder):
    """By quantity the steps and the values of the one run that is there."""
    (events,) = folder.glob("runs/*")
    found = EventAccumulator(str(events)).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def wandb_records(path):
    """The records of a file of W&B: 7 bytes, then blocks as LevelDB's log has them, of Protocol Buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def from_wandb(folder):
    """The same, over the files of all starts of one run."""
    found, ids = {}, set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                step = values.pop("_step", record.history.step.num)
                for name, value in values.items():
                    found.setdefault(name, []).append((step, value))
    assert len(ids) == 1
    return found


def from_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("gopd-merge")
    found = {}
    for row in SQLiteStorage.get_logs("gopd-merge", name):
        for key, value in row.items():
            found.setdefault(key, []).append((row["step"], value))
    return found


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    """Each tracker without a network, in this folder; by name how it is read."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for module in ("trackio.utils", "trackio.sqlite_storage"):  # they read it when they are imported
        __import__(module)
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    return {"tensorboard": from_tensorboard, "wandb": from_wandb, "trackio": from_trackio}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_run_that_is_killed_and_goes_on_is_one_curve_of_the_steps_in_metrics_jsonl(name, trackers, killed, merge_until, tmp_path, capsys):
    killed(track=name)
    notes = merge_until(track=name, resume=True)
    assert any(f"{name} has steps 3 to 3 from before the run was stopped; they are not logged twice" in note for note in notes)
    rows = [flattened(row) for row in read_json_lines(tmp_path / "out.lora" / "metrics.jsonl")]
    found = trackers[name](tmp_path)
    for quantity in QUANTITIES:
        steps, values = zip(*found[quantity], strict=True)
        assert steps == (1, 2, 3, 4)
        assert values == pytest.approx([row[quantity] for row in rows], rel=1e-5)
    assert capsys.readouterr().out == ""
    assert name != "trackio" or trackio.context_vars.current_run.get() is None  # or it would print at the end of the program
    assert not (tmp_path / "out.lora" / "tracking.json").exists()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_tracker_that_a_run_gets_later_has_all_of_it(trackers, merge_until, tmp_path):
    merge_until(stop=2)
    notes = merge_until(track="tensorboard", resume=True)
    assert [step for step, _ in from_tensorboard(tmp_path)["grad_norm"]] == [1, 2, 3, 4]
    assert not any("logged twice" in note for note in notes)


def test_a_tracker_has_the_options_of_the_run(merge_until, tmp_path):
    merge_until(track="tensorboard", seed=7)
    (stored,) = tmp_path.glob("runs/*/*/hparams.yml")
    options = yaml.safe_load(stored.read_text())
    assert (options["seed"], options["track"], options["alpha"]) == (7, "tensorboard", 1.25)
    assert set(options) == set(MergeConfig.model_fields)


def test_a_tracker_that_fails_is_said_once_and_the_merge_goes_on(merge_until, tmp_path, monkeypatch):
    class Failing:
        def log(self, values, step):
            raise ConnectionError("no route\nto host")

        def finish(self): ...

    monkeypatch.setattr(tracking, "_started", lambda *_: Failing())
    notes = merge_until(track="wandb")
    assert [note for note in notes if "wandb" in note] == ["wandb: no route to host; the run is not tracked from step 1 on"]
    assert len(read_json_lines(tmp_path / "out.lora" / "metrics.jsonl")) == 4


def test_a_tracker_that_cannot_begin_ends_the_run_in_one_line(merge_until, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(GopdError, match=r"--track wandb: api_key not configured .* leave --track out"):
        merge_until(track="wandb")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_loads(name, adapters, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *rest: None if module == name else find(module, *rest))
    words = ["--experts", str(adapters / "math.lora"), "--output", str(tmp_path / "m.lora"), "--track", name]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"pip install {name}" in line
    assert os.listdir(tmp_path) == []


def test_lines_become_names_and_numbers():
    row = {"step": 3, "kl": 0.5, "norm": None, "domains": {"math": {"reward": 1.0, "capped": None}}, "forgetting": {"math": 0.25}}
    assert flattened(row) == {"kl": 0.5, "math/reward": 1.0, "forgetting/math": 0.25}
