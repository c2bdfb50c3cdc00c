"""`gopd-merge plan` says what a run will take, and the run then takes that; what cannot fit is refused with what helps."""

import hashlib
import json
import re

import pytest
from transformers import AutoTokenizer

from gopd_merge.config import make_config
from gopd_merge.forecast import Forecast, smaller_runs
from gopd_merge.plan import read_inputs


@pytest.fixture
def both(adapters):
    return ["--experts", adapters / "math.lora", adapters / "code.lora"]


@pytest.fixture
def forecast_of(adapters, tmp_path):
    """forecast_of(**options): the forecast of a merge of the embedded experts."""

    def make(**options):
        experts = [str(adapters / f"{d}.lora") for d in ("math", "code")]
        config = make_config({"experts": experts, "output": tmp_path / "o.lora", "steps": 3, "batch_size": 10} | options)
        return Forecast(config, read_inputs(config))

    return make


def test_the_plan_counts_what_the_run_will_ask(run_cli, both, adapters):
    options = ["--steps", "3", "--batch-size", "11", "--max-new-tokens", "20", "--eval-prompts", "7"]
    done = run_cli("plan", *both, *options, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    tokenizer = AutoTokenizer.from_pretrained(adapters / "tiny-base")
    work = plan["work"]
    for domain, share in (("code", 5), ("math", 5)):
        lines = (adapters / f"{domain}.lora" / "prompts" / "train.jsonl").read_text().splitlines()
        questions = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
        lengths = [len(ids) for ids in tokenizer.apply_chat_template(questions, add_generation_prompt=True)["input_ids"]]
        found = next(d for d in work["domains"] if d["domain"] == domain)
        assert found == {
            "domain": domain, "prompts": 2000, "asked": 3 * share, "mean_tokens": sum(lengths) / 2000, "longest": max(lengths),
        }  # fmt: skip
    assert work["response_tokens"] == 3 * 10 * 20
    assert work["evaluated_answers"] == 5 * 2 * 7  # base, two experts, average, merge
    weights = (adapters / "math.lora" / "adapter_model.safetensors").read_bytes()
    assert plan["experts"]["math"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert plan["memory"]["fits"]
    assert plan["way_out"] == {}


@pytest.mark.slow
def test_a_run_keeps_to_the_memory_that_it_was_given(run_cli, both):
    options = [*both, "--steps", "2", "--max-new-tokens", "32", "--no-eval", "--batch-size", "256", "--micro-batch-size", "256"]
    planned = json.loads(run_cli("plan", *options, "--json").stdout)["memory"]["peak"]
    taken = {}
    for given in (int(1.1 * planned), 4 * planned):
        run = run_cli(*options, "--memory", str(given), "--json", "--overwrite")
        assert run.returncode == 0, run.stderr
        assert ("freed blocks are returned at once" in run.stderr) == (given < 2 * planned)
        taken[given] = json.loads(run.stdout)["peak_memory_bytes"]
    tight, generous = taken.values()
    assert tight == pytest.approx(planned, rel=0.15)
    assert generous > tight  # the control: glibc's heap keeps more


def test_a_run_that_cannot_fit_is_refused_with_options_that_make_it_fit(run_cli, both):
    options = [*both, "--memory", "650MB"]
    refused = run_cli("plan", *options)
    assert refused.returncode == 2
    assert "does not fit into 650 MB on the CPU" in refused.stdout
    found = re.search(r"needs about \d+ MB \(update\), more than the 650 MB that --memory allows; it fits with (--.*)", refused.stderr)
    advice = found[1].split()
    assert advice[0] == "--micro-batch-size"  # changes no result
    assert run_cli("plan", *options, *advice).returncode == 0
    assert run_cli("plan", *options, advice[0], str(2 * int(advice[1]))).returncode == 2  # it is the largest that fits


def test_the_merge_refuses_it_too_before_anything_loads(run_cli, both, tmp_path):
    refused = run_cli(*both, "--memory", "0.65GB")
    assert refused.returncode == 2
    assert "it fits with --micro-batch-size" in refused.stderr
    assert "loading the base" not in refused.stderr
    assert not list(tmp_path.iterdir())


def test_where_no_option_helps_it_says_so(run_cli, both):
    refused = run_cli("plan", *both, "--memory", "100MB")
    assert refused.returncode == 2
    assert "no option makes it fit, the base alone takes 0.7 MB: take a larger machine" in refused.stderr


def test_a_dry_run_is_the_plan_and_writes_nothing(run_cli, both, tmp_path):
    dry, plan = run_cli(*both, "--dry-run"), run_cli("plan", *both)
    assert dry.returncode == 0
    numbers = re.compile(r"\d+ MB|[\d.]+ GB")  # of a process, not the same twice
    assert numbers.sub("", dry.stdout) == numbers.sub("", plan.stdout)
    assert "work     50 steps × 64 prompts, then 10,000 answers to measure" in dry.stdout
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_a_warning_in_the_plan(run_cli, both, tmp_path):
    (tmp_path / "merged.lora").mkdir()
    done = run_cli("plan", *both)
    assert done.returncode == 0
    assert "warning  merged.lora exists; add --overwrite to replace it, or choose another --output" in done.stdout


def test_a_gpu_that_is_not_here_can_be_planned_for_with_its_memory(run_cli, both):
    planned = run_cli("plan", *both, "--device", "cuda", "--memory", "24GB", CUDA_VISIBLE_DEVICES="")
    assert planned.returncode == 0, planned.stderr
    assert "fits     into 24.0 GB on the GPU" in planned.stdout
    refused = run_cli("plan", *both, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert refused.returncode == 2
    assert "--device cuda: this machine has no GPU that PyTorch can use; use --device cpu, or plan with --memory 24GB" in refused.stderr


@pytest.mark.parametrize("given", ["much", "0", "-3GB", "nan"])
def test_memory_must_be_an_amount(run_cli, both, given):
    refused = run_cli("plan", *both, f"--memory={given}")
    assert refused.returncode == 2
    assert refused.stderr == f"gopd-merge: --memory {given} is not an amount of memory; write a number and a unit, such as 24GB\n"


def test_a_prompt_that_the_base_cannot_hold_is_refused_by_the_plan(run_cli, both):
    refused = run_cli("plan", *both, "--max-new-tokens", "500")
    assert refused.returncode == 2
    assert "base's context of 512" in refused.stderr


@pytest.mark.slow
def test_calibration_says_how_long_the_run_will_take(run_cli, both):
    done = run_cli("plan", *both, "--calibrate", "--json", "--steps", "50", "--batch-size", "8")
    seconds = json.loads(done.stdout)["seconds"]
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"), abs=0.5)
    assert min(seconds.values()) > 0
    assert "time     about " in run_cli("plan", *both, "--calibrate", "--batch-size", "8", "--steps", "1").stdout


def test_every_rung_of_the_advice_needs_less_than_the_one_before(forecast_of):
    """The search for the first that fits relies on it."""
    forecast = forecast_of(quantize="none", micro_batch_size=8, chunk_tokens=512)
    for ladder in smaller_runs(forecast.config):
        peaks = [max(forecast.memory_with(forecast.config.model_copy(update=rung)).phases.values()) for rung in ladder]
        assert peaks == sorted(peaks, reverse=True)


def test_only_what_changes_results_is_advised_last(forecast_of):
    ladders = list(smaller_runs(forecast_of(quantize="none", batch_size=8, max_new_tokens=64).config))
    assert all(set(rung) <= {"micro_batch_size", "chunk_tokens"} for rung in ladders[0])
    assert all(rung["quantize"] == "nf4" for ladder in ladders[1:] for rung in ladder)
    assert [ladder[0].get("batch_size") for ladder in ladders] == [None, None, 4, 2, 2]
    assert ladders[-1][0]["max_new_tokens"] == 32
