"""Adapters in a pass: the numbers of PEFT's own layers, and nothing left behind on them."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from gopd_merge.distill.backbone import REFERENCE, STUDENT, expert
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.lora import adapters_by_row
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale
from gopd_merge.errors import InputError

MIXED = [expert("math"), expert("math"), REFERENCE, expert("code"), expert("math"), REFERENCE]


def some_ids(rows=6, width=12):
    return torch.randint(4, 500, (rows, width), generator=torch.Generator().manual_seed(0))


def by_peft(backbone, ids, **options):
    """Last hidden states by PEFT's own forward pass."""
    with torch.no_grad():
        return backbone.peft(input_ids=ids, output_hidden_states=True, use_cache=False, **options).hidden_states[-1]


def layers_with_a_forward_of_their_own(backbone):
    return [name for name, module in backbone.peft.named_modules() if "forward" in vars(module)]


def test_rows_with_an_adapter_each_are_pefts_mixed_batch_bit_for_bit(backbone):
    found = backbone.hidden(MIXED, some_ids())
    assert torch.equal(found, by_peft(backbone, some_ids(), adapter_names=MIXED))
    assert not torch.equal(found, by_peft(backbone, some_ids(), adapter_names=MIXED[::-1]))  # the control
    assert layers_with_a_forward_of_their_own(backbone) == []


def test_so_are_rows_with_adapters_on_embeddings_and_head(make_backbone, make_expert):
    on_embeddings = {"r": 3, "target_modules": ["embed_tokens", "q_proj"]}
    on_head = {"r": 2, "target_modules": ["lm_head", "v_proj"]}
    paths = {"math": make_expert("math", **on_embeddings)[0], "code": make_expert("code", **on_head)[0]}
    backbone = make_backbone("none", paths)
    ids = some_ids()
    assert torch.equal(backbone.hidden(MIXED, ids), by_peft(backbone, ids, adapter_names=MIXED))
    with torch.no_grad():
        expected = backbone.peft(input_ids=ids, use_cache=False, adapter_names=MIXED).logits
        with adapters_by_row(backbone.peft, MIXED):
            assert torch.equal(backbone.peft(input_ids=ids, use_cache=False).logits, expected)
        assert not torch.equal(backbone.peft(input_ids=ids, use_cache=False).logits, expected)  # the control: the student is on again


def test_a_pass_that_fails_leaves_no_layer_changed(float_backbone):
    with pytest.raises(IndexError), float_backbone.training():
        float_backbone.hidden(STUDENT, some_ids() + 10**6)
    with pytest.raises(IndexError):
        float_backbone.hidden(MIXED, some_ids() + 10**6)
    assert layers_with_a_forward_of_their_own(float_backbone) == []


@pytest.fixture
def step(backbone, questions, take_step, monkeypatch):
    """step(recompute, by_peft): statistics and gradient of one step of a fixed rollout."""
    rollout = generate(backbone, STUDENT, *questions, 20, range(4))

    def take(recompute=False, by_peft=False):
        backbone.recompute_activations(recompute)
        try:
            with monkeypatch.context() as patch:
                if by_peft:
                    patch.setattr("gopd_merge.distill.backbone.trained_adapter", lambda *_: torch.enable_grad())
                return take_step(plain_cast(backbone, ["math", "code"]), rollout, Scale({"math": 2.0, "code": 1.5}))[:2]
        finally:
            backbone.recompute_activations(False)

    return take


def test_the_student_trains_as_it_would_by_peft(step):
    (statistics, gradient), (expected_statistics, expected) = step(), step(by_peft=True)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    torch.testing.assert_close(statistics.kl, expected_statistics.kl, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_student_alone_and_all_of_it(backbone, step):
    _, gradient = step()
    assert gradient.count_nonzero() > 0.9 * len(gradient)
    others = [p for name, p in backbone.peft.named_parameters() if f".{STUDENT}." not in name]
    assert others
    assert all(p.grad is None for p in others)


def test_activations_that_are_computed_again_give_the_same_gradient(backbone, step):
    """In evaluation mode, in which Transformers would keep them all; each layer runs twice."""
    runs = []
    handles = [layer.register_forward_pre_hook(lambda *_: runs.append(1)) for layer in backbone.model.modules() if is_mlp(layer)]
    try:
        _, kept = step()
        once = len(runs)
        _, computed_again = step(recompute=True)
    finally:
        for handle in handles:
            handle.remove()
    assert (computed_again - kept).norm() <= 1e-6 * kept.norm()
    micro_batches, layers = 2, len(handles)
    assert once == micro_batches * layers * 2  # scoring, and the student's forward pass
    assert len(runs) - once == micro_batches * layers * 3
    assert not any(module.training for module in backbone.peft.modules())


def test_a_layer_that_is_computed_again_stops_before_its_last_product(backbone, step):
    """What is kept for the way back is complete then; the products before it run again."""
    runs = {"gate_proj": 0, "down_proj": 0}  # the first is not the last of its layer: a control

    def count(name):
        return lambda *_: runs.update({name: runs[name] + 1})

    modules = [(name, layer) for name, layer in backbone.model.named_modules() if name.endswith("base_layer")]
    handles = [layer.register_forward_pre_hook(count(kind)) for kind in runs for name, layer in modules if f"{kind}." in name]
    try:
        step(recompute=True)
    finally:
        for handle in handles:
            handle.remove()
    micro_batches, layers = 2, len(handles) // 2
    assert runs == {"gate_proj": micro_batches * layers * 3, "down_proj": micro_batches * layers * 2}


def is_mlp(module):
    return type(module).__name__.endswith("MLP")


def test_a_model_whose_layers_are_not_known_is_refused(float_backbone, monkeypatch):
    monkeypatch.setattr(float_backbone.model, "_no_split_modules", set())
    with pytest.raises(InputError, match=r"--activation-checkpointing: .* LlamaForCausalLM are; leave it out, and take a smaller --micro"):
        float_backbone.recompute_activations()
    float_backbone.recompute_activations(False)


def test_layers_that_peft_alone_can_run_are_left_to_it(make_backbone, make_expert):
    """Control of the tests above: the student's linear layers do run changed, those of embeddings and other adapters do not."""
    backbone = make_backbone("none", {"math": make_expert("math", r=2, target_modules=["embed_tokens", "q_proj"])[0]})
    with backbone.training():
        changed = layers_with_a_forward_of_their_own(backbone)
    adapted = [name for name, module in backbone.peft.named_modules() if isinstance(module, LoraLayer)]
    assert set(adapted) - set(changed) == {name for name in adapted if name.endswith("embed_tokens")}
    assert changed
