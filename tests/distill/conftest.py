"""Backbones with the embedded experts on them."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.target import score
from gopd_merge.distill.update import accumulate_gradient
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import read_experts


@pytest.fixture(scope="session")
def make_backbone(adapters):
    """make_backbone(quantize, paths): the base with the experts at `paths` and a student whose adapter is no longer zero."""

    def make(quantize="none", paths=None, student_noise=0.02):
        paths = paths or {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
        experts = read_experts(paths)
        location = str(adapters / "tiny-base")
        backbone = Backbone(*load_base(Base(location, location), quantize, "cpu"), experts)
        backbone.add_student(rank=4, targets=sorted({t for e in experts for t in e.targets}), seed=0)
        with torch.no_grad():
            for index, parameter in enumerate(backbone.student_parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                parameter += student_noise * noise
        return backbone

    return make


@pytest.fixture(scope="session")
def float_backbone(make_backbone):
    return make_backbone("none")


@pytest.fixture(scope="session")
def nf4_backbone(make_backbone):
    return make_backbone("nf4")


@pytest.fixture(params=["none", "nf4"])
def backbone(request, float_backbone, nf4_backbone):
    return {"none": float_backbone, "nf4": nf4_backbone}[request.param]


@pytest.fixture(scope="session")
def questions():
    """Prompts of both domains and their domains, of very different lengths."""
    return (
        [
            "Tom has 5 pens. Tom loses 2. How many pens are left?",
            "Write f(xs): reverse it and return the sum.",
            "Ana has 12 books. Ana buys 2 boxes of 4. Ana gives 3 to Ben. How many books does Ana have?",
            "Write f(xs): sort it from low to high, drop the last 2 and return the largest.",
        ],
        ["math", "code", "math", "code"],
    )


@pytest.fixture(scope="session")
def biased_backbone(adapters, tmp_path_factory):
    """The embedded base with a generation_config.json that would cut and sharpen the distribution."""
    base = shutil.copytree(adapters / "tiny-base", tmp_path_factory.mktemp("biased") / "tiny-base")
    path = base / "generation_config.json"
    cuts = {"do_sample": True, "temperature": 0.1, "top_k": 2, "top_p": 0.3, "repetition_penalty": 3.0, "min_new_tokens": 30}
    path.write_text(json.dumps(json.loads(path.read_text()) | cuts))
    experts = read_experts({"math": str(adapters / "math.lora")})
    backbone = Backbone(*load_base(Base(str(base), str(base)), "none", "cpu"), experts)
    backbone.add_student(4, ["q_proj"], seed=0)
    return backbone


@pytest.fixture(scope="session")
def apart():
    """apart(location, adapter): a base with at most one adapter, loaded by Transformers and PEFT alone, in float64."""

    def load(location, adapter=None, trainable=False):
        model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
        return model.double().eval()

    return load


def log_probs_of(model, rollout, vocabulary):
    """(N, V) of a model that was loaded apart: every response token, one full projection, normalised over the first V tokens."""
    positions = (rollout.attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=rollout.ids, attention_mask=rollout.attention_mask, position_ids=positions).logits
    return logits[:, rollout.prompt_width - 1 : -1][rollout.response_mask][:, :vocabulary].log_softmax(-1)


@pytest.fixture(scope="session")
def log_probs_apart():
    """log_probs_apart(model, rollout, vocabulary): (N, V) float64."""
    return log_probs_of


@pytest.fixture
def step_apart(tmp_path, apart):
    """step_apart(backbone, location, rollout, log_q): KL of each token and the student's gradient by plain autograd in float64.

    The student is saved, and read again by PEFT alone. Gradients come in the order of the backbone's parameters.
    """

    def step(backbone, location, rollout, log_q, loss=None):
        backbone.save_student(tmp_path / "saved", str(location), None)
        student = apart(location, tmp_path / "saved", trainable=True)
        log_p = log_probs_of(student, rollout, log_q.shape[-1])
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        (kl if loss is None else loss(log_p, log_q)).mean().backward()
        gradients = {name.replace(".default.", f".{STUDENT}."): parameter.grad for name, parameter in student.named_parameters()}
        names = [name for name, _ in backbone.peft.named_parameters() if f".{STUDENT}." in name]
        return kl.detach(), torch.cat([gradients[name].flatten() for name in names])

    return step


@pytest.fixture(scope="session")
def take_step():
    """take_step(cast, rollout, scale, estimator): statistics, the student's gradient, which is then cleared, and the target."""

    def take(cast, rollout, scale, estimator="full", micro_batch_size=3, chunk_tokens=16, **options):
        target = score(cast, rollout, scale, micro_batch_size, chunk_tokens)
        statistics = accumulate_gradient(cast, rollout, target, estimator, micro_batch_size, chunk_tokens, **options)
        return statistics, taken_gradient(cast.backbone), target

    return take


def taken_gradient(backbone):
    """All of the student's gradient in one row; it is cleared."""
    parameters = backbone.student_parameters()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return gradient


@pytest.fixture(scope="session")
def take_gradient():
    return taken_gradient


@pytest.fixture(scope="session")
def make_model(adapters):
    """make_model(folder, hidden_size, vocab_size): a random Llama of that width with the embedded base's tokenizer."""

    def make(folder, hidden_size=192, vocab_size=512, seed=0):
        shutil.copytree(adapters / "tiny-base", folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
        config = AutoConfig.from_pretrained(adapters / "tiny-base")
        config.hidden_size, config.vocab_size, config.num_hidden_layers = hidden_size, vocab_size, 2
        config.num_attention_heads = config.num_key_value_heads = hidden_size // config.head_dim
        config.initializer_range = 0.1  # far enough from zero that its distributions are no coin
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_lora():
    """make_lora(base, folder, **config): a random adapter on the base at that place, saved by PEFT."""

    def make(base, folder, seed=0, **config):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config))
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.data += 0.2 * parameter.std().clamp(min=0.1) * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return make
