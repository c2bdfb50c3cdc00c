"""Merges one after the other in each process that the launcher starts: `merging.py CASES`, a JSON list of [output, options, fault].

A fault takes something away that the processes need: `sum` the sum of their gradients, `check` the comparison of their students as well.
What a merge raises, and the bytes of a shared base, are written beside its output.
"""

import json
import sys
from pathlib import Path

from gopd_merge import MergeConfig, casting, distillation, merge
from gopd_merge.cli import main
from gopd_merge.comparison.training import renew_student
from gopd_merge.distill.sharding import held_bytes
from gopd_merge.errors import GopdError
from gopd_merge.parallel import Processes, launched
from gopd_merge.plan import read_inputs

SUM, CHECK = Processes.sum_gradients, Processes.check_same
DISTILL = distillation.distill
BACKBONES = {}


def note(output, name, content):
    Path(f"{output}.{name}-{launched().rank}.json").write_text(json.dumps(content))


def loaded(config, inputs):
    """A backbone with a fresh student; one that another merge has used, where there is one of the kind."""
    kind = (config.quantize, *config.experts)
    if config.shard_base:
        return casting.load_backbone(config, inputs)
    if kind in BACKBONES:
        renew_student(BACKBONES[kind], inputs, config.seed)
    else:
        BACKBONES[kind] = casting.load_backbone(config, inputs)
    return BACKBONES[kind]


def play(output, options, fault):
    if fault == "command":
        note(output, "code", main([*options, "--output", output]))
        return

    def distill(cast, *arguments):
        note(output, "bytes", held_bytes(cast.backbone))
        return DISTILL(cast, *arguments)

    distillation.distill = distill
    Processes.sum_gradients = (lambda *_: None) if fault else SUM
    Processes.check_same = (lambda *_: None) if fault == "check" else CHECK
    config = MergeConfig(output=Path(output), **options)
    inputs = read_inputs(config)
    try:
        merge(config, None, inputs, loaded(config, inputs))  # a loaded one needs no plan, which takes seconds
    except GopdError as error:
        note(output, "raised", [type(error).__name__, str(error)])


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        play(*case)
