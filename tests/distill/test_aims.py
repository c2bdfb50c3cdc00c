"""Each choice of teacher and reference, from the option to the gradient, against models that were loaded apart and mixed by the formula.

Nothing is shared with the calculation by hand but the rollout: it has one model a role, float64, full projections and plain autograd.
"""

import shutil
from contextlib import contextmanager, suppress
from functools import cache

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from gopd_merge.casting import assembled, load_backbone
from gopd_merge.config import make_config
from gopd_merge.distill.answering import respond
from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale
from gopd_merge.errors import InputError
from gopd_merge.plan import read_inputs

ALPHAS = {"math": 2.0, "code": 1.25}
VOCABULARY = 512  # of the tokenizer; some heads are padded to more
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def places(adapters, tmp_path_factory, make_model, make_lora):
    """Folders by name: the embedded ones, and other adapters and models made for this."""
    folder = tmp_path_factory.mktemp("places")
    found = {"base": adapters / "tiny-base", "math": adapters / "math.lora", "code": adapters / "code.lora"}
    found["prompts"] = folder / "prompts.jsonl"  # short to read; nothing is asked of it
    found["prompts"].write_text('{"prompt": "1 + 1?"}\n')
    found["third"] = make_lora(found["base"], folder / "third.lora", seed=3, r=3, target_modules=LINEAR)
    found["dora"] = make_lora(found["base"], folder / "dora.lora", seed=4, r=2, target_modules=["q_proj", "v_proj"], use_dora=True)
    found["other"] = shutil.copytree(found["base"], folder / "other")
    other = AutoModelForCausalLM.from_pretrained(found["base"], dtype=torch.float32)
    torch.manual_seed(5)
    for parameter in other.parameters():
        parameter.data += 0.05 * parameter.std() * torch.randn_like(parameter)
    other.save_pretrained(found["other"])
    for name, size in {"big": {"hidden_size": 192}, "wide": {"hidden_size": 192, "vocab_size": 520}, "small": {"hidden_size": 64}}.items():
        found[name] = make_model(folder / name, **size)
        for seed, domain in enumerate(("math", "code")):
            place = folder / f"{name}-{domain}.lora"
            found[f"{name}-{domain}"] = make_lora(found[name], place, seed=seed, r=2 + seed, target_modules=LINEAR)
    found["headed"] = make_lora(found["big"], folder / "headed.lora", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    return found


@pytest.fixture(scope="module")
def model_apart(places, apart):
    """model_apart(name): `start` is the base with the experts' average added to its weights, `start:x` with the update of x; `a+b` is
    adapter b on model a."""

    @cache
    def load(name):
        if not name.startswith("start"):
            base, _, adapter = name.rpartition("+")
            return apart(places[base], places[adapter]) if base else apart(places[adapter])
        adapters = name.removeprefix("start").lstrip(":").split(",") if ":" in name else ["math", "code"]
        model = apart(places["base"])
        for adapter in adapters:
            for module_name, module in apart(places["base"], places[adapter]).named_modules():
                if isinstance(module, LoraLayer):
                    layer = model.get_submodule(module_name.removeprefix("base_model.model."))
                    layer.weight.data += module.get_delta_weight("default").double() / len(adapters)
        return model

    return load


@pytest.fixture
def playing(places):
    """playing(options): the cast of a merge with these options, its student no longer at its start. A place may be named for a folder."""

    def located(value):
        if isinstance(value, dict):
            return {key: located(one) for key, one in value.items()}
        return str(places[value]) if isinstance(value, str) and value in places else value

    @contextmanager
    def play(notes=None, **options):
        given = {"experts": {d: d for d in ALPHAS}, "alpha": ALPHAS, "quantize": "none", "eval": False} | options
        given["prompts"] = {domain: str(places["prompts"]) for domain in ALPHAS}
        config = make_config({key: value if value == "base" and key != "base" else located(value) for key, value in given.items()})
        inputs = read_inputs(config)
        backbone = load_backbone(config, inputs)
        with assembled(backbone, config, inputs, ([] if notes is None else notes).append) as cast:
            with torch.no_grad():
                for index, parameter in enumerate(backbone.student_parameters()):
                    parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            yield cast

    return play


@pytest.fixture(scope="module")
def rollout(float_backbone, questions):
    """The same for all casts: whoever wrote it, everybody scores it."""
    return generate(float_backbone, STUDENT, *questions, 20, range(4))


def on(name):
    """Options of a merge whose experts are on that base, and its teachers by domain."""
    return {"teacher_base": name, "base": "base", "experts": {d: f"{name}-{d}" for d in ALPHAS}}


def teachers(name):
    return {d: f"{name}+{name}-{d}" for d in ALPHAS}


OWN = {d: f"base+{d}" for d in ALPHAS}
CASES = {  # options; π_kl; teacher by domain; π_r
    "default": ({}, "base", OWN, "base"),
    "another adapter as reference": ({"reference": "third"}, "base+third", OWN, "base+third"),
    "an adapter with DoRA as reference": ({"reference": "dora"}, "base+dora", OWN, "base+dora"),
    "another model as reference": ({"reference": "other"}, "other", OWN, "other"),
    "kept close to an adapter": ({"kl_reference": "third"}, "base+third", OWN, "base"),
    "kept close to another model": ({"kl_reference": "other"}, "other", OWN, "base"),
    "kept close to the base, reward against another model": ({"kl_reference": "base", "reference": "other"}, "base", OWN, "other"),
    "kept close to the teacher": ({"kl_reference": "teacher", "reference": "base"}, OWN, OWN, "base"),
    "the student's start": ({"start": "average", "reference": "student-start"}, "start", OWN, "start"),
    "kept close to its start": ({"start": "average", "kl_reference": "student-start"}, "start", OWN, "base"),
    "its start is an adapter": ({"start": "third", "kl_reference": "student-start"}, "start:third", OWN, "base"),
    "a larger base": (on("big"), "big", teachers("big"), "big"),
    "a smaller base": (on("small"), "small", teachers("small"), "small"),
    "a larger base, decoupled": (on("big") | {"kl_reference": "base"}, "base", teachers("big"), "big"),
    "a larger base, student's start": (
        on("big") | {"start": "third", "kl_reference": "student-start"},
        "start:third",
        teachers("big"),
        "big",
    ),
    "a larger base, reward against the smaller": (on("big") | {"reference": "base"}, "base", teachers("big"), "base"),
    "a head padded further": (on("wide"), "wide", teachers("wide"), "wide"),
    "decoupled, a head padded further": (on("wide") | {"kl_reference": "base"}, "base", teachers("wide"), "wide"),
}


def expected_log_q(rollout, model_apart, log_probs_apart, keep, rewards, alphas=ALPHAS):
    """(N, V) log π_kl + Σ w λ (log π_T − log π_r), normalised. `rewards` is (weight, teacher, π_r) each; any role may be one by domain."""
    tokens = [d for d, n in zip(rollout.domains, rollout.response_mask.sum(1).tolist(), strict=True) for _ in range(n)]
    known = {}

    @torch.no_grad()
    def log_probs(role):
        names = {d: role if isinstance(role, str) else role[d] for d in ALPHAS}
        for name in names.values():
            if name not in known:
                known[name] = log_probs_apart(model_apart(name), rollout, VOCABULARY)
        return torch.stack([known[names[domain]][n] for n, domain in enumerate(tokens)])

    alpha = torch.tensor([[alphas[domain]] for domain in tokens], dtype=torch.float64)
    log_q = log_probs(keep)
    for weight, teacher, against in rewards:
        log_q = log_q + weight * alpha * (log_probs(teacher) - log_probs(against))
    return log_q.log_softmax(-1)


def assert_same_step(found, expected):
    (statistics, gradient, _), (kl, expected_gradient) = found, expected
    torch.testing.assert_close(statistics.kl.double(), kl, rtol=1e-3, atol=1e-4)
    assert (gradient - expected_gradient).norm() < 3e-4 * expected_gradient.norm()
    assert expected_gradient.norm() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_the_formula_on_models_loaded_apart(
    case, playing, places, rollout, take_step, step_apart, model_apart, log_probs_apart
):
    options, keep, teacher, against = CASES[case]
    with playing(**options) as cast:
        found = take_step(cast, rollout, Scale(ALPHAS))
        log_q = expected_log_q(rollout, model_apart, log_probs_apart, keep, [(1.0, teacher, against)])
        assert_same_step(found, step_apart(cast.backbone, places["base"], rollout, log_q))
        if case != "default":  # the control: without the options it is another target
            plain = expected_log_q(rollout, model_apart, log_probs_apart, "base", [(1.0, OWN, "base")])
            assert (plain - log_q).abs().mean() > 0.05


def test_two_teachers_at_once_are_a_product_with_weights(playing, places, rollout, take_step, step_apart, model_apart, log_probs_apart):
    with playing(rotate="all", alpha=1.25, weights={"math": 0.5}) as cast:
        found = take_step(cast, rollout, Scale(dict.fromkeys(ALPHAS, 1.25)))
        spec = (
            rollout,
            model_apart,
            log_probs_apart,
            "base",
            [(0.5, OWN["math"], "base"), (1.0, OWN["code"], "base")],
            dict.fromkeys(ALPHAS, 1.25),
        )
        log_q = expected_log_q(*spec)
        assert_same_step(found, step_apart(cast.backbone, places["base"], rollout, log_q))
    one_each = expected_log_q(*spec[:4], [(1.0, OWN, "base")], spec[-1])  # the controls: one teacher a prompt; equal weights
    equal = expected_log_q(*spec[:4], [(1.0, OWN[d], "base") for d in ALPHAS], spec[-1])
    assert min((log_q - other).abs().mean() for other in (one_each, equal)) > 0.05


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, {"base"}),
        (on("big"), {"teacher-base"}),  # teacher and reference are both there
        (on("big") | {"kl_reference": "base"}, {"base", "teacher-base"}),
        ({"kl_reference": "other"}, {"base", "other"}),
    ],
)
def test_a_target_is_one_projection_a_model(options, heads, playing, places, rollout, take_step):
    with playing(**options) as cast:
        _, _, target = take_step(cast, rollout, Scale(ALPHAS))
    assert set(target.mixed) == {str(places["other"]) if head == "other" else head for head in heads}
    assert not target.apart


