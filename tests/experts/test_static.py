"""Weight arithmetic on exact updates, against PEFT's delta weights and against the methods written out element by element."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gopd_merge.distill.backbone import REFERENCE, Backbone
from gopd_merge.experts.deltas import Update, factored, load_updates, truncated
from gopd_merge.experts.intake import read_experts
from gopd_merge.experts.static import RIVALS, elected_mean, selected_mean, trimmed, weighted_sum

CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]},
    "rslora": {"r": 8, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterned": {
        "r": 2,
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.1.*q_proj": 6},
        "alpha_pattern": {"down_proj": 20},
    },
}
ONE_EACH = {
    "average": {},
    "task_arithmetic": {"coefficient": 0.7},
    "ties": {"density": 0.3, "coefficient": 1.2},
    "dare_ties": {"density": 0.6, "coefficient": 0.8, "seed": 3},
    "sce": {"density": 0.4, "coefficient": 1.1},
    "svd": {"rank_multiple": 0.5, "coefficient": 0.9},
    "expo": {"factor": 1.5},
}


def random_experts(shapes, seed=0):
    """One dict of updates an expert, from {module: (out, in, rank)} each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {m: Update(torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator)) for m, (o, i, r) in expert.items()}
        for expert in shapes
    ]


@pytest.fixture
def experts():
    """Three of different ranks; `x` has one of them, `y` two, `z` all."""
    return random_experts([{"x": (6, 9, 2), "z": (7, 5, 3)}, {"y": (8, 8, 4), "z": (7, 5, 1)}, {"y": (8, 8, 1), "z": (7, 5, 2)}])


def dense(experts, module):
    """float64 arrays, zero where an expert leaves the module as it is."""
    shape = next(e[module].dense.shape for e in experts if module in e)
    return [e[module].dense.double().numpy() if module in e else np.zeros(shape) for e in experts]


# The methods element by element, in plain Python.


def elected(column):
    """TIES for one element: the sign with the larger total, and the mean of those that have it."""
    positive, negative = [v for v in column if v > 0], [v for v in column if v < 0]
    winners = positive if sum(positive) >= -sum(negative) else negative
    return sum(winners) / len(winners) if winners else 0.0


def by_element(function, deltas):
    out = np.zeros(deltas[0].shape)
    for place in itertools.product(*map(range, out.shape)):
        out[place] = function([float(delta[place]) for delta in deltas])
    return out


def slow_ties(deltas, density, coefficient):
    kept = []
    for delta in deltas:
        limit = sorted(abs(v) for v in delta.flat)[::-1][: int(density * delta.size)][-1]
        kept.append(np.array([[v if abs(v) >= limit else 0.0 for v in row] for row in delta]))
    return coefficient * by_element(elected, kept)


