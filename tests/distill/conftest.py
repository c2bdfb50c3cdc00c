"""Backbones with the embedded experts on them."""

import json
import shutil

import pytest
import torch

from gopd_merge.distill.backbone import Backbone
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
