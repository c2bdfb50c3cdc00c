"""A sweep of the embedded experts: few steps and questions, but the real thing from the command to the adapter on disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from gopd_merge import MergeConfig, halving, merge
from gopd_merge.config import make_config
from gopd_merge.errors import InputError
from gopd_merge.options import checked, read_config_file
from gopd_merge.report.scale import checked_scale, scale_text
from gopd_merge.report.sweep import sweep_text
from gopd_merge.sweep import begin, ranking, sweep
from gopd_merge.sweep_config import SweepConfig

COMMAND = Path(sys.executable).with_name("gopd-merge")
WEIGHTS = "adapter_model.safetensors"
SHORT = {
    "alphas": "0,3",
    "steps": 10,
    "batch_size": 4,
    "max_new_tokens": 24,
    "tune_limit": 8,
    "eval": False,
    "learning_rate": 0.01,
    "seed": 1,
}


def config(adapters, output, **options):
    experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
    return checked(SweepConfig, {"experts": experts, "quantize": "none", "output": output, **SHORT, **options})


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def runs(output):
    return sorted(output.with_name(f"{output.name}.sweep").glob("rung-*/*.lora"))


@pytest.fixture(scope="module", autouse=True)
def shortest():
    """Shorter runs than a user may have, in this process: here they need not say much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halving, "LEAST", 2)
        yield


@pytest.fixture(scope="module")
def swept(adapters, tmp_path_factory):
    """One small sweep, made in this process: its output and what it returned. Tests leave it as it is."""
    output = tmp_path_factory.mktemp("sweep") / "merged.lora"
    return output, sweep(config(adapters, output), "gopd-merge sweep")


@pytest.fixture
def copied(swept, tmp_path):
    """A copy of it that a test may change: the path of its output."""
    shutil.copytree(swept[0].parent, tmp_path / "swept")
    return tmp_path / "swept" / "merged.lora"


def test_the_winner_is_the_plain_merge_with_its_options_byte_for_byte(swept, tmp_path):
    output, found = swept
    again = make_config(read_config_file(output / "merge.json") | {"output": tmp_path / "again.lora"})
    merge(again)
    assert (tmp_path / "again.lora" / WEIGHTS).read_bytes() == (output / WEIGHTS).read_bytes()
    assert again.alpha == found.scale["chosen"]["math"]
    assert all((run / WEIGHTS).read_bytes() != (output / WEIGHTS).read_bytes() for run in runs(output))  # the control
    assert json.loads((output / "scale.json").read_text()) == json.loads(json.dumps(found.scale))


def test_the_chosen_alpha_has_the_highest_mean_of_the_answers_on_disk(swept):
    output, found = swept
    means = {}
    for run in runs(output):
        by_domain = []
        for domain in ("code", "math"):
            (file,) = (run / "evaluation" / "tuning").glob(f"own.{domain}.*.jsonl")
            header, *answers = read(file)
            assert (header["split"], len(answers)) == ("validation", 8)
            by_domain.append(sum(answer["score"] for answer in answers) / 8)
            alpha = json.loads((run / "merge.json").read_text())["config"]["alpha"]
            (point,) = [p for p in found.scale["points"] if (p["alpha"], p["domain"]) == (alpha, domain)]
            assert point["score"] == by_domain[-1]
            assert point["low"] <= point["score"] <= point["high"]
            assert (point["steps"], point["full_steps"], point["learning_rate"]) == (5, 10, 0.01)
        means[alpha] = sum(by_domain) / 2
    best = max(means.values())
    assert found.scale["chosen"] == dict.fromkeys(("code", "math"), min(alpha for alpha in means if means[alpha] == best))
    assert found.scale["chosen_options"] == {"learning_rate": 0.01, "steps": 10}


