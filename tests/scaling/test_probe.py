"""The probe on the embedded experts: its answers, its choice, its document, and going on where it was stopped."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from gopd_merge.casting import load_roles
from gopd_merge.cli import build_app
from gopd_merge.cli.probing import merge_command
from gopd_merge.comparison.contenders import BASE, of_experts
from gopd_merge.comparison.measuring import Setup, measure
from gopd_merge.config import make_config
from gopd_merge.distill.mixture import expert_and_base
from gopd_merge.errors import InputError
from gopd_merge.evaluate.validation import load_validation
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.intake import read_experts
from gopd_merge.options import checked
from gopd_merge.probe_config import ProbeConfig
from gopd_merge.report.progress import Silent
from gopd_merge.report.scale import read_scale
from gopd_merge.scaling.probe import probe, probe_on
from gopd_merge.settings import identity

COMMAND = Path(sys.executable).with_name("gopd-merge")
OPTIONS = {"alphas": "0,1,2", "limit": 10, "batch_size": 5, "quantize": "none"}


def read(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def without_seconds(path):
    return [row | {"seconds": 0} for row in read(path)]


@pytest.fixture(scope="module")
def run(adapters):
    """Probe in this process with few questions: run(output, **options) -> Probe."""

    def probed(output, **options):
        experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
        return probe(checked(ProbeConfig, {"experts": experts, **OPTIONS, "output": output, **options}), "gopd-merge probe")

    return probed


@pytest.fixture(scope="module")
def probed(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("probes") / "probe")


@pytest.fixture(scope="module")
def loaded(adapters):
    """Experts, base and backbone, as the probe loads them."""
    experts = read_experts({domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")})
    base = resolve_base(experts, None, "all", "none")
    return experts, base, load_roles(base, experts, "none", "cpu", 4, ["q_proj"], 0)


def test_scores_are_what_a_recount_of_the_stored_answers_gives(probed, adapters):
    questions = read(adapters / "math.lora" / "prompts" / "validation.jsonl")
    points = [point for point in probed.document["points"] if point["domain"] == "math"]
    assert [point["alpha"] for point in points] == [0.0, 1.0, 2.0]
    for point in points:
        header, *answers = read(probed.folder / "answers" / f"own.math.10.target-alpha-{point['alpha']:g}.jsonl")
        assert header["parameters"] == {"alpha": point["alpha"]}
        assert header["split"] == "validation"
        assert len(answers) == point["n"] == 10
        right = 0
        for answer in answers:
            found = re.findall(r"####[ ]*(-?\d+)\b", answer["text"])
            asked = questions[int(answer["id"].rsplit("/", 1)[1])]
            right += bool(found) and Fraction(found[-1]) == Fraction(asked["answer"])
        assert point["score"] == right / 10
        assert point["low"] < point["score"] < point["high"]
        assert point["length_mean"] == sum(answer["length"] for answer in answers) / 10
    ids = [[answer["id"] for answer in read(path)[1:]] for path in sorted((probed.folder / "answers").glob("own.math*"))]
    assert ids[0] == ids[1] == ids[2]  # so that they can be paired


def test_alpha_1_answers_as_the_expert_and_0_as_the_base(probed, loaded, tmp_path):
    """Word for word, as `gopd-merge eval` would ask them with the same seed."""
    experts, base, backbone = loaded
    setup = Setup(tmp_path, identity(base, experts, "none"), 0, 5)
    (questions,) = load_validation({"math": experts[1].path}, limit=10)
    assert experts[1].domain == "math"
    texts = {}
    for alpha, contender in ((0, BASE), (1, of_experts(experts)[1])):
        alone = measure(backbone, contender, questions, setup)
        texts[alpha] = [answer.text for answer in alone]
        assert texts[alpha] == [row["text"] for row in read(probed.folder / "answers" / f"own.math.10.target-alpha-{alpha}.jsonl")[1:]]
    assert texts[0] != texts[1]


def test_what_it_leaves_can_be_read_and_is_drawn(probed):
    scale = read_scale(probed.folder / "scale.json")
    assert scale.made_by == "probe"
    assert set(scale.chosen) == set(scale.why) == {"math", "code"}
    assert len(scale.points) == 6
    assert json.loads((probed.folder / "scale.json").read_text()) == json.loads(json.dumps(probed.document))
    assert set(probed.document["seconds"]) == {"load", "answer", "total"}
    assert [len(one["sha256"]) for one in probed.document["inputs"].values()] == [64, 64]
    for domain, alpha in scale.chosen.items():
        (row,) = re.findall(rf"{domain}: the target.*?\n(?:.*\n)*?(  {alpha:g} .*chosen)\n", probed.picture + "\n")
        assert "●" in row
        assert f"{domain}: {scale.why[domain]}" in probed.picture


def test_a_probe_that_was_cut_off_goes_on_with_the_same_answers(run, probed, tmp_path):
    copy = shutil.copytree(probed.folder, tmp_path / "cut")
    (copy / "scale.json").unlink()
    first, second = copy / "answers" / "own.math.10.target-alpha-1.jsonl", copy / "answers" / "own.math.10.target-alpha-2.jsonl"
    lines = first.read_bytes().split(b"\n")
    first.write_bytes(b"\n".join(lines[:8]) + b'\n{"id": "own/math/validation/1", "sam')  # one batch, two more, and a torn one
    kept = b"\n".join(lines[:6])
    second.unlink()
    again = run(copy)
    assert first.read_bytes().startswith(kept)
    for path in (probed.folder / "answers").iterdir():
        assert without_seconds(copy / "answers" / path.name) == without_seconds(path)
    assert again.document["points"] == probed.document["points"]
    assert again.document["chosen"] == probed.document["chosen"]


def test_answers_of_other_settings_are_not_taken(run, probed, loaded, tmp_path):
    experts, base, backbone = loaded
    copy = shutil.copytree(probed.folder, tmp_path / "other")
    with pytest.raises(InputError, match=r"answers a run with seed 0, this one has 1.*--overwrite"):
        run(copy, seed=1)
    setup = Setup(copy, identity(base, experts, "none"), 0, 5)
    questions = load_validation({"math": experts[1].path}, limit=10)
    with pytest.raises(InputError, match=r"parameters \{'alpha': 2.0\}, this one has \{'alpha': 2.0, 'bound': 1.0\}"):
        probe_on(backbone, questions, [2.0], setup, Silent(), expert_and_base, {"bound": 1.0})
    assert [p.score for p in probe_on(backbone, questions, [2.0], setup, Silent()).points] == [
        p["score"] for p in probed.document["points"] if (p["domain"], p["alpha"]) == ("math", 2.0)
    ]
    before = probed.document["points"]
    assert run(copy, seed=1, overwrite=True, alphas="1", limit=3).document["points"] != before


def test_an_open_domain_is_measured_and_its_alpha_is_left_to_judgement(run, tmp_path):
    found = run(tmp_path / "probe", suite="open", alphas="0,2", limit=4, max_new_tokens=16)
    assert found.document["chosen"] == {}
    assert all("α is not chosen" in why for why in found.document["why"].values())
    rewards = {(p["domain"], p["alpha"]): p["score"] for p in found.document["points"]}
    assert {p["metric"] for p in found.document["points"]} == {"expert_reward"}
    assert rewards["math", 2.0] > rewards["math", 0.0]  # that is why
    assert "α is not chosen" in found.picture


def test_questions_of_several_suites_are_pooled_for_the_choice(run, adapters, tmp_path):
    extra = tmp_path / "extra.jsonl"
    rows = read(adapters / "math.lora" / "prompts" / "test.jsonl")[:6]
    extra.write_text("".join(json.dumps(row | {"split": "validation"}) + "\n" for row in rows))
    found = run(tmp_path / "probe", suite=["own", f"math={extra}"], alphas="1,2", limit=4, max_new_tokens=48)
    assert {(p["suite"], p["domain"]) for p in found.document["points"]} == {("own", "math"), ("extra.jsonl", "math"), ("own", "code")}
    assert " of 8 questions" in found.document["why"]["math"]
    assert " of 4 questions" in found.document["why"]["code"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alphas": "1,two"}, "--alphas two is not a number; expected 0 or more, such as 1,1.5,2"),
        ({"alphas": "-1"}, "--alphas -1 must be finite and 0 or more; 0 is the base"),
        ({"alphas": ["1", "nan"]}, "--alphas nan must be finite"),
        ({"alphas": "1,1.0"}, "--alphas 1,1 names a value twice; name each once"),
        ({"alphas": ","}, "holds no number; give some of 0 or more"),
        ({"suite": "own,own"}, "--suite own,own names a suite twice"),
        ({"suite": "owm"}, "owm: no such suite; use"),
        (
            {"suite": "own,law=x.jsonl"},
            "law=x.jsonl: asks in the domain law, the experts are code and math; name the expert that it is for",
        ),
        ({"experts": {}}, "experts: none given; name at least one"),
        ({"experts": {"2nd": "x"}}, "'2nd' cannot name a domain"),
        ({"limit": 0}, "--limit 0: input should be greater than or equal to 1"),
        ({"max_new_tokens": 4000}, "that is more than the base's context"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_a_line(run, tmp_path, options, named):
    with pytest.raises(InputError) as error:
        run(tmp_path / "probe", **options)
    assert named in error.value.lines[0]
    assert len(error.value.lines) == 1
    assert not (tmp_path / "probe").exists()


def test_a_domain_without_validation_questions_is_refused_with_the_way_out(math_copy, code_copy, tmp_path):
    (math_copy / "prompts" / "validation.jsonl").unlink()
    experts = {"math": str(math_copy), "code": str(code_copy)}
    with pytest.raises(InputError, match=r"math: no validation questions .*validation.jsonl is missing\).*--suite own,math=FILE.jsonl"):
        probe(checked(ProbeConfig, {"experts": experts, "output": tmp_path / "probe"}), "")
    rows = [{"prompt": "Add 3 and 4.", "answer": "7", "split": "validation"}] * 1
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        **OPTIONS,
        "experts": experts,
        "output": tmp_path / "probe",
        "suite": f"own,math={tmp_path / 'math.jsonl'}",
        "limit": 2,
        "max_new_tokens": 24,
    }
    assert set(probe(checked(ProbeConfig, options | {"alphas": "1"}), "").document["chosen"]) == {"math", "code"}
    with (code_copy / "prompts" / "validation.jsonl").open("w") as file:
        file.write('{"prompt": "Write a poem."}\n')
    with pytest.raises(InputError, match="give each row"):
        probe(checked(ProbeConfig, options), "")


def test_a_suite_without_validation_questions_is_refused(run, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "Add 3 and 4.", "result": "7"}\n')
    (tmp_path / "q.yaml").write_text(
        "{name: q, about: sums, licence: none, domain: math, data: {file: q.jsonl}, splits: {test: train}, "
        "item: {prompt: '{{ question }}', answer: '{{ result }}'}}"
    )
    with pytest.raises(InputError, match=r"q.yaml: has no validation questions to choose α on; leave it out of --suite"):
        run(tmp_path / "probe", suite=f"own,{tmp_path / 'q.yaml'}")


def test_an_expert_that_cannot_share_a_batch_is_refused_before_anything_loads(make_expert, tmp_path):
    path, _ = make_expert("dora", r=4, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(
        InputError, match=r"dora.lora: it uses DoRA, so it cannot run beside the base.*; choose α by gopd-merge sweep"
    ) as error:
        probe(checked(ProbeConfig, {"experts": [path], "output": tmp_path / "probe"}), "")
    assert len(error.value.lines) == 1
    assert not (tmp_path / "probe").exists()


@pytest.mark.slow
def test_killed_and_stopped_the_same_command_goes_on_and_ends_with_the_next_command(run, probed, adapters, tmp_path):
    (tmp_path / "adapters").symlink_to(adapters)
    command = [COMMAND, "probe", "--experts", "adapters/math.lora", "adapters/code.lora", "--alphas", "0,1", "2", "--quantize", "none"]
    command += ["--limit", "10", "--batch-size", "5"]
    options = {"cwd": tmp_path, "env": os.environ | {"NO_COLOR": "1"}, "text": True}
    for name, sign, code in (("own.code.10.target-alpha-1", signal.SIGKILL, -9), ("own.math.10.target-alpha-0", signal.SIGINT, 130)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        target = tmp_path / "probe" / "answers" / f"{name}.jsonl"
        while process.poll() is None and not (target.exists() and target.stat().st_size > 1000):
            time.sleep(0.01)
        process.send_signal(sign)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == code, stderr
        assert stdout == ""
    assert stderr.splitlines()[-1] == "gopd-merge: stopped; what was answered is kept, give the same command to go on"
    done = subprocess.run(command, capture_output=True, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    for path in (probed.folder / "answers").iterdir():
        assert without_seconds(tmp_path / "probe" / "answers" / path.name) == without_seconds(path)
    *_, where, following = done.stdout.splitlines()
    chosen = json.loads((tmp_path / "probe" / "scale.json").read_text())["chosen"]
    assert chosen == probed.document["chosen"]
    assert where == "answers and scale.json in probe"
    alphas = f"math={chosen['math']:g} code={chosen['code']:g}"
    assert following == f"next: gopd-merge --experts adapters/math.lora adapters/code.lora --alpha {alphas} --quantize none"
    as_json = subprocess.run([*command, "--json", "--quiet"], capture_output=True, check=False, timeout=300, **options)
    assert json.loads(as_json.stdout)["points"] == probed.document["points"]
    assert as_json.stderr == ""
    refused = subprocess.run([COMMAND, "probe", "--alphas", "1"], capture_output=True, check=False, **options)
    assert refused.returncode == 2
    assert refused.stderr == "gopd-merge: experts: none given; name at least one LoRA adapter: --experts math.lora code.lora\n"


def test_the_next_command_is_the_merge_of_the_same_experts_on_the_same_base():
    experts = {"math": "my loras/math.lora", "style": "you/chat-lora"}
    config = checked(ProbeConfig, {"experts": experts, "base": "b", "device": "cpu"})
    command = merge_command(config, {"math": 1.5})
    assert command == "gopd-merge --experts 'my loras/math.lora' style=you/chat-lora --alpha math=1.5 style=1.25 --base b --device cpu"
    words = shlex.split(command)[1:]
    _, arguments, _ = build_app().parse_args(words, exit_on_error=False, print_error=False)
    merge = make_config(arguments.kwargs)
    assert (merge.experts, merge.alpha, merge.base) == (experts, {"math": 1.5, "style": 1.25}, "b")
