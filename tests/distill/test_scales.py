"""λ that moves: from token to token against the formulas on models loaded apart, from step to step in the loop itself."""

import json

import numpy as np
import pytest
import torch

from gopd_merge import distillation
from gopd_merge.casting import load_backbone
from gopd_merge.config import make_config
from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.metrics import domain_metrics
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale
from gopd_merge.distill.tilt import PLAIN, Rule
from gopd_merge.distillation import AlphaOfStep, train_student
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent
from gopd_merge.usage import Clock

ALPHAS = {"math": 2.0, "code": 1.5}
RULES = {
    "by token": Rule(by_token=True),
    "deterministic": Rule(deterministic=0.9),
    "bound": Rule(bound=0.5),
    "by token, deterministic": Rule(by_token=True, deterministic=0.9),
    "all": Rule(by_token=True, deterministic=0.9, bound=0.5),
}


@pytest.fixture(scope="module")
def rollout(float_backbone, questions):
    return generate(float_backbone, STUDENT, *questions, 24, range(4))


@pytest.fixture(scope="module")
def cast(float_backbone):
    return plain_cast(float_backbone, ["math", "code"])


@pytest.fixture(scope="module")
def apart_log_probs(rollout, adapters, apart, log_probs_apart):
    """(N, V) log π_T of each token's own teacher and log π_0, as float64 numpy; λ of each token (N,)."""
    tokens = [d for d, n in zip(rollout.domains, rollout.response_mask.sum(1).tolist(), strict=True) for _ in range(n)]
    with torch.no_grad():
        of = {d: log_probs_apart(apart(adapters / "tiny-base", adapters / f"{d}.lora"), rollout, 512) for d in ALPHAS}
        reference = log_probs_apart(apart(adapters / "tiny-base"), rollout, 512).numpy()
    teacher = np.stack([of[d][n].numpy() for n, d in enumerate(tokens)])
    return teacher, reference, np.array([ALPHAS[d] for d in tokens])


def by_formula(teacher, reference, asked, rule):
    """λ of each token and (N, V) log q, in the words of objective.md."""
    alphas, rows = [], []
    for log_t, log_r, alpha in zip(teacher, reference, asked, strict=True):
        if rule.by_token:
            alpha = 1 + (alpha - 1) * np.abs(np.exp(log_t) - np.exp(log_r)).sum() / 2
        if rule.deterministic is not None and np.exp(log_t).max() > rule.deterministic:
            alpha = min(alpha, 1.0)
        ratio = log_t - log_r
        if rule.bound is not None:
            ratio = np.minimum(np.maximum(ratio, -rule.bound), rule.bound)
        log_q = log_r + alpha * ratio
        alphas.append(alpha)
        rows.append(log_q - np.log(np.exp(log_q).sum()))
    return np.array(alphas), np.stack(rows)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_its_formula_on_models_loaded_apart(name, cast, rollout, adapters, apart_log_probs, take_step, step_apart):
    rule = RULES[name]
    statistics, gradient, target = take_step(cast, rollout, Scale(ALPHAS, rule))
    alphas, log_q = by_formula(*apart_log_probs, rule)
    kl, expected = step_apart(cast.backbone, adapters / "tiny-base", rollout, torch.from_numpy(log_q))
    np.testing.assert_allclose(target.alpha, alphas, rtol=1e-4)
    torch.testing.assert_close(statistics.kl.double(), kl, rtol=1e-3, atol=1e-4)
    assert (gradient - expected).norm() < 3e-4 * expected.norm()
    _, plain, _ = take_step(cast, rollout, Scale(ALPHAS))  # the control: without the rule it is another step
    assert (gradient - plain).norm() > 0.05 * plain.norm()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_touches_some_tokens_and_not_others(name, apart_log_probs):
    """What the comparison above rests on."""
    teacher, reference, asked = apart_log_probs
    alphas, _ = by_formula(teacher, reference, asked, RULES[name])
    if RULES[name].moves_alpha:
        assert (alphas < asked - 0.1).any()
        assert (alphas > 1.01).any()
    if RULES[name].bound:
        cut = np.abs(teacher - reference) > RULES[name].bound
        assert 0.01 < cut.mean() < 0.99