def test_short_runs_are_whole_runs_and_all_together_cost_what_was_said(swept):
    output, found = swept
    logs = [read(run / "metrics.jsonl") for run in runs(output)]
    assert [len(rows) for rows in logs] == [5, 5]
    for rows in logs:
        rates = [row["learning_rate"] for row in rows]
        assert rates == pytest.approx([0.02 * min(1, (step + 1) / 3) * (1 - step / 5) for step in range(5)])  # ⌈4 · 5 / 10⌉ to warm up
    spent = sum(map(len, logs)) + len(read(output / "metrics.jsonl"))
    assert found.scale["cost"] == {"steps": spent, "full_runs": 2.0}
    assert logs[0][0]["domains"].keys() == logs[1][0]["domains"].keys()
    lengths = [[row["domains"]["math"]["response_length"] for row in rows[:1]] for rows in logs]
    assert lengths[0] == lengths[1]  # the same fresh student, prompts and draws


def test_the_better_half_goes_on_to_runs_of_its_own_that_are_longer(adapters, tmp_path):
    output = tmp_path / "merged.lora"
    found = sweep(config(adapters, output, alphas="0,1,2,3", steps=8), "gopd-merge sweep")
    means = {1: {}, 2: {}}
    for point in found.scale["points"]:
        means[point["rung"]].setdefault(point["alpha"], []).append(point["score"])
    first, second = ({alpha: sum(scores) for alpha, scores in rung.items()} for rung in means.values())
    assert set(second) == set(sorted(first, key=lambda alpha: (-first[alpha], alpha))[:2])
    assert found.scale["chosen"]["math"] == min(second, key=lambda alpha: (-second[alpha], alpha))
    rates = {
        path.parent.parent.name: [row["learning_rate"] for row in read(path)] for path in output.parent.rglob("rung-*/*/metrics.jsonl")
    }
    assert (len(rates["rung-1"]), len(rates["rung-2"])) == (2, 4)
    assert found.scale["cost"] == {"steps": 4 * 2 + 2 * 4 + 8, "full_runs": 3.0}
    # A fresh rise each, of one and of two steps, to a rate that is higher where the run is shorter.
    assert (rates["rung-1"][0], rates["rung-2"][0]) == pytest.approx((0.04 / 2, 0.02 / 3))


@pytest.mark.slow
def test_at_the_rate_of_the_full_run_a_short_one_could_not_tell_one_alpha_from_another(adapters, tmp_path):
    """Why short runs have a higher one: how far two α are apart after a few steps, each student as a vector of weights."""

    def cosine(paths):
        a, b = (torch.cat([t.flatten() for n, t in sorted(load_file(p / WEIGHTS).items()) if "lora_B" in n]) for p in paths)
        return torch.cosine_similarity(a, b, dim=0).item()

    apart = {}
    for share, rate in (("same rate", 0.002), ("as far", 0.01)):
        paths = [tmp_path / f"{share} {alpha}" for alpha in (1.0, 3.0)]
        for path, alpha in zip(paths, (1.0, 3.0), strict=True):
            few = {"steps": 8, "batch_size": 16, "learning_rate": rate, "warmup_steps": 1}
            merge(config(adapters, path, **few).full_run(halving.Candidate(alpha, rate, 8)))
        apart[share] = 1 - cosine(paths)
    assert apart["same rate"] < 0.02
    assert apart["as far"] > 5 * apart["same rate"]


def test_what_is_complete_is_not_made_again_and_the_winner_is_the_same(copied, adapters):
    """Options that change no short run may change: here the merge is measured at the end."""
    before = {path: path.stat().st_mtime_ns for path in copied.with_name("merged.lora.sweep").rglob("*") if path.is_file()}
    winner = (copied / WEIGHTS).read_bytes()
    lost = runs(copied)[1]
    shutil.rmtree(lost)
    shutil.rmtree(copied)
    found = sweep(config(adapters, copied, eval=True, eval_prompts=4), "gopd-merge sweep")
    assert (copied / WEIGHTS).read_bytes() == winner
    assert {row.n for row in found.merge.results} == {4}
    assert "exact average" in found.merge.table
    after = {path: path.stat().st_mtime_ns for path in before}
    remade = {path for path in before if before[path] != after[path] and path.name != ".lock"}
    assert remade == {path for path in before if path.is_relative_to(lost)}


