"""A further training on the base that is loaded, without loading anything again."""

from gopd_merge import artefacts
from gopd_merge.artefacts import manifest
from gopd_merge.config import MergeConfig
from gopd_merge.disk import write_json
from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distillation import Listener, train_student
from gopd_merge.plan import MANIFEST, Inputs
from gopd_merge.run_folder import is_same, run_folder
from gopd_merge.usage import Clock
from gopd_merge.writing import with_written


def renew_student(backbone: Backbone, inputs: Inputs, seed: int) -> None:
    """A fresh student in place of the one that is there: the same as on a base that was just loaded."""
    backbone.remove(STUDENT)
    backbone.add_student(inputs.lora_rank, inputs.targets, seed)


def train_on(backbone: Backbone, config: MergeConfig, inputs: Inputs, listener: Listener) -> None:
    """Train a fresh student to `config.output`: adapter, metrics and merge.json, in a folder that appears whole or not at all.

    One that was stopped goes on. Raises InputError where that folder exists, VerificationError.
    """
    clock = Clock()
    renew_student(backbone, inputs, config.seed)
    environment = artefacts.environment(backbone.device)
    with run_folder(config, inputs, is_same(config, inputs), environment, listener.note) as partial:
        inputs = with_written(backbone, config, inputs, partial, listener)
        used, metrics, tokens = train_student(backbone, config, inputs, partial, clock, listener)
        written = manifest(used, inputs, metrics) | {"seconds": clock.rounded(), "tokens": tokens}
        write_json(partial / MANIFEST, written)