def test_an_expert_with_a_head_of_its_own_teaches_from_a_larger_base(
    playing, places, rollout, take_step, step_apart, model_apart, log_probs_apart
):
    """It is the first adapter there, so it is on while nobody says otherwise: without a student there is none to be on instead."""
    experts = {"experts": {"math": "big-math", "code": "headed"}}
    with playing(**on("big") | experts) as cast:
        found = take_step(cast, rollout, Scale(ALPHAS))
        teachers = {"math": "big+big-math", "code": "big+headed"}
        log_q = expected_log_q(rollout, model_apart, log_probs_apart, "big", [(1.0, teachers, "big")])
        assert_same_step(found, step_apart(cast.backbone, places["base"], rollout, log_q))
        assert found[2].apart


def test_a_student_says_no_token_that_its_teacher_does_not_have(playing, questions, take_step):
    """A head that is padded further than the teacher's: of 520 tokens the last 8 are nobody's."""
    prompts, domains = (part * 8 for part in questions)
    with playing(**on("big") | {"base": "wide"}) as cast:
        assert (cast.backbone.vocabulary, cast.vocabulary) == (520, 512)
        told = respond(cast, "exopd", prompts, domains, [None] * len(prompts), 20, range(len(prompts)))
        assert told.response_ids().max() < 512
        statistics, _, _ = take_step(cast, told, Scale(ALPHAS))
        assert statistics.kl.isfinite().all()
        free = generate(cast.backbone, STUDENT, prompts, domains, 20, range(len(prompts)))  # the control
        assert free.response_ids().max() >= 512