def slow_sce(deltas, density, coefficient):
    spread = by_element(lambda column: sum((v - sum(column) / len(column)) ** 2 for v in column), deltas)
    differing = sorted((v for v in spread.flat if v > 0), reverse=True)
    limit = differing[: int(density * len(differing))][-1] if density < 1 else -1
    selected = [np.where(spread >= limit, delta, 0.0) for delta in deltas]
    energy = [sum(v * v for v in delta.flat) for delta in selected]

    def merge(column):
        sign = 1 if sum(column) >= 0 else -1
        agreeing = [(v, e) for v, e in zip(column, energy, strict=True) if v * sign > 0]
        return sum(v * e for v, e in agreeing) / sum(e for _, e in agreeing) if agreeing else 0.0

    return coefficient * by_element(merge, selected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_update_equals_pefts_delta_weight(make_expert, kind):
    path, expected = make_expert(kind, **CONFIGS[kind])
    updates = load_updates(read_experts({kind: path})[0])
    assert updates.keys() == expected.keys()
    for module, update in updates.items():
        torch.testing.assert_close(update.dense, expected[module], rtol=1e-5, atol=1e-6)


def test_the_average_on_the_backbone_is_the_mean_of_the_updates_and_not_of_the_factors(make_expert, load_model, peft_delta):
    made = {kind: make_expert(kind, **config) for kind, config in CONFIGS.items()}
    experts = read_experts({kind: path for kind, (path, _) in made.items()})
    backbone = Backbone(*load_model(), experts)
    backbone.add_updates("average", RIVALS["average"].build([load_updates(e) for e in experts], {}).updates)
    found = peft_delta(backbone.peft, "average")
    for module in {m for _, delta in made.values() for m in delta}:
        parts = [delta[module] for _, delta in made.values() if module in delta]
        torch.testing.assert_close(found[module], sum(parts) / 3, rtol=1e-4, atol=1e-5)
    q = "model.layers.0.self_attn.q_proj"
    one, two, three = (load_updates(e)[q] for e in experts)  # ranks 2, 4 and 8: what fits of the larger ones
    of_factors = (one.b + two.b[:, :2] + three.b[:, :2]) @ (one.a + two.a[:2] + three.a[:2]) / 9
    assert (of_factors - found[q]).norm() > 0.1 * found[q].norm()


@pytest.mark.parametrize(("name", "slow"), [("ties", slow_ties), ("sce", slow_sce)])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_a_merge_equals_its_definition_element_by_element(experts, name, slow, density):
    merged = RIVALS[name].build(experts, {"density": density, "coefficient": 1.3})
    assert merged.lost == 0
    assert merged.updates.keys() == {"x", "y", "z"}
    for module, update in merged.updates.items():
        expected = slow(dense(experts, module), density, 1.3)
        np.testing.assert_allclose(update.dense.numpy(), expected, rtol=1e-4, atol=1e-6)
        assert np.abs(expected - 1.3 * np.mean(dense(experts, module), axis=0)).max() > 0.1  # and is no average


def test_sums_are_exact_sums(experts):
    for module in ("x", "y", "z"):
        total = sum(dense(experts, module))
        for name, parameters, factor in (
            ("average", {}, 1 / 3),
            ("task_arithmetic", {"coefficient": 0.7}, 0.7),
            ("expo", {"factor": 1.5}, 0.5),
        ):
            found = RIVALS[name].build(experts, parameters).updates[module].dense
            np.testing.assert_allclose(found.numpy(), factor * total, rtol=1e-4, atol=1e-5)
    (trained,) = random_experts([{"z": (7, 5, 2)}])
    torch.testing.assert_close(RIVALS["expo"].build([trained], {"factor": 2.0}).updates["z"].dense, 2 * trained["z"].dense)


def test_signs_are_elected_by_total_mass_and_the_losers_are_not_in_the_mean():
    """Three experts, four elements: two small against one large, agreement, one trimmed away, all zero."""
    deltas = torch.tensor([[[1.0, 2.0, 0.0, 0.0]], [[1.0, 4.0, -3.0, 0.0]], [[-3.0, 6.0, -1.0, 0.0]]])
    torch.testing.assert_close(elected_mean(deltas), torch.tensor([[-3.0, 4.0, -2.0, 0.0]]))


def test_sce_on_an_example_worked_by_hand():
    """Variances 4, 0 and 1/4; half of the two that vary is one, the first. Squares left: 9 and 1. The signs there differ: 3 wins.

    With all elements, squares are 9 + 1 + 0 = 10 and 1 + 1 + 1 = 3: the second is (10 · 1 + 3 · 1) / 13, the third 1 of the second alone.
    """
    deltas = torch.tensor([[[3.0, 1.0, 0.0]], [[-1.0, 1.0, 1.0]]])
    torch.testing.assert_close(selected_mean(deltas, 0.5), torch.tensor([[3.0, 0.0, 0.0]]))
    torch.testing.assert_close(selected_mean(deltas, 1.0), torch.tensor([[3.0, 1.0, 1.0]]))
    same_signs = deltas.abs()  # now the first is (10 · 3 + 3 · 1) / 13
    torch.testing.assert_close(selected_mean(same_signs, 1.0), torch.tensor([[33 / 13, 1.0, 1.0]]))
    torch.testing.assert_close(selected_mean(1e-5 * same_signs, 1.0), 1e-5 * torch.tensor([[33 / 13, 1.0, 1.0]]))


def test_where_experts_agree_nothing_is_elected_or_erased():
    (expert,) = random_experts([{"z": (7, 5, 2)}])
    positive = [{"z": Update(u.abs(), v.abs())} for u, v in ((expert["z"].a, expert["z"].b), (2 * expert["z"].a, expert["z"].b))]
    mean = RIVALS["average"].build(positive, {}).updates["z"].dense
    torch.testing.assert_close(RIVALS["ties"].build(positive, {"density": 1, "coefficient": 1}).updates["z"].dense, mean)
    for name in ("ties", "sce"):
        equal = RIVALS[name].build([expert, expert], {"density": 1, "coefficient": 1}).updates["z"].dense
        torch.testing.assert_close(equal, expert["z"].dense)
    assert not RIVALS["sce"].build([expert, expert], {"density": 0.9, "coefficient": 1}).updates["z"].dense.any()  # nothing varies


def test_what_dare_drops_it_makes_up_for_on_average():
    deltas = torch.stack([random_experts([{"z": (20, 30, 2)}], seed)[0]["z"].dense for seed in range(2)])
    torch.manual_seed(0)
    draws = torch.stack([trimmed(deltas, 0.4, "random") for _ in range(400)])
    values = draws / deltas
    assert set(values.unique().round(decimals=3).tolist()) == {0.0, 2.5}
    error = (draws.mean(0) - deltas) / (deltas.abs() * math.sqrt(0.6 / 0.4 / 400))
    assert error.abs().max() < 5
    assert 0.9 < error.std() < 1.1


def test_dare_repeats_itself_with_a_seed_and_leaves_the_global_generator_alone(experts):
    def build(seed, density=0.5):
        return RIVALS["dare_ties"].build(experts, {"density": density, "coefficient": 1, "seed": seed}).updates["z"].dense

    state = torch.get_rng_state()
    torch.testing.assert_close(build(1), build(1), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(build(1), build(2))
    whole = RIVALS["ties"].build(experts, {"density": 1, "coefficient": 1}).updates["z"].dense
    torch.testing.assert_close(build(1, density=1), whole)


def test_svd_at_full_rank_is_task_arithmetic_and_below_it_the_nearest_matrix(experts):
    whole = RIVALS["task_arithmetic"].build(experts, {"coefficient": 0.7})
    full = RIVALS["svd"].build(experts, {"rank_multiple": 3, "coefficient": 0.7})
    assert full.lost < 1e-12
    small = RIVALS["svd"].build(experts, {"rank_multiple": 0.5, "coefficient": 0.7})  # of rank 4
    missed = total = 0.0
    for module, update in small.updates.items():
        expected = 0.7 * sum(dense(experts, module))
        torch.testing.assert_close(full.updates[module].dense, whole.updates[module].dense, rtol=1e-4, atol=1e-5)
        assert len(update.a) <= 2
        u, s, vt = np.linalg.svd(expected)
        np.testing.assert_allclose(update.dense.numpy(), (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-3, atol=1e-5)
        missed, total = missed + (s[2:] ** 2).sum(), total + (s**2).sum()
    assert small.lost == pytest.approx(missed / total)
    assert small.lost > 0.05


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12)])
def test_a_dense_update_is_written_exactly_or_as_the_nearest_of_its_rank(shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    exact, missed = factored(delta, 12)
    assert missed == 0
    torch.testing.assert_close(exact.dense, delta, rtol=0, atol=0)
    cut, missed = factored(delta, 5)
    u, s, vt = np.linalg.svd(delta.double().numpy())
    np.testing.assert_allclose(cut.dense.numpy(), (u[:, :5] * s[:5]) @ vt[:5], rtol=1e-3, atol=1e-4)
    assert missed == pytest.approx((s[5:] ** 2).sum(), rel=1e-4)
    assert (cut.a.shape, cut.b.shape) == ((5, shape[1]), (shape[0], 5))


def test_what_an_adapter_of_limited_rank_loses_is_said():
    experts = random_experts([{"x": (40, 50, 8)}, {"x": (40, 50, 8)}])
    whole = RIVALS["ties"].build(experts, {"density": 0.2, "coefficient": 1.0}, max_rank=40)
    cut = RIVALS["ties"].build(experts, {"density": 0.2, "coefficient": 1.0}, max_rank=10)
    target, found = whole.updates["x"].dense, cut.updates["x"].dense
    assert whole.lost == 0
    assert cut.lost == pytest.approx(float((target - found).square().sum() / target.square().sum()), rel=1e-4)
    assert cut.lost > 0.1


@pytest.mark.parametrize("name", sorted(set(RIVALS) - {"dare_ties"}))
def test_the_order_of_experts_changes_nothing(experts, name):
    one, other = (RIVALS[name].build(order, ONE_EACH[name]).updates for order in (experts, experts[::-1]))
    assert one.keys() == other.keys()
    for module, update in one.items():
        torch.testing.assert_close(update.dense, other[module].dense, rtol=1e-4, atol=1e-5)


def test_a_module_of_one_expert_alone_is_diluted_by_sums_and_not_by_elections(experts):
    alone = experts[0]["x"].dense
    torch.testing.assert_close(RIVALS["average"].build(experts, {}).updates["x"].dense, alone / 3)
    for name in ("ties", "sce"):
        torch.testing.assert_close(RIVALS[name].build(experts, {"density": 1, "coefficient": 1}).updates["x"].dense, alone)


@pytest.mark.parametrize("name", RIVALS)
def test_every_grid_point_builds_a_finite_merge_and_no_two_are_the_same(experts, name):
    rival = RIVALS[name]
    assert rival.name == name
    assert rival.about.endswith(".")
    built = [rival.build(experts, parameters).updates["z"].dense for parameters in rival.grid]
    assert all(bool(delta.isfinite().all()) for delta in built)
    distances = [float((a - b).norm()) for a, b in itertools.combinations(built, 2)]
    assert not distances or min(distances) > 1e-3
    assert ONE_EACH[name].keys() == rival.grid[0].keys()


@pytest.mark.parametrize(("name", "wrong"), [("ties", {"density": 0.0}), ("sce", {"density": 1.5}), ("svd", {"rank_multiple": 0})])
def test_parameters_that_mean_nothing_are_refused(experts, name, wrong):
    with pytest.raises(ValueError, match=f"{name}: {next(iter(wrong))}"):
        RIVALS[name].build(experts, ONE_EACH[name] | wrong)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(1, 7), st.integers(0, 99))
