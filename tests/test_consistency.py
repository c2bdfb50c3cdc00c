"""Options that mean nothing together are refused by name, and the way out that the line gives is one."""

import pytest

from gopd_merge import consistency
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.errors import InputError
from gopd_merge.options import checked
from gopd_merge.probe_config import ProbeConfig
from gopd_merge.sweep_config import SweepConfig

EXPERTS = {"math": "math.lora", "code": "code.lora"}
SERVER = {"experts": {"math": "http://host:8000/v1#math", "code": "code.lora"}, "estimator": "topk"}
LARGER = {"teacher_base": "big", "base": "small"}
GONE = object()  # an option that is left out

# options that contradict each other; what the line must name; the ways out that it gives, as changes of those options
REFUSED = [
    ({"method": "opd", "alpha": 2}, ["--method opd", "--alpha 2"], [{"alpha": GONE}, {"alpha": 1}]),
    ({"method": "seqkd", "alpha": "auto"}, ["--method seqkd", "--alpha auto"], [{"alpha": GONE}, {"alpha": 1}]),
    ({"method": "sft", "alpha": {"math": 1, "code": 2}}, ["--method sft", "--alpha"], [{"alpha": GONE}, {"alpha": 1}]),
    (
        {"method": "sft", "prompts": {"math": "synth", "code": "code.jsonl"}},
        ["--method sft", "--prompts synth"],
        [{"prompts": GONE}, {"prompts": {"math": "math.jsonl"}}],
    ),
    ({"method": "seqkd", "estimator": "sampled"}, ["--method seqkd", "--estimator sampled"], [{"estimator": GONE}]),
    ({"method": "sft", "reference": "teacher"}, ["--method sft", "--reference"], [{"reference": GONE}]),
    ({"method": "sft", "kl_reference": "base"}, ["--method sft", "--kl-reference"], [{"kl_reference": GONE}]),
    ({"method": "seqkd", "bound": 2.0}, ["--method seqkd", "--bound"], [{"bound": GONE}]),
    ({"method": "seqkd", "weights": {"math": 0.5}}, ["--method seqkd", "--weights"], [{"weights": GONE}]),
    ({"method": "seqkd", "adaptive": "token"}, ["--method seqkd", "--adaptive"], [{"adaptive": GONE}]),
    ({"method": "opd", "alpha_from": 2.0}, ["--method opd", "--alpha-from"], [{"alpha_from": GONE}]),
    ({"method": "opd", "adaptive": "run"}, ["--method opd", "--adaptive"], [{"adaptive": GONE}]),
    ({"method": "opd", "deterministic": 0.99}, ["--method opd", "--deterministic"], [{"deterministic": GONE}]),
    ({"method": "rkl", "estimator": "sampled"}, ["--method rkl", "--estimator sampled"], [{"estimator": "full"}]),
    ({"method": "rkl", "rollout": "vllm"}, ["--method rkl", "--rollout vllm"], [{"rollout": GONE}, {"rollout": "hf"}]),
    ({"method": "sft", "rollout": "http://host:8000/v1"}, ["--method sft", "--rollout http://host:8000/v1"], [{"rollout": GONE}]),
    ({"method": "alternate", "rotate": "step"}, ["--method alternate", "--rotate step"], [{"rotate": GONE}]),
    ({"method": "rkl", "rotate": "all"}, ["--method rkl", "--rotate all"], [{"rotate": GONE}]),
    ({"method": "alternate", "steps": 1}, ["--method alternate", "--steps 1"], [{"steps": 2}]),
    ({"horizon": 97}, ["--horizon 97", "--max-new-tokens 96"], [{"horizon": GONE}, {"max_new_tokens": 97}]),
    ({"shard_base": True}, ["--shard-base", "--no-eval"], [{"eval": False}, {"shard_base": GONE}]),
    ({"balance": True, "rotate": "step"}, ["--balance", "--rotate"], [{"rotate": GONE}]),
    ({"balance": True, "method": "alternate"}, ["--balance", "--method alternate"], [{"method": GONE}]),
    ({"alpha": "auto", "adaptive": "run"}, ["--alpha auto", "--adaptive run"], [{"alpha": GONE}, {"adaptive": GONE}]),
    ({"alpha": "auto", "alpha_from": 1.0}, ["--alpha auto", "--alpha-from"], [{"alpha": GONE}, {"alpha_from": GONE}]),
    ({"alpha_from": 1.0, "adaptive": "run"}, ["--alpha-from", "--adaptive run"], [{"alpha_from": GONE}, {"adaptive": GONE}]),
    ({"alpha": "auto", "reference": "student-start"}, ["--alpha auto", "reference"], [{"alpha": 1.5}]),
    ({"alpha": "auto", "kl_reference": "other.lora"}, ["--alpha auto", "reference"], [{"alpha": 1.5}]),
    ({"alpha": 0.5, "adaptive": "run"}, ["--adaptive run", "--alpha 0.5", "--alpha-max 3"], [{"alpha": 1}, {"alpha": 3}]),
    ({"alpha": {"math": 1, "code": 4}, "adaptive": "run"}, ["--adaptive run", "--alpha 4"], [{"alpha": {"math": 1, "code": 3}}]),
    ({"adaptive": "run", "alpha_max": 1.1}, ["--adaptive run", "--alpha 1.25", "--alpha-max 1.1"], [{"alpha": 1.1}]),
    ({"reference": "teacher", "bound": 2.0}, ["--reference teacher", "--bound"], [{"bound": GONE}]),
    ({"reference": "teacher", "alpha_from": 1.0}, ["--reference teacher", "--alpha-from"], [{"alpha_from": GONE}]),
    (
        {"reference": "teacher", "kl_reference": "base"},
        ["--reference teacher", "--kl-reference base"],
        [{"reference": GONE}, {"kl_reference": GONE}],
    ),
    ({"rotate": "all", "reference": "teacher"}, ["--rotate all", "teacher"], [{"reference": GONE}]),
    ({"rotate": "all", "kl_reference": "teacher"}, ["--rotate all", "teacher"], [{"kl_reference": GONE}]),
    (
        {"rotate": "all", "alpha": {"math": 1, "code": 2}},
        ["--rotate all", "--alpha"],
        [{"alpha": 2, "weights": {"math": 0.5}}],
    ),
    ({"rotate": "all", "alpha": "auto"}, ["--rotate all", "--alpha auto"], [{"alpha": 2}]),
    ({"estimator": "hidden", "bound": 2.0}, ["--estimator hidden", "--bound"], [{"bound": GONE}]),
    ({"estimator": "hidden", **LARGER}, ["--estimator hidden", "--teacher-base"], [{"teacher_base": GONE}]),
    ({"teacher_base": "big"}, ["--teacher-base", "--base"], [{"base": "small"}]),
    ({**LARGER, "start": "ties"}, ["--start ties", "--teacher-base"], [{"start": "none"}, {"start": "you/adapter-of-small"}]),
    ({"reference": "teacher-base"}, ["teacher-base as a reference", "--teacher-base"], [LARGER, {"reference": "base"}]),
    ({"kl_reference": "teacher-base"}, ["teacher-base as a reference", "--teacher-base"], [LARGER, {"kl_reference": "base"}]),
    ({**LARGER, "alpha": "auto"}, ["--alpha auto", "--teacher-base"], [{"alpha": 2}]),
    (SERVER | {"estimator": "full"}, ["math: a teacher behind a server"], [{"estimator": "topk"}, {"estimator": "sampled"}]),
    (SERVER | {"estimator": "forward"}, ["math: a teacher behind a server"], [{"estimator": "topk"}, {"estimator": "sampled"}]),
    (SERVER | {"adaptive": "token"}, ["a teacher behind a server", "--adaptive token"], [{"adaptive": GONE}]),
    (SERVER | {"deterministic": 0.9}, ["a teacher behind a server", "--deterministic"], [{"deterministic": GONE}]),
    (SERVER | {"rotate": "all"}, ["a teacher behind a server", "--rotate all"], [{"rotate": GONE}]),
    (SERVER | {"method": "rkl"}, ["a teacher behind a server", "--method rkl"], [{"method": GONE}]),
    (SERVER | {"kl_reference": "student-start"}, ["a teacher behind a server", "--kl-reference"], [{"kl_reference": GONE}]),
    (SERVER | {"reference": "teacher"}, ["a teacher behind a server", "--reference teacher"], [{"reference": GONE}]),
    (
        SERVER | {"weights": {"code": 0.5}},
        ["a teacher behind a server", "--weights"],
        [{"weights": GONE, "alpha": {"math": 2, "code": 1}}],
    ),
    (SERVER | {"alpha": "auto"}, ["a teacher behind a server", "--alpha auto"], [{"alpha": 2}]),
]

