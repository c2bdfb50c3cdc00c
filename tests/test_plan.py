"""`gopd-merge plan` says what a run will take, and the run then takes that; what cannot fit is refused with what helps."""

import hashlib
import json
import math
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

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


def test_the_plan_counts_what_the_run_will_ask(run_here, both, adapters):
    options = ["--steps", "3", "--batch-size", "11", "--max-new-tokens", "20", "--eval-prompts", "7"]
    done = run_here("plan", *both, *options, "--json")
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
            "domain": domain, "source": "own", "prompts": 2000, "asked": 3 * share, "mean_tokens": sum(lengths) / 2000,
            "longest": max(lengths),
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
    for given in (int(1.1 * planned), 8 * planned):
        run = run_cli(*options, "--memory", str(given), "--json", "--overwrite")
        assert run.returncode == 0, run.stderr
        assert ("freed blocks are returned at once" in run.stderr) == (given < 3 * planned)
        taken[given] = json.loads(run.stdout)["peak_memory_bytes"]
    tight, generous = taken.values()
    assert tight == pytest.approx(planned, rel=0.15)
    assert generous > tight  # the control: glibc's heap keeps more


def test_of_several_processes_the_plan_shows_what_each_takes(run_here, both):
    options = [*both, "--no-eval", "--quantize", "none", "--json"]
    plans = {}
    for words in ([], ["--processes", "4"], ["--processes", "4", "--shard-base"]):
        done = run_here("plan", *options, *words)
        assert done.returncode == 0, done.stderr
        plans[" ".join(words)] = json.loads(done.stdout)
    alone, four, shared = (plan["memory"] for plan in plans.values())
    assert [plan["work"]["processes"] for plan in plans.values()] == [1, 4, 4]
    assert four["phases"]["rollout"] < alone["phases"]["rollout"] / 2  # a quarter of the answers
    assert four["base"] == alone["base"]
    layers = 4 * 852_992  # bytes of the embedded base's four layers, float32
    assert shared["base"] == four["base"] - layers * 3 // 4 + layers // 2  # a quarter is held, and two of the layers while they run
    assert four["limit"] < alone["limit"] / 2  # of what the machine has free
    assert run_here("plan", *options, "--shard-base").returncode == 2
    assert run_here("plan", *options, "--processes", "4", "--calibrate").returncode == 2


