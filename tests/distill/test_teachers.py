"""Where the student starts, how domains are balanced, and many experts at once."""

import json
from itertools import pairwise

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from gopd_merge.casting import assembled, load_backbone
from gopd_merge.config import make_config
from gopd_merge.distill.backbone import REFERENCE, START, STUDENT, Backbone, expert
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale, score
from gopd_merge.distill.update import accumulate_balanced, accumulate_gradient, optimizer_step
from gopd_merge.distillation import train_student
from gopd_merge.errors import GopdError
from gopd_merge.experts.deltas import Update, load_updates
from gopd_merge.experts.intake import read_experts
from gopd_merge.experts.static import average, weighted_sum
from gopd_merge.pipeline import look_ahead
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent
from gopd_merge.usage import Clock

ALPHAS = {"math": 2.0, "code": 1.5}


def tokens(rows=4):
    ids = torch.randint(4, 500, (rows, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding
    return ids, mask


# where the student starts


@pytest.fixture
def fresh(make_backbone, adapters):
    """fresh(quantize, rank): a backbone with an untrained student of that rank, and the exact average of its experts."""

    def make(quantize="none", rank=16):
        backbone = make_backbone(quantize, student_noise=0.0)
        experts = read_experts({d: str(adapters / f"{d}.lora") for d in ALPHAS})
        backbone.remove(STUDENT)
        backbone.add_student(rank, sorted({t for e in experts for t in e.targets}), seed=0)
        return backbone, average([load_updates(e) for e in experts], 16).updates

    return make


@pytest.mark.parametrize("rank", [16, 21])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_student_begins_at_the_static_merge_built_apart(fresh, load_model, adapters, peft_delta, quantize, rank):
    """Built apart: half of each update, by PEFT, on the hidden path of a base of its own. Ranks that are left over are a no-op."""
    backbone, updates = fresh(quantize, rank)
    ids, mask = tokens()
    before = backbone.hidden(STUDENT, ids, mask)
    backbone.start_student(updates)
    found = backbone.hidden(STUDENT, ids, mask)

    model = load_model(quantize)[0]
    for domain in ALPHAS:
        loaded = PeftModel.from_pretrained(load_model()[0], adapters / f"{domain}.lora")
        for name, delta in peft_delta(loaded, "default").items():
            model.get_submodule(name).register_forward_hook(lambda m, x, y, delta=delta: y + x[0] @ delta.T / 2)
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states[-1]
    assert (found - expected)[mask.bool()].norm() < 1e-4 * expected[mask.bool()].norm()
    assert (before - expected)[mask.bool()].norm() > 0.02 * expected[mask.bool()].norm()  # the control: where it begins otherwise

    backbone.add_updates("merged", updates)
    torch.testing.assert_close(backbone.hidden("merged", ids, mask), found, rtol=1e-4, atol=1e-4)


def test_the_start_stays_where_it_is_while_the_student_trains(fresh, questions):
    backbone, updates = fresh()
    backbone.start_student(updates)
    ids, mask = tokens()
    start = backbone.hidden(START, ids, mask)
    assert torch.equal(start, backbone.hidden(STUDENT, ids, mask).detach())
    cast = plain_cast(backbone, list(ALPHAS))
    rollout = generate(backbone, STUDENT, *questions, 12, range(4))
    parameters = backbone.student_parameters()
    assert {id(p) for p in backbone.peft.parameters() if p.requires_grad} == {id(p) for p in parameters}
    accumulate_gradient(cast, rollout, score(cast, rollout, Scale(ALPHAS), 4, 64), "full", 4, 64)
    optimizer_step(parameters, torch.optim.AdamW(parameters, lr=1e-2), 1.0)
    assert torch.equal(backbone.hidden(START, ids, mask), start)
    assert not torch.equal(backbone.hidden(STUDENT, ids, mask).detach(), start)


def test_a_start_that_does_not_fit_the_student_is_refused(fresh):
    backbone, updates = fresh(rank=8)
    rank = len(next(iter(updates.values())).a)
    assert rank > 8
    with pytest.raises(ValueError, match=f"an update of rank {rank} does not fit the student"):
        backbone.start_student(updates)
    with pytest.raises(ValueError, match=r"lm_head: an update of rank 1 does not fit"):
        backbone.start_student({"lm_head": Update(torch.zeros(1, 128), torch.zeros(512, 1))})
    assert START not in backbone.peft.peft_config


def test_a_start_of_too_many_ranks_is_cut_to_the_nearest_that_fits_and_says_what_is_lost(adapters):
    paths = {d: str(adapters / f"{d}.lora") for d in ALPHAS}
    config = make_config({"experts": paths, "start": "average", "lora_rank": 5, "quantize": "none", "eval": False})
    inputs = read_inputs(config)
    backbone, notes = load_backbone(config, inputs), []
    with assembled(backbone, config, inputs, notes.append):
        layers = {n: m for n, m in backbone.peft.named_modules() if isinstance(m, LoraLayer)}
        kept = {n.removeprefix("base_model.model."): m.get_delta_weight(START).double() for n, m in layers.items()}
    whole = {m: u.dense.double() for m, u in weighted_sum([load_updates(e) for e in inputs.experts], [0.5, 0.5]).items()}
    lost = 0.0
    for module, delta in whole.items():
        u, s, vt = torch.linalg.svd(delta)
        torch.testing.assert_close(kept[module], (u[:, :5] * s[:5]) @ vt[:5], rtol=1e-3, atol=1e-5)
        lost += float(s[5:].square().sum())
    share = 100 * lost / sum(float(delta.square().sum()) for delta in whole.values())
    assert notes == [f"--start average: {share:.1f} % of its squared norm do not fit into rank 5"]


# balance


@pytest.fixture(scope="module")
def sorted_rollout(float_backbone, questions):
    """Both domains in one piece each; `code` answers at greater length."""
    prompts, _ = questions
    return generate(float_backbone, STUDENT, [prompts[i] for i in (1, 3, 0, 2)], ["code", "code", "math", "math"], 30, range(4))


@pytest.fixture
def of_domain(float_backbone, sorted_rollout, take_step):
    """of_domain(domain): its part of the step's gradient, out of a step of its rows alone."""

    def gradient(domain):
        start = sorted_rollout.domains.index(domain)
        part = sorted_rollout.rows(start, start + 2)
        _, own, _ = take_step(plain_cast(float_backbone, list(ALPHAS)), part, Scale(ALPHAS))
        return own * part.num_tokens / sorted_rollout.num_tokens  # the step's mean is over all tokens

    return gradient


def test_balanced_domains_pull_equally_hard(float_backbone, sorted_rollout, of_domain, take_gradient):
    cast = plain_cast(float_backbone, list(ALPHAS))
    parts = {domain: of_domain(domain) for domain in ALPHAS}
    norms = {domain: float(part.norm()) for domain, part in parts.items()}
    target = score(cast, sorted_rollout, Scale(ALPHAS), 4, 64)
    statistics, found = accumulate_balanced(cast, sorted_rollout, target, "full", 3, 64)
    balanced = take_gradient(float_backbone)
    expected = sum(part * (sum(norms.values()) / 2 / norms[domain]) for domain, part in parts.items())
    assert found == pytest.approx(norms, rel=1e-4)
    assert (balanced - expected).norm() < 1e-4 * expected.norm()
    plain_statistics = accumulate_gradient(cast, sorted_rollout, target, "full", 3, 64)
    plain = take_gradient(float_backbone)
    assert (plain - sum(parts.values())).norm() < 1e-4 * plain.norm()  # without balance it is the sum as it is
    assert (plain - balanced).norm() > 0.05 * plain.norm()
    torch.testing.assert_close(statistics.kl, plain_statistics.kl, rtol=1e-3, atol=1e-5)  # token by token in the same order


def test_a_domain_that_pulls_nowhere_leaves_the_others_as_they_are(make_backbone, questions, take_gradient):
    """λ = 0 and a fresh student: `math` is at its target. What is left is the other's gradient at its own norm."""
    backbone = make_backbone(student_noise=0.0)
    cast, scale = plain_cast(backbone, list(ALPHAS)), Scale({"math": 0.0, "code": 2.0})
    prompts, _ = questions
    rollout = generate(backbone, STUDENT, [prompts[i] for i in (1, 3, 0, 2)], ["code", "code", "math", "math"], 12, range(4))
    target = score(cast, rollout, scale, 4, 64)
    _, norms = accumulate_balanced(cast, rollout, target, "full", 4, 64)
    balanced = take_gradient(backbone)
    accumulate_gradient(cast, rollout, target, "full", 4, 64)
    plain = take_gradient(backbone)
    assert norms["math"] == 0
    assert norms["code"] > 1e-3
    assert (balanced - plain).norm() < 1e-5 * plain.norm()


@pytest.mark.parametrize("edges", [[0, 1, 4], [0, 2, 3, 4], [0, 4]])
def test_ranges_of_rows_add_up_to_the_step(edges, float_backbone, sorted_rollout, take_gradient):
    cast = plain_cast(float_backbone, list(ALPHAS))
    target = score(cast, sorted_rollout, Scale(ALPHAS), 4, 64)
    whole = accumulate_gradient(cast, sorted_rollout, target, "full", 4, 16)
    expected = take_gradient(float_backbone)
    parts = [accumulate_gradient(cast, sorted_rollout, target, "full", 2, 16, rows=range(begin, end)) for begin, end in pairwise(edges)]
    assert (take_gradient(float_backbone) - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(torch.cat([part.kl for part in parts]), whole.kl, rtol=1e-3, atol=1e-5)


# many experts


@pytest.fixture(scope="module")
def many(adapters, tmp_path_factory, make_lora):
    """Sixteen experts e1 to e16 of different ranks on different modules: names that begin with each other's."""
    folder = tmp_path_factory.mktemp("many")
    kinds = [["q_proj", "v_proj"], ["up_proj", "down_proj", "gate_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]]
    return {
        f"e{i}": str(make_lora(adapters / "tiny-base", folder / f"e{i}.lora", seed=i, r=i, target_modules=kinds[i % 3]))
        for i in range(1, 17)
    }


@pytest.fixture(scope="module")
def alone(adapters, many):
    """Hidden states of the sixteen rows, each by its own expert, in a model that holds nothing else."""
    ids, mask = tokens(16)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = {}
    for row, (domain, path) in enumerate(many.items()):
        model = AutoModelForCausalLM.from_pretrained(adapters / "tiny-base", dtype=torch.float32)
        model = PeftModel.from_pretrained(model, path).eval()
        with torch.no_grad():
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            found[domain] = model(**inputs, output_hidden_states=True).hidden_states[-1][row]
    return found


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_every_row_of_a_mixed_batch_is_its_own_experts(count, many, alone, make_backbone):
    backbone = make_backbone(paths=dict(list(many.items())[:count]))
    ids, mask = tokens(16)
    domains = [list(many)[row % count] for row in range(16)]
    mixed = backbone.hidden([expert(domain) for domain in domains], ids, mask)
    for row in range(count):  # the row that its expert scored alone
        own = mask[row].bool()  # to rounding: a product of fewer rows may be summed in another order
        torch.testing.assert_close(mixed[row][own], alone[domains[row]][own], rtol=1e-5, atol=1e-5)
    others = backbone.hidden([expert(domain) for domain in domains[1:] + domains[:1]], ids, mask)  # the control: each by the next one
    assert all((others[row][mask[row].bool()] - mixed[row][mask[row].bool()]).abs().max() > 1e-2 for row in range(count))


@pytest.fixture(scope="module")
def trained(adapters, many, tmp_path_factory):
    """trained(order, options): the bytes of two steps with four experts, the flags in that order."""
    folder = tmp_path_factory.mktemp("trained")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Is {i} or {i + 1} more?"}) + "\n" for i in range(9)))
    paths = {"math": str(adapters / "math.lora"), "code": str(adapters / "code.lora"), "e10": many["e10"], "e1": many["e1"]}

    def train(order, **options):
        given = {"quantize": "none", "eval": False, "steps": 2, "batch_size": 8, "micro_batch_size": 3, "max_new_tokens": 8}
        config = make_config(given | {"experts": {d: paths[d] for d in order}, "prompts": {d: str(prompts) for d in order}} | options)
        inputs = read_inputs(config)
        output = folder / f"{len(list(folder.iterdir()))}"
        output.mkdir()
        train_student(load_backbone(config, inputs), config, inputs, output, Clock(), Silent())
        return (output / "adapter_model.safetensors").read_bytes()

    return train


@pytest.mark.parametrize(
    "options",
    [{}, {"rotate": "all", "weights": {"e1": 0.5, "math": 0.3}}, {"balance": True, "estimator": "sampled"}, {"start": "ties"}],
    ids=["default", "all at once", "balance", "start"],
)
def test_the_order_of_four_experts_changes_no_byte(options, trained):
    found = {trained(order, **options) for order in (("math", "code", "e10", "e1"), ("e1", "e10", "math", "code"))}
    assert len(found) == 1
    assert trained(("math", "code", "e10", "e1"), **options, seed=1) not in found  # the control


# rotation


@pytest.fixture(scope="module")
def rotated(adapters, many, tmp_path_factory):
    """rotated(**options): the rows of metrics.jsonl of three steps with three experts, and the roles of each scoring pass of a step."""
    folder = tmp_path_factory.mktemp("rotated")
    (folder / "e1.jsonl").write_text("".join(json.dumps({"prompt": f"Is {i} or {i + 1} more?"}) + "\n" for i in range(9)))
    paths = {"math": str(adapters / "math.lora"), "code": str(adapters / "code.lora"), "e1": many["e1"]}
    given = {"experts": paths, "prompts": {"e1": str(folder / "e1.jsonl")}, "alpha": 1.5, "quantize": "none", "eval": False}
    given |= {"steps": 3, "batch_size": 6, "micro_batch_size": 4, "max_new_tokens": 6, "lora_rank": 4}
    loaded = []

    def train(**options):
        config = make_config(given | options)
        inputs = read_inputs(config)
        if not loaded:
            loaded.append(load_backbone(config, inputs))
        passes, whole = [[]], Backbone.hidden

        class Steps(Silent):
            def step(self, step, steps, metrics):
                passes.append([])

        def hidden(backbone, roles, ids, mask=None):
            if roles != STUDENT:
                passes[-1].append(tuple(roles))
            return whole(backbone, roles, ids, mask)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Backbone, "hidden", hidden)
            output = tmp_path_factory.mktemp("output")
            train_student(loaded[0], config, inputs, output, Clock(), Steps())
        return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()], passes[:3]

    return train


@pytest.mark.parametrize(("rotate", "steps"), [("step", 1), ("step", 2), ("prompt", 1)])
def test_steps_that_are_too_few_for_all_to_teach_are_noted(adapters, rotate, steps):
    paths = {d: str(adapters / f"{d}.lora") for d in ALPHAS}
    config = make_config({"experts": paths, "rotate": rotate, "steps": steps, "batch_size": 4, "quantize": "none", "eval": False})
    notes = []

    class Notes(Silent):
        def note(self, text):
            notes.append(text)

    look_ahead(config, read_inputs(config), Notes())
    said = ["--rotate step: in 1 step(s) math will not teach; give --steps 2 or more"]
    assert notes == (said if (rotate, steps) == ("step", 1) else [])


@pytest.mark.parametrize("rotate", ["step", "prompt", "all"])
def test_one_expert_is_on_in_a_step_where_they_rotate_by_steps(rotated, rotate):
    """Two passes a step, of four prompts and of two; each prompt is a row of the reference and one of every expert that teaches it."""
    rows, passes = rotated(rotate=rotate)
    on = [{role for roles in step for role in roles} for step in passes]
    taught = [set(row["domains"]) for row in rows]
    everybody = {"code", "e1", "math"}
    assert taught == ([{"code"}, {"e1"}, {"math"}] if rotate == "step" else [everybody] * 3)
    assert on == [{REFERENCE, *(expert(domain) for domain in domains)} for domains in taught]
    teachers = 3 if rotate == "all" else 1
    assert [[len(roles) for roles in step] for step in passes] == [[4 * (1 + teachers), 2 * (1 + teachers)]] * 3


def test_the_gradient_of_every_teacher_is_in_the_log(rotated):
    """Of the balance the norms as they were before it; without it what each pulls at the hidden states is there all the same."""
    for balance in (True, False):
        rows, _ = rotated(balance=balance)
        for row in rows:
            norms = row.get("grad_norm_by_domain", {})
            assert set(norms) == ({"code", "e1", "math"} if balance else set())
            assert all(norm > 0 for norm in norms.values())
            assert all(domain["hidden_grad_norm"] > 0 for domain in row["domains"].values())
            if balance:  # three gradients of the mean norm add up to three times that at most
                assert row["grad_norm"] <= sum(norms.values()) * 1.0001
                assert len(set(norms.values())) == 3


def test_a_base_that_changes_its_logits_after_the_head_is_refused(load_model):
    _, tokenizer = load_model()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = GraniteConfig(vocab_size=512, **sizes, logits_scaling=8.0)
    with pytest.raises(GopdError, match="GraniteForCausalLM changes its logits after the output head"):
        Backbone(GraniteForCausalLM(config).eval(), tokenizer, []).check_head()
    config.logits_scaling = 1.0
    Backbone(GraniteForCausalLM(config).eval(), tokenizer, []).check_head()  # the control
