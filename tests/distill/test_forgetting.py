"""What `--method alternate` reports of forgetting, against models that PEFT alone loads, and that measuring leaves no trace."""

import json

import pytest
import torch

from gopd_merge.casting import load_backbone
from gopd_merge.config import make_config
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.forgetting import Forgetting, Sizes, Turn, forgetting_text
from gopd_merge.distill.rollout import generate, row_seeds
from gopd_merge.distill.target import Scale
from gopd_merge.distillation import METRICS, train_student
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent
from gopd_merge.usage import Clock

ALPHAS = {"math": 1.5, "code": 1.25}
PROMPTS = ["Tom has 5 pens. Tom loses 2. How many pens are left?", "Ana has 12 books. Ana buys 2 boxes of 4. How many books has Ana?"]


def test_the_distance_is_that_of_models_loaded_apart(float_backbone, adapters, tmp_path, apart, log_probs_apart, step_apart):
    cast = plain_cast(float_backbone, ["math", "code"])
    found = Forgetting(cast, {"math": Turn(0, PROMPTS)}, Sizes(24, 1, 7, 0)).after(0, Scale(ALPHAS))["math"]
    seeds = row_seeds("forgetting", "math", count=2)
    rollout = generate(float_backbone, "student", PROMPTS, ["math"] * 2, 24, seeds, vocabulary=cast.vocabulary)
    base = adapters / "tiny-base"
    with torch.no_grad():
        teacher = log_probs_apart(apart(base, adapters / "math.lora"), rollout, cast.vocabulary)
        reference = log_probs_apart(apart(base), rollout, cast.vocabulary)
    log_q = (1.5 * teacher - 0.5 * reference).log_softmax(-1)
    kl, _ = step_apart(float_backbone, base, rollout, log_q)
    assert found["after_its_turn"] == found["at_the_end"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["at_the_end"] != pytest.approx(float(step_apart(float_backbone, base, rollout, reference)[0].mean()), rel=1e-2)


def test_a_domain_is_looked_at_after_its_own_last_step_and_at_the_end(float_backbone):
    """The student changes in between, and what is told of the first domain changes with it."""
    turns = {"math": Turn(3, PROMPTS), "code": Turn(5, ["Write f(xs): reverse it and return the sum."])}
    forgetting = Forgetting(plain_cast(float_backbone, ["math", "code"]), turns, Sizes(8, 2, 1024, 0))
    parameters = float_backbone.student_parameters()
    state = torch.get_rng_state()
    for step in range(5):
        assert forgetting.after(step, Scale(ALPHAS)) == {}
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter *= 2
        found = forgetting.after(5, Scale(ALPHAS))
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
    assert torch.equal(torch.get_rng_state(), state)
    assert found["math"]["at_the_end"] != pytest.approx(found["math"]["after_its_turn"], rel=0.05)
    assert found["code"]["at_the_end"] == found["code"]["after_its_turn"]
    assert f"math {found['math']['after_its_turn']:.4f} after its own steps" in forgetting_text(found)


class Notes(Silent):
    def __init__(self):
        self.heard = []

    def note(self, text):
        self.heard.append(text)


def test_a_run_one_after_the_other_says_what_it_forgot_and_another_run_says_nothing(adapters, tmp_path):
    experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
    given = {"experts": experts, "steps": 4, "batch_size": 4, "max_new_tokens": 16, "eval": False, "learning_rate": 0.01}
    heard, last = {}, {}
    for method in ("alternate", "exopd"):
        config = make_config(given | {"method": method})
        inputs = read_inputs(config)
        (tmp_path / method).mkdir()
        notes = Notes()
        _, metrics, _ = train_student(load_backbone(config, inputs), config, inputs, tmp_path / method, Clock(), notes)
        heard[method] = [text for text in notes.heard if text.startswith("one after the other")]
        last[method] = json.loads((tmp_path / method / METRICS).read_text().splitlines()[-1])
        assert last[method].get("forgetting") == metrics.get("forgetting")
    assert set(last["alternate"]["forgetting"]) == {"math", "code"}
    assert heard["alternate"] == [forgetting_text(last["alternate"]["forgetting"])]
    assert heard["exopd"] == []
    assert "forgetting" not in last["exopd"]
