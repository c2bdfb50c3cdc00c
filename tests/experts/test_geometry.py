"""Norms, cosines and angles of updates, against the dense matrices that PEFT makes of them."""

import math

import numpy as np
import pytest
import torch

from gopd_merge.experts.deltas import Update, load_updates
from gopd_merge.experts.geometry import layer_of, norms_by_layer, overlap
from gopd_merge.experts.intake import read_experts

FIRST = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"]}
SECOND = {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj", "v_proj"], "use_rslora": True}


def updates_of(path):
    return load_updates(read_experts({"one": path})[0])


def test_the_norm_of_a_layer_is_that_of_its_dense_updates(make_expert):
    path, dense = make_expert("one", **FIRST)
    found = norms_by_layer(updates_of(path))
    assert list(found) == ["0", "1", "2", "3"]
    for layer, norm in found.items():
        squares = sum(float((delta.double() ** 2).sum()) for name, delta in dense.items() if f".layers.{layer}." in name)
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_the_cosine_and_the_angles_are_those_of_the_dense_updates(make_expert):
    (one, dense_one), (two, dense_two) = make_expert("one", **FIRST), make_expert("two", **SECOND)
    found = overlap("one", updates_of(one), "two", updates_of(two))
    shared = sorted(dense_one.keys() & dense_two.keys())
    a, b = (np.concatenate([dense[m].double().numpy().ravel() for m in shared]) for dense in (dense_one, dense_two))
    assert found.modules == len(shared) == 8
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-4)
    angles = []
    for module in shared:  # principal angles from the singular vectors of the dense updates
        bases = [np.linalg.svd(d[module].double().numpy())[0][:, :rank] for d, rank in ((dense_one, 3), (dense_two, 2))]
        angles.append(np.degrees(np.arccos(np.clip(np.linalg.svd(bases[0].T @ bases[1])[1], -1, 1))))
    assert found.mean_angle == pytest.approx(np.mean(angles), rel=1e-3)
    assert found.smallest_angle == pytest.approx(np.median([x.min() for x in angles]), rel=1e-3)


def test_an_expert_agrees_with_itself_opposes_its_negative_and_has_nothing_to_do_with_other_modules(make_expert):
    path, _ = make_expert("one", **FIRST)
    own = updates_of(path)
    negative = {module: type(update)(update.a, -update.b) for module, update in own.items()}
    same, opposed = overlap("a", own, "b", own), overlap("a", own, "b", negative)
    assert same.cosine == pytest.approx(1)
    assert same.mean_angle == pytest.approx(0, abs=1e-3)
    assert opposed.cosine == pytest.approx(-1)
    other, _ = make_expert("two", r=2, target_modules=["o_proj"])
    apart = overlap("a", own, "b", updates_of(other))
    assert (apart.modules, apart.cosine, apart.mean_angle) == (0, None, None)


def test_the_layer_is_the_first_number_of_a_name():
    assert layer_of("model.layers.12.mlp.experts.3.up_proj") == "12"
    assert layer_of("lm_head") == "elsewhere"


def test_an_update_of_zero_points_nowhere():
    """An expert may leave modules as they are; where both speak of one module alone, and one is zero there, there is no angle."""
    a, b = torch.randn(2, 8), torch.randn(6, 2)
    one, other = {"m": Update(a, b), "n": Update(a, torch.zeros_like(b))}, {"m": Update(a, b), "n": Update(a, b)}
    found = overlap("one", one, "other", other)
    assert found.smallest_angle == pytest.approx(0, abs=1e-5)
    found = overlap("one", {"n": one["n"]}, "other", other)
    assert (found.modules, found.cosine, found.smallest_angle, found.mean_angle) == (1, None, None, None)
