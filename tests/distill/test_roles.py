"""One backbone plays every role exactly as separately loaded models would, and nothing leaks between the roles."""

import pytest
import torch
from peft import PeftModel

from gopd_merge.distill.backbone import REFERENCE, STUDENT, expert
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale, score
from gopd_merge.experts.base import Base, load_base

ROLES = (REFERENCE, expert("math"), expert("code"))


def tokens(backbone):
    ids = torch.randint(4, 500, (5, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding
    return ids, mask


def plain_hidden(adapters, quantize, role, ids, mask):
    """Last hidden states by Transformers and PEFT alone: a base of its own, at most one adapter."""
    location = str(adapters / "tiny-base")
    model, _ = load_base(Base(location, location), quantize, "cpu")
    if role != REFERENCE:
        model = PeftModel.from_pretrained(model, adapters / f"{role.removeprefix('expert-')}.lora").eval()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("role", ROLES)
def test_a_switched_adapter_equals_a_separately_loaded_model_bit_for_bit(adapters, float_backbone, nf4_backbone, quantize, role):
    backbone = {"none": float_backbone, "nf4": nf4_backbone}[quantize]
    ids, mask = tokens(backbone)
    found = backbone.hidden(role, ids, mask)
    assert torch.equal(found[mask.bool()], plain_hidden(adapters, quantize, role, ids, mask)[mask.bool()])


def test_the_roles_of_that_comparison_differ_from_each_other(backbone):
    """The control: were all adapters ignored, the comparison with separate models would still need this to fail."""
    ids, mask = tokens(backbone)
    hidden = {role: backbone.hidden(role, ids, mask) for role in (*ROLES, STUDENT)}
    assert all(not torch.equal(hidden[a], hidden[b]) for a in hidden for b in hidden if a < b)


def test_a_mixed_batch_scores_each_row_as_its_own_role_alone(backbone):
    """To rounding: a product of fewer rows may be summed in another order."""
    ids, mask = tokens(backbone)
    roles = [expert("math"), REFERENCE, expert("code"), expert("math"), REFERENCE]
    mixed = backbone.hidden(roles, ids, mask)
    for row, role in enumerate(roles):
        own = mask[row].bool()
        alone = backbone.hidden(role, ids, mask)[row]
        torch.testing.assert_close(mixed[row][own], alone[own], rtol=1e-5, atol=1e-5)
        for other in {*roles} - {role}:  # the control
            assert (mixed[row][own] - backbone.hidden(other, ids, mask)[row][own]).abs().max() > 1e-2


def test_passes_by_role_give_what_the_mixed_batch_gives(float_backbone, monkeypatch):
    """What DoRA needs, since PEFT refuses it in a mixed batch; other matrix shapes, so equal to rounding."""
    ids, mask = tokens(float_backbone)
    roles = [expert("math"), REFERENCE, expert("code"), expert("math"), REFERENCE]
    mixed = float_backbone.hidden(roles, ids, mask)
    monkeypatch.setattr(float_backbone, "_alone", {expert("math")})
    torch.testing.assert_close(float_backbone.hidden(roles, ids, mask)[mask.bool()], mixed[mask.bool()], rtol=1e-5, atol=1e-5)


def test_scoring_changes_no_parameter_and_no_gradient(backbone, questions):
    for parameter in backbone.student_parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    before = {name: parameter.detach().clone() for name, parameter in backbone.peft.named_parameters()}
    trainable = {name for name, parameter in backbone.peft.named_parameters() if parameter.requires_grad}
    rollout = generate(backbone, STUDENT, *questions, 8, range(4))
    score(plain_cast(backbone, ["math", "code"]), rollout, Scale({"math": 2.0, "code": 2.0}), micro_batch_size=3, chunk_tokens=64)
    for name, parameter in backbone.peft.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert {name for name, parameter in backbone.peft.named_parameters() if parameter.requires_grad} == trainable
    assert trainable
    assert all(f".{STUDENT}." in name for name in trainable)
    assert all((parameter.grad == 0.5).all() for parameter in backbone.student_parameters())
    for parameter in backbone.student_parameters():
        parameter.grad = None


def test_an_error_inside_a_role_leaves_the_student_on(backbone):
    ids, mask = tokens(backbone)
    student = backbone.hidden(STUDENT, ids, mask)
    for role in ROLES:
        with pytest.raises(RuntimeError, match="on purpose"), backbone.role(role):
            raise RuntimeError("on purpose")
        assert torch.equal(backbone.hidden(STUDENT, ids, mask), student)
        assert all(parameter.requires_grad for parameter in backbone.student_parameters())


def test_padding_on_the_left_does_not_change_a_rows_hidden_states(float_backbone):
    ids, _ = tokens(float_backbone)
    padded = torch.cat([torch.zeros(5, 6, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(5, 6, dtype=torch.long), torch.ones_like(ids)], 1)
    alone = float_backbone.hidden(STUDENT, ids, torch.ones_like(ids))
    torch.testing.assert_close(float_backbone.hidden(STUDENT, padded, mask)[:, 6:], alone, rtol=1e-5, atol=1e-5)