def test_other_settings_are_refused_by_what_differs_and_begin_anew_with_overwrite(copied, adapters):
    shutil.rmtree(copied)
    with pytest.raises(InputError) as refused:
        sweep(config(adapters, copied, tune_limit=5, seed=2), "gopd-merge sweep")
    assert re.search(r"merged\.lora\.sweep: holds a sweep with .*seed 1 \(now 2\).*tune_limit 8 \(now 5\)", str(refused.value))
    assert "--overwrite" in str(refused.value)
    assert "alphas" not in str(refused.value)  # what is the same is not named
    assert len(runs(copied)) == 2
    folder, settings = copied.with_name("merged.lora.sweep"), {"seed": 1}
    begin(folder, settings, overwrite=True)
    assert runs(copied) == []
    begin(folder, settings, overwrite=False)  # and goes on from there


def test_a_folder_that_is_not_a_sweeps_and_one_in_use_are_left_alone(adapters, tmp_path):
    output = tmp_path / "merged.lora"
    folder = tmp_path / "merged.lora.sweep"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(InputError, match="another run is writing there; wait"):
        sweep(config(adapters, output), "gopd-merge sweep")
    (folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"was not written by gopd-merge sweep, .* choose another --output"):
            sweep(config(adapters, output, overwrite=overwrite), "gopd-merge sweep")
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert not output.exists()


def test_an_expert_without_validation_questions_is_refused_before_anything_loads(code_copy, tmp_path):
    (code_copy / "prompts" / "validation.jsonl").unlink()
    with pytest.raises(InputError, match=r"code: no validation questions .*; put questions with answers there") as refused:
        sweep(config(code_copy.parent, tmp_path / "merged.lora"), "gopd-merge sweep")
    assert "code.lora" in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--alpha", "2"], "--alpha"),
        (["--alphas", "1", "1"], "--alphas 1,1"),
        (["--alphas", "1,2", "--steps", "4"], "two full runs of 4 steps"),
        (["--config", "old.json", "--steps", "50"], "--alpha 1.5"),
        (["--tune-limit", "few"], "--tune-limit"),
    ],
)
def test_a_command_that_cannot_be_is_refused_in_one_line_without_torch(code_copy, tmp_path, options, named):
    old = MergeConfig(experts={"math": "adapters/math.lora", "code": "adapters/code.lora"}, alpha=1.5)
    (tmp_path / "old.json").write_text(json.dumps({"config": old.model_dump(mode="json")}))
    program = "import sys; from gopd_merge.cli import main; code = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
    arguments = ["sweep", "--experts", "adapters/math.lora", "adapters/code.lora", *options]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert named in line


def test_what_the_flags_sweep_replaces_the_one_value_of_a_merge_json(adapters, tmp_path):
    from gopd_merge.cli.sweeping import _config

    old = MergeConfig(experts={"math": "math.lora"}, alpha=1.5, learning_rate=0.002, steps=20)
    (tmp_path / "merge.json").write_text(json.dumps({"config": old.model_dump(mode="json")}))
    found = _config({"config": tmp_path / "merge.json", "alphas": ["1,2"], "learning_rates": ["0.001", "0.004"]})
    assert (found.alphas, found.learning_rates, found.steps) == ((1.0, 2.0), (0.001, 0.004), 20)


def test_the_best_mean_comes_first_and_of_equals_the_earlier():
    scores = [[0.5, 0.5], [0.9, 0.2], [0.4, 0.6], [0.0, 0.9]]
    assert ranking(scores, ["math_answer", "function_cases"]) == [1, 0, 2, 3]
    assert ranking(scores[::-1], ["math_answer", "function_cases"]) == [2, 1, 3, 0]


def test_the_table_shows_every_run_of_every_rung_and_what_was_chosen(swept):
    document = json.loads(json.dumps(swept[1].scale))
    lines = sweep_text(document).splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if re.match(r"  \d", line)]
    assert [row[:4] for row in rows] == [["1", "0", "0.01", "5 of 10"], ["1", "3", "0.01", "5 of 10"]]
    assert [row[1] for row in rows if row[-1] == "chosen"] == [f"{document['chosen']['math']:g}"]
    assert "20 steps with the full run, as many as 2 full runs" in lines[-1]


