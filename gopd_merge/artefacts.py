"""What is said of a result: the proof that it loads, and on what it was made."""

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from gopd_merge.config import MergeConfig
from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.rollout import encode
from gopd_merge.errors import VerificationError
from gopd_merge.experts.base import Base
from gopd_merge.experts.intake import WEIGHTS
from gopd_merge.plan import Inputs

VERSIONED = ("gopd-merge", "torch", "transformers", "peft", "bitsandbytes", "safetensors")
READBACK = "readback"


@torch.no_grad()
def verify_adapter(backbone: Backbone, folder: Path, prompts: list[str]) -> None:
    """Read the written adapter back with plain PEFT, beside the student on the same base: finite, and the same logits.

    Raises VerificationError.
    """
    if backbone.is_shared:  # no process can run it alone
        _verify_tensors(backbone, folder)
        return
    backbone.load_adapter(folder, READBACK)
    try:
        ids, mask = encode(backbone, prompts)
        logits = {role: backbone.logits(backbone.hidden(role, ids, mask)[:, -1], role) for role in (STUDENT, READBACK)}
    finally:
        backbone.remove(READBACK)
    if not logits[READBACK].isfinite().all():
        raise VerificationError(f"{folder}: the merged adapter gives logits that are not finite; lower --learning-rate or --alpha")
    gap = (logits[STUDENT] - logits[READBACK]).abs().max().item()
    if gap > (0 if backbone.device.type == "cpu" else 0.01 * logits[STUDENT].abs().max().item()):  # a GPU may sum in another order
        raise VerificationError(
            f"{folder}: read back, the adapter's logits differ by up to {gap:.2g} from those in memory; please report this"
        )


def _verify_tensors(backbone: Backbone, folder: Path) -> None:
    """The tensors of the file are those of the student in memory, and finite."""
    held = get_peft_model_state_dict(backbone.peft, adapter_name=STUDENT, save_embedding_layers=False)
    written = load_file(folder / WEIGHTS)
    if held.keys() != written.keys() or any(not torch.equal(held[name].cpu(), tensor) for name, tensor in written.items()):
        raise VerificationError(f"{folder}: read back, the adapter's tensors differ from those in memory; please report this")
    if not all(tensor.isfinite().all() for tensor in written.values()):
        raise VerificationError(f"{folder}: the merged adapter is not finite; lower --learning-rate or --alpha")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, without host or user names."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    return {"commit": _commit(), "python": platform.python_version(), **versions, "device": hardware}


def _commit() -> str | None:
    """The commit of the checkout that the command runs in, if it is one of gopd-merge."""
    git = shutil.which("git")
    if not git or not Path("gopd_merge/pipeline.py").is_file():
        return None
    done = subprocess.run(  # noqa: S603 - no part of the command comes from outside
        [git, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def manifest(config: MergeConfig, inputs: Inputs, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What merge.json holds besides the result document: inputs, options, final metrics."""
    return {
        "config": config.model_dump(mode="json"),
        "inputs": _described_experts(inputs),
        "base": _described_base(inputs.base) | {"quantization": config.quantize, "warnings": list(inputs.base.warnings)},
        "teacher_base": _described_base(inputs.teacher_base) if inputs.teacher_base else None,
        "student": {"rank": inputs.lora_rank, "targets": list(inputs.targets)},
        "final_metrics": metrics,
    }


def _described_base(base: Base) -> dict[str, Any]:
    return {"name": base.name, "commit": base.commit, "licence": base.licence}


def _described_experts(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """By domain. Of one behind a server no more is known than where that is."""
    here: dict[str, dict[str, Any]] = {
        e.domain: {
            "name": e.name,
            "commit": e.commit,
            "sha256": e.sha256,
            "rank": e.rank,
            "targets": list(e.targets),
            "warnings": list(e.warnings),
            "licence": e.licence,
        }
        for e in inputs.experts
    }
    there: dict[str, dict[str, Any]] = {
        domain: {"name": location, "commit": None, "sha256": None, "rank": None, "targets": [], "warnings": [], "licence": None}
        for domain, location in inputs.remote.items()
    }
    return {s.domain: {**here, **there}[s.domain] | {"prompts": s.size, "prompt_source": asdict(s.origin)} for s in inputs.prompts}