# what stands beside a refusal and is allowed
ALLOWED = [
    {"method": "opd", "alpha": 1, "adaptive": "none", "estimator": "hidden"},
    {"method": "opd", "rotate": "step", "reference": "teacher"},
    {"method": "seqkd", "balance": True, "start": "ties"},
    {"method": "rkl", "estimator": "forward", "alpha": 2, "adaptive": "token"},
    {"method": "opd", "rollout": "http://host:8000/v1", "estimator": "sampled"},
    {"method": "alternate", "steps": 2, "rollout": "vllm", "alpha_from": 1.0, "weights": {"math": 0.5}},
    {"alpha": "auto", "adaptive": "token", "bound": 3.0, "reference": "base", "kl_reference": "base", "rotate": "step"},
    {"alpha": {"math": 1, "code": 3}, "adaptive": "run", "deterministic": 0.99},
    {"reference": "teacher", "kl_reference": "teacher", "alpha": 2},
    {"reference": "base", "kl_reference": "teacher", "bound": 1.0},
    {"rotate": "all", "weights": {"math": 0.5}, "adaptive": "run"},
    {"horizon": 96, "adaptive": "run", "balance": True},
    {"method": "seqkd", "horizon": 8},
    {**LARGER, "reference": "teacher-base", "kl_reference": "base", "alpha_from": 1.0},
    SERVER | {"adaptive": "run", "alpha": {"math": 2, "code": 1}, "balance": True},
    SERVER | {"method": "seqkd", "estimator": "full"},
    SERVER | {"reference": "other-base", "kl_reference": "other-base"},
]