def test_hidden_states_of_different_models_are_not_compared(playing):
    for options in ({"reference": "other"}, {"kl_reference": "other"}):
        with pytest.raises(InputError, match=r"other: is another model, but --estimator hidden"), playing(estimator="hidden", **options):
            pass


@pytest.mark.parametrize(
    ("options", "cancels"),
    [
        ({"reference": "teacher"}, True),
        ({"reference": "teacher", "kl_reference": "teacher"}, True),
        ({"kl_reference": "teacher"}, False),  # log π_T + λ (log π_T − log π_0)
        ({}, False),
    ],
)
def test_alpha_is_said_to_cancel_only_where_it_does(options, cancels, playing):
    notes = []
    with playing(notes, **options) as cast:
        one, other = (dict(cast.aims["math"].coefficients([alpha])) for alpha in (1.5, 3.0))
    assert (one == other) == cancels
    assert notes == (["the teacher is its own reference: α cancels, this is plain OPD"] if cancels else [])


@pytest.mark.parametrize("fails", [False, True])
def test_a_cast_leaves_nothing_on_the_backbone(fails, playing):
    options = {"reference": "dora", "start": "average"}
    with suppress(ValueError), playing(**options) as cast:
        backbone = cast.backbone
        assert {"reference0", "start"} <= set(backbone.peft.peft_config)
        assert not backbone.can_mix
        if fails:
            raise ValueError("on purpose")
    assert set(backbone.peft.peft_config) == {"expert-code", "expert-math", STUDENT}
    assert backbone.can_mix