def test_a_truncated_update_of_any_shape_misses_what_it_says(rows, columns, rank, kept, seed):
    update = random_experts([{"x": (rows, columns, rank)}], seed)[0]["x"]
    cut, missed = truncated(update, kept)
    assert len(cut.a) <= kept
    assert float((update.dense - cut.dense).square().sum()) == pytest.approx(missed, rel=1e-3, abs=1e-6)


@pytest.fixture(scope="module")
def embedded(adapters, load_model):
    """The backbone at full precision and the updates of its experts."""
    experts = read_experts({domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")})
    return Backbone(*load_model(), experts), [load_updates(e) for e in experts]


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_on_the_backbone_is_the_base_with_its_weights_added(embedded, load_model, name):
    """Logits through the adapter against a float64 model whose dense weights were changed."""
    backbone, updates = embedded
    merged = RIVALS[name].build(updates, ONE_EACH[name]).updates
    ids = torch.arange(3, 43).view(2, 20)
    backbone.add_updates("rival", merged)
    with torch.no_grad(), backbone.role("rival") as model:
        found = model(input_ids=ids).logits
    backbone.remove("rival")
    changed = load_model()[0].double()
    with torch.no_grad():
        for module, update in merged.items():
            changed.get_submodule(module).weight += update.b.double() @ update.a.double()
        expected = changed(input_ids=ids).logits
        with backbone.role(REFERENCE) as model:
            base = model(input_ids=ids).logits
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    assert (base - found).abs().max() > 0.1


def test_weights_of_a_sum_must_be_one_an_expert(experts):
    with pytest.raises(ValueError, match="shorter"):
        weighted_sum(experts, [0.5, 0.5])