def corrected(options, change):
    return {name: value for name, value in {**options, **change}.items() if value is not GONE}


def named(options):
    return " ".join(f"{name}={value}" for name, value in options.items() if name != "experts")


@pytest.mark.parametrize(("options", "names", "ways"), REFUSED, ids=[named(options) for options, _, _ in REFUSED])
def test_a_contradiction_is_one_line_that_names_both_sides_and_each_way_out_works(options, names, ways):
    with pytest.raises(InputError) as error:
        make_config({"experts": EXPERTS, **options})
    (line,) = error.value.lines
    assert all(name in line for name in names), line
    for change in ways:
        make_config({"experts": EXPERTS, **corrected(options, change)})


def test_every_rule_has_been_broken_here_by_itself():
    rules = [getattr(consistency, name) for name in ("_of_method", "_of_alpha", "_of_teachers", "_of_bases", "_of_remote", "_of_machine")]
    found = {}
    for options, _, _ in REFUSED:
        given = {"experts": EXPERTS, **options}
        if options.get("method") in consistency.COPYING:
            given = {"alpha": 1.0, **given}
        config = MergeConfig.model_construct(**given)
        for rule in rules:
            for number, (broken, _) in enumerate(rule(config)):
                found.setdefault((rule.__name__, number), []).append(broken)
    assert len(found) > 25
    assert [place for place, broken in found.items() if not any(broken)] == []
    assert all(not all(broken) for broken in found.values())


@pytest.mark.parametrize("options", ALLOWED, ids=map(named, ALLOWED))
def test_what_only_looks_like_a_contradiction_passes(options):
    make_config({"experts": EXPERTS, **options})


@pytest.mark.parametrize(("options", "names", "ways"), REFUSED, ids=[named(options) for options, _, _ in REFUSED])
def test_a_sweep_refuses_what_its_merges_would(options, names, ways):
    """With α, where that is part of it, among the values that are swept."""
    given = {"experts": EXPERTS, "steps": 100, **options}
    if "alpha" in options:
        alphas = options["alpha"]
        if alphas == "auto" or isinstance(alphas, dict):
            with pytest.raises(InputError) as error:
                checked(SweepConfig, given)
            assert len(error.value.lines) == 1
            return
        given = {**{name: value for name, value in given.items() if name != "alpha"}, "alphas": [1, alphas]}
    if "steps" in options:
        given = {name: value for name, value in given.items() if name != "steps"} | {"steps_grid": [1, 100]}
    with pytest.raises(InputError) as error:
        checked(SweepConfig, given)
    (line,) = error.value.lines
    assert all(name.partition(" ")[0] in line for name in names), line


def test_a_sweep_of_what_passes_passes():
    for options in ALLOWED:
        given = corrected(options, {"alpha": GONE, "steps": GONE})
        copying = given.get("method") in consistency.COPYING
        many = {"learning_rates": [0.001, 0.002]} if copying else {"alphas": [1, 2]}
        checked(SweepConfig, {"experts": EXPERTS, **given, **many, "steps": 100})


def test_a_probe_refuses_experts_that_it_cannot_sample_before_anything_loads():
    with pytest.raises(InputError) as error:
        checked(ProbeConfig, {"experts": SERVER["experts"]})
    (line,) = error.value.lines
    assert line.startswith("math: a teacher behind a server cannot be sampled beside the base")
    checked(ProbeConfig, {"experts": {"math": "somewhere/http.lora", "code": "code.lora"}})  # the way out: name one that is here