@pytest.mark.parametrize(("micro_batch_size", "chunk_tokens"), [(1, 7), (4, 1000), (2, 1)])
@pytest.mark.parametrize("name", ["by token, deterministic", "all"])
def test_micro_batch_and_chunk_size_do_not_change_the_step(name, micro_batch_size, chunk_tokens, cast, rollout, take_step):
    scale = Scale(ALPHAS, RULES[name])
    statistics, gradient, target = take_step(cast, rollout, scale)
    sizes = {"micro_batch_size": micro_batch_size, "chunk_tokens": chunk_tokens}
    other_statistics, other, retarget = take_step(cast, rollout, scale, **sizes)
    torch.testing.assert_close(other_statistics.kl, statistics.kl, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(retarget.alpha, target.alpha, rtol=1e-4, atol=0)
    assert (gradient - other).norm() < 1e-4 * gradient.norm()


def test_the_share_of_clipped_tokens_is_that_of_the_sampled_ones(cast, rollout, apart_log_probs, take_step):
    _, _, target = take_step(cast, rollout, Scale(ALPHAS, RULES["bound"]))
    teacher, reference, _ = apart_log_probs
    ids = rollout.response_ids().numpy()
    ratio = (teacher - reference)[np.arange(len(ids)), ids][target.probed.numpy()]
    assert target.clipped.tolist() == (np.abs(ratio) > 0.5).tolist()
    assert 0 < target.clipped.mean() < 1
    np.testing.assert_allclose(target.reward, ratio, rtol=1e-3, atol=1e-4)  # the reward itself is not cut
    _, _, plain = take_step(cast, rollout, Scale(ALPHAS))
    assert plain.clipped.isnan().all()


@pytest.mark.parametrize("rule", [PLAIN, Rule(deterministic=1 - 1e-12)])
def test_a_rule_that_never_applies_is_bit_equal_to_none(rule, cast, rollout, take_step):
    statistics, gradient, target = take_step(cast, rollout, Scale(ALPHAS))
    other_statistics, other, retarget = take_step(cast, rollout, Scale(ALPHAS, rule))
    assert torch.equal(statistics.kl, other_statistics.kl)
    assert torch.equal(gradient, other)
    assert not target.apart
    assert not retarget.apart
    _, touched, _ = take_step(cast, rollout, Scale(ALPHAS, Rule(deterministic=0.5)))  # the control
    assert not torch.equal(gradient, touched)


def test_a_bound_beyond_every_ratio_gives_the_same_step_by_the_slow_path(cast, rollout, take_step):
    _, gradient, _ = take_step(cast, rollout, Scale(ALPHAS))
    _, other, target = take_step(cast, rollout, Scale(ALPHAS, Rule(bound=1e6)))
    assert target.apart
    assert (gradient - other).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_measured_runs_the_role_that_lambda_leaves_out_and_nothing_else_changes(alpha, cast, rollout, apart_log_probs, take_step):
    scale = dict.fromkeys(ALPHAS, alpha)
    _, gradient, unmeasured = take_step(cast, rollout, Scale(scale))
    _, other, target = take_step(cast, rollout, Scale(scale, measured=True))
    assert unmeasured.reward.isnan().all()
    teacher, reference, _ = apart_log_probs
    places = target.probed.numpy(), rollout.response_ids().numpy()[target.probed.numpy()]
    np.testing.assert_allclose(target.reward, (teacher - reference)[places], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(target.keep_log_prob, reference[places], rtol=1e-3, atol=1e-4)
    assert (gradient - other).norm() < 1e-5 * gradient.norm()


# from step to step


@pytest.fixture(scope="module")
def run(adapters, tmp_path_factory):
    """run(options): the rows of metrics.jsonl and the adapter's bytes of a short training, all on one backbone."""
    given = {"experts": {d: str(adapters / f"{d}.lora") for d in ALPHAS}, "quantize": "none", "eval": False}
    given |= {"batch_size": 4, "max_new_tokens": 8, "steps": 3, "warmup_steps": 0}
    loaded = []

    def train(**options):
        config = make_config(given | options)
        inputs = read_inputs(config)
        if not loaded:
            loaded.append(load_backbone(config, inputs))
        loaded[0].remove(STUDENT)
        loaded[0].add_student(inputs.lora_rank, inputs.targets, config.seed)
        folder = tmp_path_factory.mktemp("run")
        train_student(loaded[0], config, inputs, folder, Clock(), Silent())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return rows, (folder / "adapter_model.safetensors").read_bytes()

    return train


def alphas_of(rows, domain):
    return [row["domains"][domain]["alpha"] for row in rows]


def test_alpha_from_goes_in_a_line_to_alpha_at_the_last_step(run):
    rows, _ = run(alpha_from=1.0, alpha={"math": 2.0, "code": 0.5}, steps=5)
    assert alphas_of(rows, "math") == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0])
    assert alphas_of(rows, "code") == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5])


def test_a_line_that_is_level_trains_the_same_bytes(run):
    _, plain = run(alpha=1.5)
    assert run(alpha=1.5, alpha_from=1.5)[1] == plain
    assert run(alpha=1.5, alpha_from=1.0)[1] != plain


def test_an_adaptive_run_trains_with_the_lambda_that_its_metrics_ask_for(run, monkeypatch):
    """Metrics made by hand: five steps of each domain that set what is normal; then `math` is calm and `code` has lost its entropy."""
    used = []

    def hand_made(sums):
        real = domain_metrics(sums)
        used.append({domain: row["alpha"] for domain, row in real.items()})
        calm = {"entropy": 1.0, "response_length": 6.0, "capped": 0.0, "kl_to_target": 0.01, "reward": 0.02 + 0.001 * (-1) ** len(used)}
        lost = {"entropy": 0.4} if len(used) > 5 else {}
        return {domain: real[domain] | calm | (lost if domain == "code" else {}) for domain in real}

    monkeypatch.setattr(distillation, "domain_metrics", hand_made)
    run(adaptive="run", alpha={"math": 1.5, "code": 1.6}, alpha_max=1.65, steps=12)
    assert [row["math"] for row in used] == pytest.approx([1.5] * 5 + [1.6] * 5 + [1.65] * 2)
    assert [row["code"] for row in used] == pytest.approx([1.6] * 5 + [1.65] * 5 + [1.325] * 2)


def test_an_adaptive_run_knows_its_reward_even_at_lambda_one(run):
    rows, _ = run(adaptive="run", alpha=1.0, steps=1)
    assert all(row["reward"] is not None for row in rows[0]["domains"].values())
    rows, _ = run(alpha=1.0, steps=1)  # the control
    assert all(row["reward"] is None for row in rows[0]["domains"].values())


def test_lambda_of_a_step_is_as_given_unless_something_moves_it():
    given = {"experts": {"math": "m", "code": "c"}, "alpha": {"math": 2.0, "code": 1.5}, "steps": 3}
    plain = AlphaOfStep(make_config(given))
    plain.learn({"math": {"entropy": 0.0}})
    assert [plain.of(step) for step in range(3)] == [{"math": 2.0, "code": 1.5}] * 3
    line = AlphaOfStep(make_config(given | {"alpha_from": 1.0}))
    assert [line.of(step)["math"] for step in (2, 0, 1)] == [2.0, 1.0, 1.5]  # a function of the step: a run can be taken up at any
