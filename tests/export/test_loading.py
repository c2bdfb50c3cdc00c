"""The adapter as the merge wrote it, in plain PEFT and in Transformers' own adapter loading: the same logits as on the backbone."""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


@torch.no_grad()
def test_peft_and_transformers_answer_as_the_backbone_does(adapters, load_model, tmp_path, prompt):
    from gopd_merge.distill.backbone import STUDENT, Backbone

    backbone = Backbone(*load_model(), [])
    backbone.add_student(4, ["q_proj", "down_proj"], seed=0)
    for parameter in backbone.student_parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path / "merged.lora"
    folder.mkdir()
    backbone.save_student(folder, "adapters/tiny-base", None)
    with backbone.role(STUDENT) as model:
        expected = model(input_ids=prompt).logits

    def base():
        return AutoModelForCausalLM.from_pretrained(adapters / "tiny-base", dtype=torch.float32)

    by_peft = PeftModel.from_pretrained(base(), folder)(input_ids=prompt).logits
    by_transformers = base()
    by_transformers.load_adapter(str(folder))
    torch.testing.assert_close(by_peft, expected)
    torch.testing.assert_close(by_transformers(input_ids=prompt).logits, expected)
    by_transformers.disable_adapters()
    assert not torch.allclose(by_transformers(input_ids=prompt).logits, expected, atol=1e-2)  # the control: the base
