"""The main command on the embedded default: short, but the real thing from the shell to the adapter on disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gopd_merge import MergeConfig, merge
from gopd_merge.errors import VerificationError
from gopd_merge.experts.base import Base, load_base

SHORT = ["--steps", "2", "--batch-size", "8", "--max-new-tokens", "24", "--eval-prompts", "12"]
RESULT_FIELDS = {
    "suite", "domain", "method", "parameters", "alpha", "split", "seed", "seeds", "seed_sd", "n", "k", "temperature", "metric", "score",
    "low", "high", "length_mean", "length_capped", "empty",
}  # fmt: skip


def short(adapters, output, **options):
    experts = options.pop("experts", {d: str(adapters / f"{d}.lora") for d in ("math", "code")})
    defaults = {"steps": 2, "batch_size": 8, "max_new_tokens": 24, "eval": False, "output": output, "quantize": "none"}
    return MergeConfig(experts=experts, **defaults | options)


@pytest.fixture(scope="module")
def merged(adapters, tmp_path_factory):
    """One short run of the real command at NF4: its folder, its process and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    command = Path(sys.executable).with_name("gopd-merge")
    experts = [adapters / "math.lora", adapters / "code.lora"]
    done = subprocess.run(
        [command, "--experts", *experts, "--alpha", "2", *SHORT, "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "merged.lora", done


def test_the_command_leaves_a_complete_adapter_and_nothing_else(merged):
    output, _ = merged
    assert sorted(p.name for p in output.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "evaluation",
        "merge.json",
        "metrics.jsonl",
    ]
    assert [p.name for p in output.parent.iterdir()] == ["merged.lora"]


def test_json_on_stdout_is_one_document_in_the_schema_of_results(merged):
    _, done = merged
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    methods = ["base", "expert:code", "expert:math", "average", "exopd"]
    assert [(r["method"], r["domain"]) for r in document["results"]] == [(m, d) for m in methods for d in ("code", "math")]
    assert all(set(r) == RESULT_FIELDS for r in document["results"])
    assert all(r["n"] == 12 and r["low"] <= r["score"] <= r["high"] for r in document["results"])
    assert {"load", "rollout", "score", "update", "evaluate", "total"} <= set(document["seconds"])
    assert document["peak_memory_bytes"] > 1e8
    assert document["tokens"] > 0


def test_stderr_tells_inputs_and_progress_without_colour_or_library_noise(merged):
    _, done = merged
    assert "step 2/2" in done.stderr
    assert "KL to target" in done.stderr
    assert "\x1b" not in done.stderr
    for noise in ("Warning", "Traceback", "kernels", "Loading weights"):
        assert noise not in done.stderr


def test_the_manifest_holds_what_repeats_the_run(merged, adapters):
    import hashlib

    output, _ = merged
    manifest = json.loads((output / "merge.json").read_text())
    for domain in ("math", "code"):
        digest = hashlib.sha256((adapters / f"{domain}.lora" / "adapter_model.safetensors").read_bytes()).hexdigest()
        assert manifest["inputs"][domain]["sha256"] == digest
    assert manifest["config"]["alpha"] == 2.0
    assert manifest["config"]["steps"] == 2
    assert manifest["config"]["learning_rate"] == 0.002  # the default at this base's width, as a number
    assert manifest["environment"]["torch"] == torch.__version__
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    assert str(Path.home()) not in (output / "adapter_config.json").read_text() or str(adapters).startswith(str(Path.home()))


def test_repeating_from_the_manifest_gives_the_same_bytes(merged, tmp_path):
    output, _ = merged
    command = Path(sys.executable).with_name("gopd-merge")
    again = tmp_path / "again.lora"
    done = subprocess.run(
        [command, "--config", output / "merge.json", "--output", again, "--no-eval", "--quiet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (again / "adapter_model.safetensors").read_bytes() == (output / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("quantize", ["nf4", "none"])
def test_plain_peft_on_a_separately_loaded_base_gives_the_logits_that_were_in_memory(adapters, tmp_path, quantize):
    from gopd_merge import pipeline

    kept = {}
    original = pipeline.artefacts.verify_adapter

    def spy(backbone, folder, prompts):
        original(backbone, folder, prompts)
        ids = torch.arange(4, 40).reshape(2, 18)
        with torch.no_grad():
            kept["logits"] = backbone.peft(input_ids=ids).logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.artefacts, "verify_adapter", spy)
        merge(short(adapters, tmp_path / "out.lora", quantize=quantize))
    location = str(adapters / "tiny-base")
    model, _ = load_base(Base(location, location), quantize, "cpu")
    ids = torch.arange(4, 40).reshape(2, 18)
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        plain = PeftModel.from_pretrained(model, tmp_path / "out.lora").eval()(input_ids=ids).logits
    assert torch.equal(plain, kept["logits"])
    assert not torch.equal(plain, bare)


def test_an_adapter_that_reads_back_differently_is_not_published(adapters, tmp_path, monkeypatch):
    from gopd_merge.distill.backbone import Backbone

    save = Backbone.save_student

    def damage(self, folder, *base):
        save(self, folder, *base)
        path = folder / "adapter_model.safetensors"
        save_file({n: t.half().float() for n, t in load_file(path).items()}, path)

    monkeypatch.setattr(Backbone, "save_student", damage)
    with pytest.raises(VerificationError, match="differ by up to"):
        merge(short(adapters, tmp_path / "out.lora"))
    assert not (tmp_path / "out.lora").exists()
    assert not (tmp_path / "out.lora.partial" / "merge.json").exists()


def test_prompts_that_are_all_longer_than_the_context_are_refused_before_any_step(adapters, tmp_path, run_cli):
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"prompt": f"{n} + " * 400}) + "\n" for n in (1, 2)))
    experts = [adapters / "math.lora", adapters / "code.lora"]
    done = run_cli("--experts", *experts, "--prompts", "math=long.jsonl", "--no-eval", "--quiet", *SHORT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "math: all 2 prompts of" in line
    assert "context of 512" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.jsonl"]


def test_lambda_zero_merges_to_the_base(adapters, tmp_path):
    merge(short(adapters, tmp_path / "zero.lora", alpha=0.0))
    tensors = load_file(tmp_path / "zero.lora" / "adapter_model.safetensors")
    assert all(not t.any() for n, t in tensors.items() if "lora_B" in n)
    merge(short(adapters, tmp_path / "two.lora", alpha=2.0))  # the control
    tensors = load_file(tmp_path / "two.lora" / "adapter_model.safetensors")
    assert any(t.any() for n, t in tensors.items() if "lora_B" in n)


def test_the_order_of_the_experts_changes_nothing_but_the_order_of_the_rows(adapters, tmp_path):
    bytes_of = {}
    for order in (("math", "code"), ("code", "math")):
        output = tmp_path / "-".join(order)
        merge(short(adapters, output, experts={d: str(adapters / f"{d}.lora") for d in order}))
        bytes_of[order] = (output / "adapter_model.safetensors").read_bytes()
    assert len(set(bytes_of.values())) == 1


def test_one_seed_gives_one_adapter_and_another_seed_another(adapters, tmp_path):
    found = []
    for index, seed in enumerate((1, 1, 2)):
        merge(short(adapters, tmp_path / str(index), seed=seed))
        found.append((tmp_path / str(index) / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_the_python_interface_gives_what_the_command_gives(adapters, tmp_path, merged):
    output, done = merged
    result = merge(short(adapters, tmp_path / "api.lora", quantize="nf4", eval=True, eval_prompts=12, alpha=2.0))
    assert (tmp_path / "api.lora" / "adapter_model.safetensors").read_bytes() == (output / "adapter_model.safetensors").read_bytes()
    assert [r.score for r in result.results] == [r["score"] for r in json.loads(done.stdout)["results"]]
    assert "exact average" in result.table


@pytest.mark.parametrize("estimator", ["full", "sampled"])
def test_training_brings_the_student_toward_the_target(adapters, tmp_path, estimator):
    config = short(adapters, tmp_path / "out.lora", steps=24, batch_size=16, max_new_tokens=40, estimator=estimator)
    merge(config)
    rows = [json.loads(line) for line in (tmp_path / "out.lora" / "metrics.jsonl").read_text().splitlines()]
    first, last = (sum(r["kl_to_target"] for r in part) for part in (rows[:4], rows[-4:]))
    assert last < (0.5 if estimator == "full" else 0.9) * first
    assert all(set(r["domains"]) == {"math", "code"} for r in rows)


@pytest.mark.slow
def test_an_expert_of_random_noise_is_not_reported_as_an_improvement(adapters, tmp_path):
    """The control of the whole report: the noise replaces what the code expert learned, at the same size."""
    import shutil

    noise = shutil.copytree(adapters / "code.lora", tmp_path / "code.lora")
    tensors = load_file(noise / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    save_file({n: torch.randn(t.shape, generator=generator) * t.std() for n, t in tensors.items()}, noise / "adapter_model.safetensors")
    experts = {"math": str(adapters / "math.lora"), "code": str(noise)}
    base = str(adapters / "tiny-base")
    result = merge(
        short(
            adapters,
            tmp_path / "out.lora",
            experts=experts,
            base=base,
            eval=True,
            eval_prompts=200,
            steps=8,
            batch_size=32,
            max_new_tokens=80,
        )
    )
    code = {r.method: r for r in result.results if r.domain == "code"}
    assert code["exopd"].score <= code["base"].high
    on_code = [c for c in result.comparisons if c.domain == "code"]
    assert {c.rival_is for c in on_code} == {"best expert", "exact average"}
    assert not any(c.better for c in on_code)  # not even of the noise: the best expert on code is then another one
    assert not result.table.startswith("Better:")


def test_dora_and_a_single_expert_are_merged_too(adapters, tmp_path):
    from peft import LoraConfig, get_peft_model

    location = str(adapters / "tiny-base")
    model, _ = load_base(Base(location, location), "none", "cpu")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM", init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = location
    model.save_pretrained(tmp_path / "dora.lora")
    prompts = {"dora": str(adapters / "code.lora" / "prompts" / "train.jsonl")}
    result = merge(short(adapters, tmp_path / "out.lora", experts={"dora": str(tmp_path / "dora.lora")}, prompts=prompts))
    assert (result.output / "merge.json").is_file()


def test_a_failed_run_keeps_the_output_that_was_there(adapters, tmp_path, monkeypatch):
    from gopd_merge import distillation

    output = tmp_path / "out.lora"
    merge(short(adapters, output))
    before = (output / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(distillation, "score", lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose")))
    with pytest.raises(RuntimeError, match="on purpose"):
        merge(short(adapters, output, overwrite=True, seed=5))
    assert (output / "adapter_model.safetensors").read_bytes() == before


def test_the_peak_is_that_of_the_run_and_not_of_the_process_that_started_it(tmp_path):
    """A process that holds 2 GB starts one that holds almost nothing."""
    ask = "import torch; from gopd_merge.usage import peak_memory as p; print(p(torch.device('cpu')))"
    usage = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    hold = "import subprocess, sys; held = bytearray(b'x') * 2_000_000_000; "
    start = f"{hold}[subprocess.run([sys.executable, '-c', code], check=True) for code in {[ask, usage]}]"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
    peak, by_usage = map(int, done.stdout.split())
    assert peak < 1_500_000_000
    assert by_usage > 2_000_000_000  # the control: why it is not taken from there
