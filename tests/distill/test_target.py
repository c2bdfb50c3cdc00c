"""Scoring and one step, on the embedded base: fast path against slow path, and against the trainer that others use."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from gopd_merge.distill.backbone import REFERENCE, STUDENT, expert
from gopd_merge.distill.cast import Role, plain_cast
from gopd_merge.distill.metrics import domain_metrics, domain_sums
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale, mean_rewards, score
from gopd_merge.distill.update import accumulate_gradient, optimizer_step
from gopd_merge.experts.base import Base, load_base


def step_gradient(backbone, rollout, alphas, estimator="full", micro_batch_size=2, chunk_tokens=16, **scale):
    """Per-token statistics and the student's gradient of one step, which is then cleared."""
    cast = plain_cast(backbone, ["math", "code"])
    scored = score(cast, rollout, Scale(alphas, **scale), micro_batch_size, chunk_tokens)
    statistics = accumulate_gradient(cast, rollout, scored, estimator, micro_batch_size, chunk_tokens)
    gradient = torch.cat([p.grad.flatten() for p in backbone.student_parameters()])
    for parameter in backbone.student_parameters():
        parameter.grad = None
    return statistics, gradient, scored


def by_hand(backbone, rollout, alphas):
    """The loss with three full projections and plain autograd: every role alone, every tensor (B, T, V)."""
    columns = slice(rollout.prompt_width - 1, -1)
    log_p = backbone.logits(backbone.hidden(STUDENT, rollout.ids, rollout.attention_mask))[:, columns].log_softmax(-1)
    log_q = torch.empty_like(log_p)
    for row, domain in enumerate(rollout.domains):
        ids, mask = rollout.ids[row : row + 1], rollout.attention_mask[row : row + 1]
        log_t, log_0 = (
            backbone.logits(backbone.hidden(role, ids, mask), role)[0, columns].log_softmax(-1) for role in (expert(domain), REFERENCE)
        )
        log_q[row] = (alphas[domain] * log_t + (1 - alphas[domain]) * log_0).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl[rollout.response_mask]


@pytest.fixture(scope="module")
def sampled_rollout(float_backbone, questions):
    return generate(float_backbone, STUDENT, *questions, 50, range(4))


@pytest.mark.parametrize("alphas", [{"math": 2.0, "code": 2.0}, {"math": 0.5, "code": 3.0}, {"math": 1.0, "code": 0.0}])
def test_a_step_equals_three_separate_projections_under_plain_autograd(float_backbone, sampled_rollout, alphas):
    statistics, gradient, _ = step_gradient(float_backbone, sampled_rollout, alphas)
    expected = by_hand(float_backbone, sampled_rollout, alphas)
    expected.mean().backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in float_backbone.student_parameters()])
    for parameter in float_backbone.student_parameters():
        parameter.grad = None
    torch.testing.assert_close(statistics.kl, expected.detach(), rtol=1e-3, atol=2e-5)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    assert expected_gradient.norm() > 1e-3


def test_each_prompt_is_scored_by_its_own_domains_teacher_only(float_backbone, sampled_rollout):
    """The control of the test above: with the labels swapped the step is another one."""
    _, gradient, _ = step_gradient(float_backbone, sampled_rollout, {"math": 2.0, "code": 2.0})
    swapped = type(sampled_rollout)(**(vars(sampled_rollout) | {"domains": ("code", "math", "code", "math")}))
    _, other, _ = step_gradient(float_backbone, swapped, {"math": 2.0, "code": 2.0})
    assert (gradient - other).norm() > 0.05 * gradient.norm()


def test_an_unknown_domain_is_an_error_and_never_another_teacher(float_backbone, sampled_rollout):
    with pytest.raises(KeyError, match="code"):
        score(plain_cast(float_backbone, ["math", "code"]), sampled_rollout, Scale({"math": 2.0}), 4, 16)
    with pytest.raises(KeyError, match="code"):
        score(plain_cast(float_backbone, ["math"]), sampled_rollout, Scale({"math": 2.0, "code": 2.0}), 4, 16)


