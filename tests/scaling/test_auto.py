"""`--alpha auto`: the probe inside a merge, from the command to the adapter, and what is known of its choice afterwards."""

import contextlib
import io
import json
import subprocess

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gopd_merge import pipeline
from gopd_merge.casting import load_backbone
from gopd_merge.cli import main
from gopd_merge.cli.merging import summary
from gopd_merge.config import AUTO_ALPHAS, make_config
from gopd_merge.distill.counted import Counted
from gopd_merge.distill.footprint import Footprint
from gopd_merge.distill.mixture import expert_and_base, generate_mixture
from gopd_merge.distill.sizes import Sizes
from gopd_merge.experts import base as bases
from gopd_merge.experts.decoder import read_decoder
from gopd_merge.forecast import Forecast
from gopd_merge.options import checked
from gopd_merge.plan import read_inputs
from gopd_merge.probe_config import ProbeConfig
from gopd_merge.report.plan import plan_text
from gopd_merge.report.scale import read_scale
from gopd_merge.scaling import auto
from gopd_merge.scaling.probe import probe

DOMAINS = ("code", "math")
SIZES = {"batch_size": 6, "max_new_tokens": 40, "quantize": "none"}
SHORT = {**SIZES, "steps": 2, "lora_rank": 4, "probe_prompts": 6, "eval_prompts": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command in this process, in one folder: what it left with and printed."""
    folder = tmp_path_factory.mktemp("auto")

    def call(*arguments, **options):
        flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = main([*map(str, arguments), *flags])
        return subprocess.CompletedProcess(folder, code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="module")
def experts(adapters):
    return ["--experts", *(adapters / f"{domain}.lora" for domain in DOMAINS)]


@pytest.fixture(scope="module")
def merged(run, experts):
    """The folder of a merge with --alpha auto, and what the command printed."""
    done = run(*experts, "--alpha", "auto", "--output", "merged.lora", **SHORT)
    assert done.returncode == 0, done.stderr
    return done.args / "merged.lora", done


def test_what_was_chosen_and_why_is_in_every_place_where_one_looks(merged):
    folder, done = merged
    scale, manifest = read_scale(folder / "scale.json"), json.loads((folder / "merge.json").read_text())
    assert set(scale.chosen) == set(DOMAINS)
    assert manifest["config"]["alpha"] == scale.chosen
    assert manifest["scale"] == {"made_by": "probe", "chosen": scale.chosen, "why": scale.why}
    assert manifest["seconds"]["probe"] > 0
    for domain, why in scale.why.items():
        assert f"{domain}: {why}" in done.stdout
        assert f"note     α = {scale.chosen[domain]:g} for {domain}: {why}" in done.stderr
    assert done.stdout.count(" chosen\n") == 2  # drawn once a domain
    assert "●" in done.stdout
    for name in ("command", "inputs", "base", "config", "environment", "seconds"):
        assert json.loads((folder / "scale.json").read_text())[name], name
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert (results["chosen"], results["why"]) == (scale.chosen, scale.why)
    assert len(results["scale"]) == len(AUTO_ALPHAS) * 2
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {domain: row["domains"][domain]["alpha"] for row in rows for domain in DOMAINS} == scale.chosen  # it was trained with it
    shown = ", ".join(f"{domain} {scale.chosen[domain]:g}" for domain in DOMAINS)
    assert f"α = {shown}" in (folder / "README.md").read_text()


def test_it_is_the_choice_that_gopd_merge_probe_makes_of_the_same_questions(merged, adapters, tmp_path):
    folder, _ = merged
    paths = {domain: str(adapters / f"{domain}.lora") for domain in DOMAINS}
    given = {"experts": paths, **SIZES, "alphas": list(AUTO_ALPHAS), "limit": SHORT["probe_prompts"], "output": tmp_path / "probe"}
    alone = probe(checked(ProbeConfig, given), "gopd-merge probe").document
    scale = json.loads((folder / "scale.json").read_text())
    assert (scale["chosen"], scale["why"], scale["points"]) == (alone["chosen"], alone["why"], alone["points"])
    assert len({point["length_mean"] for point in scale["points"]}) > 2  # the control: an α changes what is said


def test_repeating_from_merge_json_takes_the_same_alpha_without_probing_again(merged, run, monkeypatch):
    folder, _ = merged
    monkeypatch.setattr(auto, "probe_on", None)
    done = run("--config", folder / "merge.json", "--no-eval", "--output", "again.lora")
    assert done.returncode == 0, done.stderr
    assert "chosen" not in done.stdout
    again = done.args / "again.lora"
    assert (again / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    assert json.loads((again / "merge.json").read_text())["config"]["alpha"] == json.loads((folder / "scale.json").read_text())["chosen"]
    with pytest.raises(TypeError):  # the control: with auto it would have been called
        run("--config", folder / "merge.json", "--no-eval", "--alpha", "auto", "--output", "other.lora")


def test_the_target_that_is_probed_is_the_one_that_is_trained(adapters, tmp_path):
    """A bound of next to nothing leaves the base at every α, so that all of them say the same."""
    paths = {domain: str(adapters / f"{domain}.lora") for domain in DOMAINS}
    options = {"experts": paths, **SHORT, "probe_prompts": 3, "alpha": "auto", "eval": False, "bound": 1e-9}
    config = make_config(options | {"output": tmp_path / "bound.lora"})
    result = pipeline.merge(config)
    assert "chosen" in summary(result, config)  # without a table too
    lengths = {domain: {p["length_mean"] for p in result.scale["points"] if p["domain"] == domain} for domain in DOMAINS}
    assert {domain: len(found) for domain, found in lengths.items()} == {"code": 1, "math": 1}
    header = json.loads(next((result.output / "probe" / "answers").glob("own.math.3.target-alpha-2*")).read_text().splitlines()[0])
    assert header["parameters"] == {"alpha": 2.0, "bound": 1e-9}


@pytest.fixture
def refused(run, monkeypatch):
    """The line with which a merge with --alpha auto is refused; nothing may be loaded for it."""
    monkeypatch.setattr(bases, "load_base", None)
    monkeypatch.setattr("gopd_merge.casting.load_base", None)

    def call(*arguments, **options):
        lines = set()
        for command in ([], ["plan"]):
            done = run(*command, *arguments, "--alpha", "auto", "--output", "refused.lora", **{**SHORT, **options})
            assert done.returncode == 2, done.stderr
            lines.add(done.stderr.splitlines()[-1].removeprefix("gopd-merge: "))
        (line,) = lines
        return line

    return call


def test_an_expert_without_validation_questions_is_refused_before_anything_loads(refused, math_copy, code_copy):
    (math_copy / "prompts" / "validation.jsonl").unlink()
    line = refused("--experts", math_copy, code_copy)
    assert line.startswith("math: no validation questions to choose α on")
    assert "or give α as a number" in line


def test_an_expert_that_cannot_run_beside_the_base_is_refused_before_anything_loads(refused, math_copy, make_expert):
    path, _ = make_expert("dora", r=4, target_modules=["q_proj"], use_dora=True)
    line = refused("--experts", math_copy, path, "--prompts", f"dora={math_copy / 'prompts' / 'train.jsonl'}")
    assert "dora.lora: it uses DoRA, so it cannot run beside the base in one batch" in line


def test_a_validation_question_that_the_base_cannot_hold_is_refused(refused, math_copy, code_copy):
    file = math_copy / "prompts" / "validation.jsonl"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(rows[0]) | {"prompt": "9 " * 3000}), *rows[1:]]) + "\n")
    line = refused("--experts", math_copy, code_copy, probe_prompts=1000)
    assert "of math's validation has" in line
    assert "more than the base's context" in line


# what it takes


@pytest.fixture(scope="module")
def planned(adapters):
    """planned(**options) -> the forecast of a merge."""

    def make(**options):
        paths = {domain: str(adapters / f"{domain}.lora") for domain in DOMAINS}
        config = make_config({"experts": paths, **SHORT, "alpha": "auto", **options})
        return Forecast(config, read_inputs(config))

    return make


def test_the_plan_counts_the_questions_and_the_two_rows_of_each(planned):
    plan = planned(eval=False)
    assert plan.work.probed_answers == len(AUTO_ALPHAS) * 2 * SHORT["probe_prompts"]
    phases = plan.memory.phases
    assert phases["probe"] > 1.6 * phases["rollout"]
    assert f"{plan.work.probed_answers} answers of the targets to choose α, then 2 steps" in plan_text(plan.document())
    fixed = planned(alpha=2.0, eval=False)
    assert "probe" not in fixed.memory.phases
    assert "to choose" not in plan_text(fixed.document())


def test_a_probe_may_be_what_needs_most(planned):
    memory = planned(batch_size=32, micro_batch_size=1, chunk_tokens=64, max_new_tokens=200, eval=False).memory
    assert memory.peak_phase == "probe"
    assert memory.peak == memory.always + memory.phases["probe"]


def test_a_mixed_batch_takes_what_is_predicted(adapters, tmp_path):
    paths = {domain: str(adapters / f"{domain}.lora") for domain in DOMAINS}
    config = make_config({"experts": paths, "quantize": "none", "lora_rank": 4})
    inputs = read_inputs(config)
    backbone = load_backbone(config, inputs)
    prompts = ["Tom has 5 pens. Tom loses 2. How many pens are left?"] * 12
    length = len(backbone.tokenizer.apply_chat_template([{"role": "user", "content": prompts[0]}], add_generation_prompt=True)["input_ids"])
    roles, mix = expert_and_base("math", 2.0)

    def endless(logits):
        """Nothing ends: the length is the one that was planned."""
        mixed = mix(logits)
        mixed[:, backbone.tokenizer.all_special_ids] = -torch.inf
        return mixed

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        rollout = generate_mixture(backbone, roles, endless, prompts, ["math"] * 12, 60, range(12))
    assert rollout.response_mask.all()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    sizes = Sizes(batch_size=12, micro_batch_size=1, chunk_tokens=1, prompt_tokens=length, max_new_tokens=60)
    options = (inputs.experts, 4, inputs.targets, "none", "cpu")
    assert Footprint(str(adapters / "tiny-base"), *options).mixture(sizes) == pytest.approx(peak, rel=0.15)
    assert Counted(read_decoder(adapters / "tiny-base"), *options).mixture(sizes) == pytest.approx(peak, rel=0.15)


def test_a_plan_that_measures_steps_counts_the_probe_too(run, experts):
    done = run("plan", *experts, "--alpha", "auto", "--calibrate", "--json", **SHORT)
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout)["seconds"]
    assert seconds["probe"] > 0
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"), abs=0.5)