def test_the_reader_of_scale_json_takes_it_and_knows_the_run_that_was_chosen(swept):
    document = json.loads((swept[0] / "scale.json").read_text())
    scale = checked_scale(document)
    assert {point.alpha for point in scale.points if scale.is_chosen(point)} == {document["chosen"]["math"]}
    (reason,) = [line for line in scale_text(document).splitlines() if line.startswith("math: best mean over the domains of 2 candidates")]
    assert re.search(r"after 5 of 10 steps: .* in math the difference is \S+ \(\S+ to \S+\) points$", reason)


def kill_when(condition, command, cwd):
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1].decode()
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_bytes_of_an_unbroken_sweep(adapters, tmp_path):
    options = ["--alphas", "1,1.5,2,3", "--steps", "20", "--batch-size", "4", "--max-new-tokens", "16", "--tune-limit", "12", "--no-eval"]
    options += ["--quantize", "none"]  # quicker here
    command = [COMMAND, "sweep", "--experts", adapters / "math.lora", adapters / "code.lora", *options, "--json"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    environment = os.environ | {"COLUMNS": "80"}
    unbroken = subprocess.run(command, cwd=whole, env=environment, capture_output=True, text=True, check=True)
    rung = broken / "merged.lora.sweep" / "rung-1"
    second, third = (rung / f"alpha-{alpha}-steps-20.lora" for alpha in ("1.5", "2.0"))

    def lines_in(path):
        return len(path.read_bytes().split(b"\n")) - 1 if path.exists() else 0

    kill_when(lambda: lines_in(second.with_name(f"{second.name}.partial") / "metrics.jsonl") > 2, command, broken)  # while it trains
    first = [(path, path.read_bytes()) for path in (rung / "alpha-1.0-steps-20.lora").rglob("*.*") if path.is_file()]
    answering = third / "evaluation" / "tuning" / "own.code.12.exopd-alpha-2-seed-0.jsonl"
    kill_when(lambda: lines_in(answering) > 4, command, broken)  # while it answers
    with answering.open("ab") as file:  # and the last write was torn
        file.write(b'{"id": "own/code/validation/1", "sam')
    kill_when(lambda: lines_in(broken / "merged.lora.partial" / "metrics.jsonl") > 5, command, broken)  # in the winner's full run
    done = subprocess.run(command, cwd=broken, env=environment, capture_output=True, text=True, check=True)

    assert (broken / "merged.lora" / WEIGHTS).read_bytes() == (whole / "merged.lora" / WEIGHTS).read_bytes()
    scales = [json.loads(process.stdout)["scale"] for process in (unbroken, done)]
    for name in ("points", "chosen", "chosen_options", "why", "cost", "command", "inputs", "base"):
        assert scales[0][name] == scales[1][name]
    assert [len(rung) for rung in scales_by_rung(scales[0])] == [4, 0]
    assert all(path.read_bytes() == content for path, content in first)  # what was complete was not made again
    assert not (broken / "merged.lora.partial").exists()
    again = subprocess.run(command, cwd=broken, env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, "merged.lora exists" in again.stderr) == (2, True)


def scales_by_rung(scale):
    alphas = {(point["rung"], point["alpha"]) for point in scale["points"]}
    return [[alpha for rung, alpha in alphas if rung == number] for number in (1, 2)]


def test_stopped_by_a_signal_it_says_how_to_go_on(adapters, tmp_path):
    options = ["--alphas", "1,2", "--batch-size", "8", "--max-new-tokens", "32", "--tune-limit", "24"]
    process = subprocess.Popen(
        [COMMAND, "sweep", "--experts", adapters / "math.lora", adapters / "code.lora", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "merged.lora.sweep" / "rung-1" / "alpha-1.0-steps-50.lora.partial" / "metrics.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stdout == ""
    assert stderr.splitlines()[-1] == "gopd-merge: stopped; what was finished is kept, give the same command to go on"
    assert not (tmp_path / "merged.lora").exists()