@pytest.mark.parametrize(("micro_batch_size", "chunk_tokens"), [(1, 7), (3, 1000), (4, 1)])
def test_micro_batch_and_chunk_size_do_not_change_the_step(float_backbone, sampled_rollout, micro_batch_size, chunk_tokens):
    alphas = {"math": 2.0, "code": 1.5}
    statistics, gradient, _ = step_gradient(float_backbone, sampled_rollout, alphas)
    other_statistics, other, _ = step_gradient(
        float_backbone, sampled_rollout, alphas, micro_batch_size=micro_batch_size, chunk_tokens=chunk_tokens
    )
    torch.testing.assert_close(other_statistics.kl, statistics.kl, rtol=1e-3, atol=1e-5)
    assert (gradient - other).norm() < 1e-4 * gradient.norm()


def test_lambda_one_skips_the_reference_and_gives_the_same_step(float_backbone, sampled_rollout):
    alphas = {"math": 1.0, "code": 1.0}
    statistics, gradient, scored = step_gradient(float_backbone, sampled_rollout, alphas)
    assert scored.keep_log_prob.isnan().all()
    # With the reference's pass, which has no part in the target and must change nothing.
    with_reference, other, rescored = step_gradient(float_backbone, sampled_rollout, alphas, measured=True)
    assert rescored.keep_log_prob.isfinite().all()
    torch.testing.assert_close(with_reference.kl, statistics.kl, rtol=1e-4, atol=1e-6)
    assert (gradient - other).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_lambda_zero_leaves_a_fresh_student_at_the_base(make_backbone, questions, quantize):
    backbone = make_backbone(quantize, student_noise=0.0)
    cast = plain_cast(backbone, ["math", "code"])
    rollout = generate(backbone, STUDENT, *questions, 30, range(4))
    parameters = backbone.student_parameters()
    before = [p.detach().clone() for p in parameters]
    largest = {}
    for alpha in (0.0, 2.0):  # the second is the control: there is something to move toward
        scored = score(cast, rollout, Scale({"math": alpha, "code": alpha}), 4, 100)
        statistics = accumulate_gradient(cast, rollout, scored, "full", 4, 100)
        largest[alpha] = (max(float(p.grad.abs().max()) for p in parameters), float(statistics.kl.max()))
        for parameter in parameters:
            parameter.grad = None
    assert largest[0.0] == (0.0, 0.0)
    assert largest[2.0][0] > 1e-3
    scored = score(cast, rollout, Scale({"math": 0.0, "code": 0.0}), 4, 100)
    accumulate_gradient(cast, rollout, scored, "full", 4, 100)
    optimizer_step(parameters, torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0), 1.0)
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


def test_the_logged_reward_and_drift_are_means_over_the_sampled_tokens(float_backbone, questions):
    """Responses of at most eight tokens are probed whole, so the logged means can be taken by hand."""
    rollout = generate(float_backbone, STUDENT, *questions, 8, range(4))
    statistics, _, scored = step_gradient(float_backbone, rollout, {"math": 2.0, "code": 2.0})
    metrics = domain_metrics(domain_sums(rollout, scored, statistics))
    columns = slice(rollout.prompt_width - 1, -1)
    with torch.no_grad():
        log_probs = {
            role: float_backbone.logits(float_backbone.hidden(role, rollout.ids, rollout.attention_mask), role)[:, columns]
            .log_softmax(-1)
            .gather(-1, rollout.ids[:, rollout.prompt_width :, None])[..., 0]
            for role in (STUDENT, REFERENCE, expert("math"))
        }
    rows = torch.tensor([domain == "math" for domain in rollout.domains])
    inside = rollout.response_mask & rows[:, None]
    assert metrics["math"]["reward"] == pytest.approx(float((log_probs[expert("math")] - log_probs[REFERENCE])[inside].mean()), abs=1e-5)
    assert metrics["math"]["drift"] == pytest.approx(float((log_probs[STUDENT] - log_probs[REFERENCE])[inside].mean()), abs=1e-5)
    assert metrics["math"]["capped"] == float(rollout.capped[rows].float().mean())
    assert metrics["math"]["response_length"] == float(rollout.response_mask[rows].sum(1).float().mean())


