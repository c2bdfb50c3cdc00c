"""How long a run will take, from a few steps of it."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from gopd_merge.casting import assembled, load_backbone
from gopd_merge.config import AUTO_ALPHAS, MergeConfig
from gopd_merge.consistency import AUTO
from gopd_merge.distillation import distill
from gopd_merge.forecast import Forecast
from gopd_merge.plan import Inputs
from gopd_merge.report.progress import Silent
from gopd_merge.usage import Clock, give_back_freed_memory
from gopd_merge.writing import with_written

STEPS = 2
FEW = 32  # prompts that each expert writes to see how long that takes


def calibrate(config: MergeConfig, inputs: Inputs, forecast: Forecast) -> dict[str, float]:
    """Seconds that the whole run will take, by phase, from STEPS steps of it after one that warms up."""
    if forecast.is_tight:
        give_back_freed_memory()
    clock, warm_up = Clock(), Clock()
    probed = forecast.work.probed_answers
    if config.alpha == AUTO:  # not chosen yet; above 1 a step takes the same time whatever it is
        config = config.model_copy(update={"alpha": AUTO_ALPHAS[-1]})
    with clock.measure("load"):
        backbone = load_backbone(config, inputs)
    with TemporaryDirectory() as folder:
        if inputs.is_synthetic:
            with clock.measure("prompts"):
                inputs = with_written(backbone, config, _fewer(inputs, FEW), Path(folder), Silent())
        for seed, steps, used in ((config.seed + 1, 1, warm_up), (config.seed, STEPS, clock)):
            few = config.model_copy(update={"steps": steps, "learning_rate": 1e-9, "seed": seed})  # the student stays as it is
            with assembled(backbone, few, inputs, Silent().note) as cast:
                distill(cast, few, inputs, Path(folder), used, Silent())
    step = {phase: clock.seconds[phase] / STEPS for phase in ("rollout", "score", "update")}
    answer = step["rollout"] / config.prompts_per_step
    seconds = {phase: value * config.steps for phase, value in step.items()}
    probe = {"probe": 2 * answer * probed} if probed else {}  # each question runs as two rows
    writing = {"prompts": clock.seconds["prompts"] * config.synth_prompts / FEW} if inputs.is_synthetic else {}
    seconds = {"load": clock.seconds["load"], **writing, **probe, **seconds, "evaluate": answer * forecast.work.evaluated_answers}
    return {phase: round(value, 1) for phase, value in {**seconds, "total": sum(seconds.values())}.items()}


def _fewer(inputs: Inputs, count: int) -> Inputs:
    """With so many prompts for each expert to write."""
    return replace(inputs, prompts=tuple(replace(s, lengths=s.lengths[:count]) if s.is_synthetic else s for s in inputs.prompts))
