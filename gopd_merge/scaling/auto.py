"""`--alpha auto`: the probe, inside a merge, of the very target that the merge would train."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gopd_merge import artefacts
from gopd_merge.artefacts import manifest
from gopd_merge.casting import aims_of, rule_of
from gopd_merge.comparison.measuring import Setup
from gopd_merge.config import AUTO_ALPHAS, MergeConfig
from gopd_merge.disk import write_json
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.mixture import Mix
from gopd_merge.distillation import Listener
from gopd_merge.plan import Inputs
from gopd_merge.report.scale import SCALE
from gopd_merge.scaling.document import scale_document
from gopd_merge.scaling.probe import Target, probe_on
from gopd_merge.settings import identity
from gopd_merge.usage import Clock

PROBE = "probe"  # the folder of its answers, in that of the merge


def choose_alpha(
    backbone: Backbone, config: MergeConfig, inputs: Inputs, folder: Path, listener: Listener
) -> tuple[MergeConfig, dict[str, Any]]:
    """The config with the α that the probe chooses for each domain, and the document of how; that and the answers go to `folder`."""
    clock = Clock()
    base = identity(inputs.base, inputs.experts, config.quantize)
    setup = Setup(folder / PROBE, base, config.seed, config.batch_size, config.unsafe_exec)
    found = probe_on(backbone, inputs.validation, AUTO_ALPHAS, setup, listener, target_of(config, inputs), config.changes)
    known = manifest(config, inputs, {})
    described = {
        "command": "gopd-merge --config merge.json --alpha auto",
        **{name: known[name] for name in ("inputs", "base", "config")},
        "environment": artefacts.environment(backbone.device),
        "seconds": clock.rounded(),
    }
    document = scale_document("probe", found.points, found.chosen, found.why, described)
    write_json(folder / SCALE, document)
    for domain, alpha in found.chosen.items():
        listener.note(f"α = {alpha:g} for {domain}: {found.why[domain]}")
    return config.model_copy(update={"alpha": dict(found.chosen)}), document


def target_of(config: MergeConfig, inputs: Inputs) -> Target:
    """What the merge would train at an α, to be sampled."""
    aims, rule = aims_of(config, inputs), rule_of(config)

    def target(domain: str, alpha: float) -> tuple[list[str], Mix]:
        aim = aims[domain]
        count = len(aim.rewards)
        roles = list(aim.roles if rule.moves_alpha or rule.bound is not None else aim.coefficients([alpha] * count))

        def mix(logits: Tensor) -> Tensor:
            of_role = dict(zip(roles, logits, strict=True))  # (B, V) each
            asked = torch.full((logits.shape[1], count), alpha, device=logits.device)
            return rule.target_logits(aim, rule.alphas(aim, asked, of_role), of_role)

        return [role.adapter for role in roles], mix

    return target