HEADS = {
    "adapted": {"target_modules": ["q_proj", "lm_head"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm"]},
}


@pytest.fixture(scope="module", params=HEADS)
def head_folders(request, adapters, tmp_path_factory):
    """The experts by domain, the code expert replaced by one that adapts lm_head or brings a whole one: it has a head of its own."""
    folder = tmp_path_factory.mktemp("head") / "code.lora"
    location = str(adapters / "tiny-base")
    model, _ = load_base(Base(location, location), "none", "cpu")
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **HEADS[request.param]))
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.data += 0.2 * parameter.std().clamp(min=0.1) * torch.randn_like(parameter)
    model.peft_config["default"].base_model_name_or_path = location
    model.save_pretrained(folder, save_embedding_layers=False)
    math = shutil.copytree(adapters / "math.lora", folder.parent / "math.lora")
    config = math / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": location}))
    return {"math": str(math), "code": str(folder)}


@pytest.fixture(scope="module")
def head_backbone(make_backbone, head_folders):
    return make_backbone("none", head_folders)


def test_a_role_with_a_head_of_its_own_is_mixed_by_its_own_logits(head_backbone, head_folders, adapters, questions):
    """Against models loaded apart by plain PEFT, each with at most one adapter, and mixed in float64."""
    torch.manual_seed(1)
    rollout = generate(head_backbone, STUDENT, *questions, 30, range(4))
    alphas = {"math": 2.0, "code": 1.5}
    cast = plain_cast(head_backbone, ["math", "code"])
    scored = score(cast, rollout, Scale(alphas), micro_batch_size=3, chunk_tokens=16)
    location = str(adapters / "tiny-base")
    positions = (rollout.attention_mask.cumsum(-1) - 1).clamp(min=0)
    log_probs = {}
    for domain in (None, "math", "code"):
        model = load_base(Base(location, location), "none", "cpu")[0]
        if domain:
            model = PeftModel.from_pretrained(model, head_folders[domain]).eval()
        with torch.no_grad():
            logits = model.double()(input_ids=rollout.ids, attention_mask=rollout.attention_mask, position_ids=positions).logits
        log_probs[domain] = rollout.predicting(logits).log_softmax(-1)
    tokens = [d for d, length in zip(rollout.domains, rollout.response_mask.sum(1).tolist(), strict=True) for _ in range(length)]
    expected = torch.stack(
        [
            (alphas[d] * log_probs[d][n] + (1 - alphas[d]) * log_probs[None][n]).log_softmax(-1)  # of the n-th response token
            for n, d in enumerate(tokens)
        ]
    )
    nothing = torch.zeros(rollout.num_tokens, head_backbone.vocabulary)  # a student's logits are asked for remote teachers only
    found = scored.log_probs(cast, torch.arange(rollout.num_tokens), nothing).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # The control: what the reference's head would have made of the same hidden states.
    code = Role(expert("code"))
    hidden = torch.cat([part.hidden[code] for part in scored.apart if code in part.hidden])
    assert (head_backbone.logits(hidden, REFERENCE) - head_backbone.logits(hidden, expert("code"))).abs().max() > 0.1


