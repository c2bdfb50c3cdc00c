"""Weight arithmetic on exact updates, compared with PEFT's own delta weights."""

import pytest
import torch

from gopd_merge.distill.backbone import Backbone
from gopd_merge.experts.intake import read_experts
from gopd_merge.experts.static import load_updates, weighted_sum

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


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_update_equals_pefts_delta_weight(make_expert, kind):
    path, expected = make_expert(kind, **CONFIGS[kind])
    updates = load_updates(read_experts({kind: path})[0])
    assert updates.keys() == expected.keys()
    for module, update in updates.items():
        torch.testing.assert_close(update.b @ update.a, expected[module], rtol=1e-5, atol=1e-6)


def test_the_average_on_the_backbone_is_the_mean_of_the_updates_and_not_of_the_factors(make_expert, load_model, peft_delta):
    made = {kind: make_expert(kind, **config) for kind, config in CONFIGS.items()}
    experts = read_experts({kind: path for kind, (path, _) in made.items()})
    backbone = Backbone(*load_model(), experts)
    backbone.add_updates("average", weighted_sum([load_updates(e) for e in experts], [1 / 3] * 3))
    found = peft_delta(backbone.peft, "average")
    for module in {m for _, delta in made.values() for m in delta}:
        parts = [delta[module] for _, delta in made.values() if module in delta]
        torch.testing.assert_close(found[module], sum(parts) / 3, rtol=1e-4, atol=1e-5)
    q = "model.layers.0.self_attn.q_proj"
    one, two, three = (load_updates(e)[q] for e in experts)  # ranks 2, 4 and 8: what fits of the larger ones
    of_factors = (one.b + two.b[:, :2] + three.b[:, :2]) @ (one.a + two.a[:2] + three.a[:2]) / 9
    assert (of_factors - found[q]).norm() > 0.1 * found[q].norm()
