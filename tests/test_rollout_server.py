"""A merge whose student answers on a server: it learns what it learns from its own answers here, and survives what servers do."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from gopd_merge.cli import main
from gopd_merge.config import make_config
from gopd_merge.errors import InputError
from gopd_merge.report.plan import memory_text

COMPARED = 8  # answers before a run
OPTIONS = ["--steps", "2", "--warmup-steps", "0", "--batch-size", "4", "--max-new-tokens", "12", "--no-eval", "--quiet"]


@pytest.fixture
def merge(adapters, tmp_path, monkeypatch, capsys):
    """merge(*arguments): the command in this process and in a folder of its own: exit code and the lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["--experts", str(adapters / "math.lora"), str(adapters / "code.lora"), *OPTIONS, *map(str, arguments)])
        return code, capsys.readouterr().err.splitlines()

    return run


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_student_that_answers_on_a_server_is_trained_on_what_it_says(merge, server, tmp_path):
    code, err = merge("--quantize", "none", "--rollout", server.url)
    assert code == 0, err
    rows = rows_of(tmp_path / "merged.lora")
    assert len(rows) == 2
    assert len(server.ever_loaded) == 2  # the fresh student, and the one after the first step
    assert server.loaded == {}
    assert {path.name for path in tmp_path.iterdir()} == {"merged.lora"}
    manifest = json.loads((tmp_path / "merged.lora" / "merge.json").read_text())
    assert manifest["config"]["rollout"] == server.url
    for row in rows:
        assert row["importance_mean"] == pytest.approx(1.0, abs=1e-3)
        assert row["importance_clipped"] == 0
        assert row["engine_gap"] < 1e-4
    assert sum("importance_mean" in row for row in rows) == 2
    code, err = merge("--quantize", "none", "--output", "here.lora")
    assert code == 0, err
    assert not any("importance_mean" in row for row in rows_of(tmp_path / "here.lora"))


def test_a_base_in_4_bits_learns_from_a_server_that_holds_it_whole(merge, server, tmp_path):
    code, err = merge("--rollout", server.url, "--horizon", "6")
    assert code == 0, err
    assert {request["max_tokens"] for request in server.requests} == {6}
    for row in rows_of(tmp_path / "merged.lora"):
        assert row["importance_mean"] != 1.0
        assert 0.5 < row["importance_mean"] < 2


def test_a_server_that_stays_away_ends_the_run_with_one_line_and_what_was_learnt(merge, server, tmp_path):
    server.die_after = COMPARED + 4 + 2  # the comparison, the first step, and a part of the second
    code, err = merge("--rollout", server.url, "--remote-patience", "0.3")
    assert code == 1
    (line,) = err
    assert line.startswith(f"gopd-merge: {server.url}: the server has not answered for 0.3 s (")
    assert line.endswith("step 1 is saved, go on with: gopd-merge resume merged.lora")
    partial = tmp_path / "merged.lora.partial"
    assert len(rows_of(partial)) == 1
    assert any(
        tensor.any()
        for name, tensor in load_file(partial / "checkpoints" / "step-000001" / "adapter_model.safetensors").items()
        if "lora_B" in name
    )
    assert {path.name for path in tmp_path.iterdir()} == {"merged.lora.partial"}


def test_a_server_that_was_started_again_changes_nothing(merge, server, tmp_path):
    assert merge("--rollout", server.url, "--output", "whole.lora")[0] == 0
    server.die_after = len(server.requests) + COMPARED + 4 + 2
    server.come_back()
    code, err = merge("--rollout", server.url, "--output", "again.lora", "--remote-patience", "60")
    assert code == 0, err
    whole, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole.lora", "again.lora"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"sees": lambda path: False}, "where the student is written; run it on this machine, or write --output to a disk that both have"),
        ({"answer": lambda choice: choice | {"token_ids": []}}, "answers with 0 tokens"),
    ],
)
def test_a_server_that_cannot_sample_is_refused_before_any_training(merge, server, tmp_path, fault, problem):
    for name, value in fault.items():
        setattr(server, name, value)
    code, err = merge("--rollout", server.url)
    (line,) = err
    assert (code, problem in line) == (2, True), line
    assert line.startswith(f"gopd-merge: {server.url}: ")
    assert list(tmp_path.iterdir()) == []


def test_prompts_too_long_for_the_server_are_refused(merge, server, remote_server, monkeypatch):
    monkeypatch.setattr(remote_server, "MAX_MODEL_LEN", 40)
    code, (line,) = merge("--rollout", server.url)
    assert code == 2
    assert "takes 40 tokens at once, where this run has up to " in line


def test_without_vllm_the_way_out_is_named(merge, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, (line,) = merge("--rollout", "vllm")
    assert code == 2
    assert line == 'gopd-merge: --rollout vllm: vLLM is not installed; pip install "gopd-merge[vllm]", or leave it out'


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("trl", "--rollout trl is nobody who samples; write hf, vllm, or the URL of a running vllm serve"),
        ("http://", "http://: is not the URL of a server; write http://host:8000/v1, without #name"),
        ("http://host:8000/v1#name", "http://host:8000/v1#name: is not the URL of a server; write http://host:8000/v1, without #name"),
        ("http://host:port/v1", "http://host:port/v1: no URL ("),
        ("http://me:secret@host/v1", "http://host/v1: was given with a user or password"),
    ],
)
def test_what_cannot_sample_is_refused_by_its_name(given, line):
    with pytest.raises(InputError) as error:
        make_config({"experts": ["math.lora"], "rollout": given})
    assert str(error.value).startswith(line)
    assert make_config({"experts": ["math.lora"], "rollout": "https://host:8000/v1"}).rollout == "https://host:8000/v1"


def test_the_plan_counts_what_another_engine_takes(adapters, capsys):
    experts = ["--experts", str(adapters / "math.lora"), "--memory", "64GB", "--json"]
    memory = {}
    for rollout in ("hf", "vllm", "http://localhost:8000/v1"):
        assert main(["plan", *experts, "--rollout", rollout]) == 0
        memory[rollout] = json.loads(capsys.readouterr().out)["memory"]
    assert memory["hf"]["engine"] == 0
    assert "rollout" in memory["hf"]["phases"]
    assert memory["vllm"]["engine"] > 4 * 900_000  # the whole base, and more
    assert memory["vllm"]["peak"] > memory["hf"]["peak"]
    assert "rollout" not in memory["http://localhost:8000/v1"]["phases"]
    assert "vLLM, its copy of the base" in memory_text(memory["vllm"])
    assert "vLLM" not in memory_text(memory["hf"])