def test_an_adapter_on_the_head_takes_the_slow_path_and_is_exact_there(head_backbone, float_backbone, questions):
    assert float_backbone.head_is_shared
    assert not head_backbone.head_is_shared
    torch.manual_seed(0)
    rollout = generate(head_backbone, STUDENT, *questions, 30, range(4))
    alphas = {"math": 2.0, "code": 1.5}
    statistics, gradient, scored = step_gradient(head_backbone, rollout, alphas)
    assert not scored.mixed
    expected = by_hand(head_backbone, rollout, alphas)
    expected.mean().backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in head_backbone.student_parameters()])
    for parameter in head_backbone.student_parameters():
        parameter.grad = None
    torch.testing.assert_close(statistics.kl, expected.detach(), rtol=1e-3, atol=2e-5)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    # The control: mixing hidden states under one head would have been wrong here.
    code = torch.tensor([d == "code" for d in rollout.domains]).repeat_interleave(rollout.response_mask.sum(1))
    mixed = torch.zeros(rollout.num_tokens, head_backbone.hidden_size)
    for part in scored.apart:
        for role, weight in part.aim.coefficients(list(part.alphas.T.unsqueeze(-1))).items():
            mixed.index_add_(0, part.tokens, part.hidden[role] * weight)
    wrong = head_backbone.logits(mixed, REFERENCE).log_softmax(-1)
    nothing = torch.zeros(rollout.num_tokens, head_backbone.vocabulary)
    right = scored.log_probs(plain_cast(head_backbone, ["math", "code"]), torch.arange(rollout.num_tokens), nothing)
    assert (wrong - right)[code].abs().max() > 0.01


def test_lambda_one_equals_trls_distillation_trainer_on_the_same_rollout(float_backbone, adapters, sampled_rollout, tmp_path):
    """One teacher, reverse KL: the same loss and gradient as trl's own trainer with two separate models."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    ours, gradient, _ = step_gradient(float_backbone, only_math(sampled_rollout), {"math": 1.0})
    float_backbone.save_student(tmp_path / "student", str(adapters / "tiny-base"), None)
    location = str(adapters / "tiny-base")
    teacher, tokenizer = load_base(Base(location, location), "none", "cpu")
    teacher = PeftModel.from_pretrained(teacher, adapters / "math.lora")
    student = PeftModel.from_pretrained(load_base(Base(location, location), "none", "cpu")[0], tmp_path / "student", is_trainable=True)
    arguments = {"temperature": 1.0, "beta": 1.0, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    trainer = trl.DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=trl.DistillationConfig(output_dir=str(tmp_path), per_device_train_batch_size=1, **arguments),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "1"}]}]),
        processing_class=tokenizer,
    )
    rollout = only_math(sampled_rollout)
    width = rollout.prompt_width
    inputs = {
        "prompt_ids": rollout.ids[:, :width],
        "prompt_mask": rollout.attention_mask[:, :width],
        "completion_ids": rollout.ids[:, width:],
        "completion_mask": rollout.response_mask.long(),
        "num_items_in_batch": rollout.response_mask.sum(),
    }
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    theirs = {n.replace(".default.", f".{STUDENT}."): p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    names = [n for n, _ in float_backbone.peft.named_parameters() if f".{STUDENT}." in n]
    their_gradient = torch.cat([theirs[n].flatten() for n in names])
    torch.testing.assert_close(ours.kl.mean(), loss.detach(), rtol=1e-5, atol=0)
    assert (gradient - their_gradient).norm() < 1e-5 * their_gradient.norm()


def only_math(rollout):
    rows = [i for i, d in enumerate(rollout.domains) if d == "math"]
    return type(rollout)(
        rollout.ids[rows], rollout.attention_mask[rows], rollout.response_mask[rows], rollout.capped[rows], ("math",) * len(rows)
    )


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_the_mean_reward_of_a_response_is_that_of_models_loaded_apart(
    float_backbone, sampled_rollout, load_model, adapters, micro_batch_size
):
    found = mean_rewards(float_backbone, sampled_rollout, expert("math"), micro_batch_size)
    plain, _ = load_model()
    model = PeftModel.from_pretrained(load_model()[0], adapters / "math.lora").eval()
    for row, reward in enumerate(found):
        kept = sampled_rollout.attention_mask[row].bool()
        ids = sampled_rollout.ids[row][kept].unsqueeze(0)  # without padding
        length = int(sampled_rollout.response_mask[row].sum())
        response = ids[0, -length:].unsqueeze(-1)
        with torch.no_grad():
            log_probs = [m(input_ids=ids).logits[0, -length - 1 : -1].log_softmax(-1).gather(-1, response) for m in (model, plain)]
        assert reward == pytest.approx(float((log_probs[0] - log_probs[1]).mean()), abs=1e-4)
    assert max(map(abs, found)) > 0.01