def test_a_run_that_cannot_fit_is_refused_with_options_that_make_it_fit(run_here, both):
    memory = json.loads(run_here("plan", *both, "--json").stdout)["memory"]
    others = max(size for phase, size in memory["phases"].items() if phase != "update")
    options = [*both, "--memory", str(memory["peak"] - (memory["phases"]["update"] - others) // 2)]
    refused = run_here("plan", *options)
    assert refused.returncode == 2
    assert "does not fit into" in refused.stdout
    found = re.search(r"needs about \S+ .B \(update\), more than the \S+ .B that --memory allows; it fits with (--.*)", refused.stderr)
    advice = found[1].split()
    assert advice[0] == "--micro-batch-size"  # changes no result
    assert run_here("plan", *options, *advice).returncode == 0
    assert run_here("plan", *options, advice[0], str(2 * int(advice[1]))).returncode == 2  # it is the largest that fits


def test_the_merge_refuses_it_too_before_anything_loads(run_cli, both, tmp_path):
    refused = run_cli(*both, "--batch-size", "128", "--micro-batch-size", "128", "--memory", "1GB")
    assert refused.returncode == 2
    assert "it fits with --micro-batch-size" in refused.stderr
    assert "loading the base" not in refused.stderr
    assert not list(tmp_path.iterdir())


def test_where_no_option_helps_it_says_so(run_here, both):
    refused = run_here("plan", *both, "--memory", "100MB")
    assert refused.returncode == 2
    assert "no option makes it fit, the base alone takes 0.7 MB: take a larger machine" in refused.stderr


def test_a_dry_run_is_the_plan_and_writes_nothing(run_here, both, tmp_path):
    dry, plan = run_here(*both, "--dry-run"), run_here("plan", *both)
    assert dry.returncode == 0
    numbers = re.compile(r" *[\d.]+ [MG]B *")  # of a process, not the same twice
    assert numbers.sub("", dry.stdout) == numbers.sub("", plan.stdout)
    assert "work     50 steps × 64 prompts, then 10,000 answers to measure" in dry.stdout
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_a_warning_in_the_plan(run_here, both, tmp_path):
    (tmp_path / "merged.lora").mkdir()
    done = run_here("plan", *both)
    assert done.returncode == 0
    assert "warning  merged.lora exists; add --overwrite to replace it, or choose another --output" in done.stdout


def test_a_gpu_that_is_not_here_can_be_planned_for_with_its_memory(run_here, both, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planned = run_here("plan", *both, "--device", "cuda", "--memory", "24GB")
    assert planned.returncode == 0, planned.stderr
    assert "fits     into 24.0 GB on the GPU" in planned.stdout
    refused = run_here("plan", *both, "--device", "cuda")
    assert refused.returncode == 2
    assert "--device cuda: this machine has no GPU that PyTorch can use; use --device cpu, or plan with --memory 24GB" in refused.stderr


@pytest.mark.parametrize("given", ["much", "0", "-3GB", "nan"])
def test_memory_must_be_an_amount(run_here, both, given):
    refused = run_here("plan", *both, f"--memory={given}")
    assert refused.returncode == 2
    assert refused.stderr == f"gopd-merge: --memory {given} is not an amount of memory; write a number and a unit, such as 24GB\n"


def test_a_prompt_that_the_base_cannot_hold_is_refused_by_the_plan(run_here, both):
    refused = run_here("plan", *both, "--max-new-tokens", "500")
    assert refused.returncode == 2
    assert "base's context of 512" in refused.stderr


def test_a_base_that_transformers_does_not_know_is_refused_in_a_line(run_here, both, adapters, tmp_path):
    base = shutil.copytree(adapters / "tiny-base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    for command in (["plan"], []):
        refused = run_here(*command, *both, "--base", base, "--output", tmp_path / "o.lora")
        assert refused.returncode == 1
        assert "is it a model that Transformers knows?" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_base_of_another_kind_is_run_without_values_and_takes_about_as_much(run_here, both, adapters, tmp_path):
    """A plain one is only counted. Both must know the activation's source for the way back, whatever activation it is."""
    base = shutil.copytree(adapters / "tiny-base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    options = [*both, "--no-eval", "--output", tmp_path / "o.lora", "--json"]
    run, counted = (json.loads(run_here("plan", *options, *more).stdout) for more in (["--base", base], []))
    assert run["work"] == counted["work"]
    for phase, size in counted["memory"]["phases"].items():
        assert size == pytest.approx(run["memory"]["phases"][phase], rel=0.1), phase


@pytest.mark.slow
def test_calibration_says_how_long_the_run_will_take(run_cli, both):
    done = run_cli("plan", *both, "--calibrate", "--json", "--steps", "50", "--batch-size", "8")
    seconds = json.loads(done.stdout)["seconds"]
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"), abs=0.5)
    assert min(seconds.values()) > 0
    assert "time     about " in run_cli("plan", *both, "--calibrate", "--batch-size", "8", "--steps", "1").stdout


def test_every_rung_of_the_advice_needs_less_than_the_one_before(forecast_of):
    """The search for the first that fits relies on it."""
    forecast = forecast_of(batch_size=4, micro_batch_size=4, chunk_tokens=256, max_new_tokens=64)
    for ladder in smaller_runs(forecast.config):
        peaks = [max(forecast.memory_with(forecast.config.model_copy(update=rung)).phases.values()) for rung in ladder]
        assert peaks == sorted(peaks, reverse=True)


def test_only_what_changes_results_is_advised_last(forecast_of):
    ladders = list(smaller_runs(forecast_of(quantize="none", batch_size=8, max_new_tokens=64).config))
    assert all(set(rung) <= {"micro_batch_size", "chunk_tokens"} for rung in ladders[0])
    assert all(set(rung) <= {"micro_batch_size", "chunk_tokens", "activation_checkpointing"} for rung in ladders[1])
    assert all(rung["activation_checkpointing"] for ladder in ladders[1:] for rung in ladder)  # it stays on: it changes nothing
    assert all(rung["quantize"] == "nf4" for ladder in ladders[2:] for rung in ladder)
    assert [ladder[0].get("batch_size") for ladder in ladders] == [None, None, None, 4, 2, 2]
    assert ladders[-1][0]["max_new_tokens"] == 32


@pytest.mark.slow
def test_a_model_of_8_b_parameters_is_planned_from_its_headers_alone(run_here, adapters, tmp_path):
    """Its weights are a hole in a file: reading any of them would show in the memory of the process, or in the result."""
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = LlamaConfig(**shape, vocab_size=128256, tie_word_embeddings=False, max_position_embeddings=8192, dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    base = tmp_path / "base"
    AutoTokenizer.from_pretrained(adapters / "tiny-base").save_pretrained(base)
    config.save_pretrained(base)
    write_hollow(base / "model.safetensors", {name: tuple(p.shape) for name, p in model.named_parameters()})
    paths = []
    for domain in ("math", "code"):
        with torch.device("meta"):
            peft = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
        state = {
            n.replace(".default", ""): torch.full(p.shape, 0.01 if domain == "math" else 0.02)
            for n, p in peft.named_parameters()
            if "lora" in n
        }
        peft.peft_config["default"].base_model_name_or_path = str(base)
        peft.peft_config["default"].save_pretrained(tmp_path / f"{domain}.lora")
        save_file(state, tmp_path / f"{domain}.lora" / "adapter_model.safetensors")
        paths.append(tmp_path / f"{domain}.lora")
    prompts = [f"{d}={adapters / f'{d}.lora' / 'prompts' / 'train.jsonl'}" for d in ("math", "code")]
    options = ["--experts", *paths, "--prompts", *prompts, "--device", "cuda", "--batch-size", "32", "--micro-batch-size", "8"]
    done = run_here("plan", *options, "--memory", "24GB", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["base"]["parameters"] == 8_030_261_248
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)  # held in 4 bits, with their scales
    rest = 8_030_261_248 - linear  # in bfloat16
    assert plan["memory"]["base"] == pytest.approx(linear * (1 / 2 + 1 / 64) + 2 * rest, rel=0.01)
    assert plan["memory"]["student"] == 32 * 16 * (4096 + 4096 + 4096 + 1024) * 4
    assert plan["memory"]["peak"] < 24e9


def write_hollow(path, shapes):
    """A safetensors file of bfloat16 tensors whose values take no space on the disk."""
    entries, end = {}, 0
    for name, sizes in shapes.items():
        begin, end = end, end + 2 * math.prod(sizes)
        entries[name] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
