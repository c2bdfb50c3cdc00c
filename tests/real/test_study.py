"""The study on a real model at its smallest, on the embedded base: every stage works, and what is done is not done again."""

import importlib
import json
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def module(name):
    """Scripts import their neighbours by name, as Python does for the folder of the script that it runs."""
    sys.path.insert(0, str(ROOT / "eval" / "real"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "eval" / "real"))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study(*flags): the command, with one of the trained methods and one static merge; its exit code."""
    merges, measuring, study = module("merges"), module("measuring"), module("study")
    for one in (merges, measuring):
        monkeypatch.setattr(one, "METHODS", {"exopd-1.25": merges.METHODS["exopd-1.25"]})
        monkeypatch.setattr(one, "LONGER_RUNS", {"exopd-longer-from-base": ("exopd-1.25", "none")})
    monkeypatch.setattr(measuring, "STATIC_RIVALS", ("average",))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    monkeypatch.chdir(tmp_path)
    fixed = ["--work", "work", "--size", "smoke", "--base", "adapters/tiny-base", "--generated-only", "--output", "out.json"]
    yield lambda *flags: study.main(study.arguments([*fixed, *flags]))
    for number, known in before.items():
        signal.signal(number, known)


@pytest.mark.slow
def test_the_smallest_study_goes_through_every_stage_and_is_then_complete(study, tmp_path, capsys):
    work = tmp_path / "work"
    assert study("--stage", "data", "experts") == 0
    assert (work / "experts" / "math.lora" / "training.json").is_file()
    assert not (tmp_path / "out.json").exists()
    assert study() == 0
    document = json.loads((tmp_path / "out.json").read_text())
    methods = {(row["method"], row["alpha"]) for row in document["results"]}
    assert methods == {("base", None), ("expert:math", None), ("expert:code", None), ("average", None), ("exopd", 1.25)}
    assert document["study"]["learning_rates"] == {"exopd-1.25": 0.001}
    assert str(tmp_path) not in json.dumps(document)  # what is committed names no place
    longer = json.loads((tmp_path / "out_longer.json").read_text())
    assert methods == {(row["method"], row["alpha"]) for row in longer["results"]}
    manifest = json.loads((work / "merges" / "exopd-longer-from-base.lora" / "merge.json").read_text())
    assert (manifest["config"]["steps"], manifest["config"]["start"]) == (4, "none")
    timed = (work / "times.jsonl").read_text()
    capsys.readouterr()
    assert study() == 0
    assert capsys.readouterr().out.endswith("complete\n")
    assert (work / "times.jsonl").read_text() == timed


def test_a_folder_with_a_study_of_another_size_is_refused(study, tmp_path, capsys):
    assert study("--plan") == 0
    assert "left:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds a study with size smoke, and full is asked for"):
        study("--plan", "--size", "full")


def test_every_method_has_the_same_budget_and_the_same_rates(tmp_path):
    """But for what makes it that method."""
    merges, sizes, experts = module("merges"), module("sizes").SIZES["small"], module("experts")
    made = merges.Merges(tmp_path, sizes, experts.Experts(tmp_path, sizes, "base"))
    configs = [made.config(tmp_path / "out", ("math", "code"), 0, 1e-3, options) for options in merges.METHODS.values()]
    kept = {"alpha", "method", "adaptive"}
    dumped = [{name: value for name, value in config.model_dump().items() if name not in kept} for config in configs]
    assert all(one == dumped[0] for one in dumped)
    assert len({(c.alpha, c.method, c.adaptive) for c in configs}) == len(merges.METHODS) == 6
    searched = [piece.name for piece in made.pieces() if piece.stage == "search" and not piece.name.endswith("validated")]
    assert len(searched) == len(merges.METHODS) * len(sizes.rates)
    assert len({piece.name for piece in made.pieces()}) == len(made.pieces())


def test_the_rate_that_is_chosen_is_the_best_on_validation_and_the_lower_of_equals(tmp_path):
    merges, sizes, experts = module("merges"), module("sizes").SIZES["full"], module("experts")
    made = merges.Merges(tmp_path, sizes, experts.Experts(tmp_path, sizes, "base"))
    (tmp_path / "search").mkdir()
    for rate, mean in zip(sizes.rates, (0.2, 0.5, 0.5, 0.3), strict=True):
        made.score_file("opd", rate).write_text(json.dumps({"mean": mean}))
    assert made.rate("opd") == sizes.rates[1]
    assert made.final("opd", 0) == made.searched("opd", sizes.rates[1])
    assert made.final("opd", 1).name == "opd-seed-1.lora"
    with pytest.raises(OSError, match="No such file"):
        made.rate("seqkd")


def test_answers_come_back_from_a_piece_whole_and_replace_none(tmp_path):
    measuring = module("measuring")
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder, name, text in ((shared, "base", "first"), (own, "base", "second"), (own, "merge", "answers")):
        (folder / "answers").mkdir(parents=True, exist_ok=True)
        (folder / "answers" / f"{name}.jsonl").write_text(text)
    measuring.link_answers(own, shared)
    assert {path.name: path.read_text() for path in (shared / "answers").iterdir()} == {"base.jsonl": "first", "merge.jsonl": "answers"}
    measuring.link_answers(own, shared)  # what is there already is no error


@pytest.mark.parametrize("recipe", ["sft", "rlvr"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_the_options_of_an_expert_are_those_of_train_expert(tmp_path, size, recipe):
    from gopd_merge.train_config import TrainConfig

    sizes, experts = module("sizes").SIZES[size], module("experts")
    made = experts.Experts(tmp_path, sizes, "base")
    config = TrainConfig(**made.options("math", recipe))
    assert config.expert == "math"
    assert config.output.name == ("math.lora" if recipe == "rlvr" else "math-sft.lora")
    assert config.start == (None if recipe == "sft" else str(made.path("math", "sft")))
