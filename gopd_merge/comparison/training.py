"""A further training on the base that is loaded, without loading anything again."""

from gopd_merge import artefacts
from gopd_merge.config import MergeConfig
from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distillation import Clock, Listener, manifest, train_student
from gopd_merge.plan import MANIFEST, Inputs


def renew_student(backbone: Backbone, inputs: Inputs, seed: int) -> None:
    """A fresh student in place of the one that is there: the same as on a base that was just loaded."""
    backbone.remove(STUDENT)
    backbone.add_student(inputs.lora_rank, inputs.targets, seed)


def train_on(backbone: Backbone, config: MergeConfig, inputs: Inputs, listener: Listener) -> None:
    """Train a fresh student to `config.output`: adapter, metrics and merge.json, in a folder that appears whole or not at all.

    Raises InputError where that folder exists, VerificationError.
    """
    clock = Clock()
    renew_student(backbone, inputs, config.seed)
    with artefacts.new_folder(config.output, overwrite=False) as partial:
        used, metrics, tokens = train_student(backbone, config, inputs, partial, clock, listener)
        written = manifest(used, inputs, metrics) | {"seconds": clock.rounded(), "tokens": tokens}
        artefacts.write_json(partial / MANIFEST, written)
