"""Every option of `gopd-merge sweep`: those of the merge, and the values that it chooses among."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import field_validator, model_validator

from gopd_merge import halving
from gopd_merge.config import MergeConfig
from gopd_merge.consistency import COPYING, contradiction
from gopd_merge.halving import Candidate, Halving
from gopd_merge.options import option

# What is swept: the option of the sweep -> that of the merge, which it replaces.
SWEPT = {"alphas": "alpha", "learning_rates": "learning_rate", "steps_grid": "steps"}


class SweepConfig(MergeConfig):
    """A merge whose α, learning rate and steps are chosen on validation questions. Frozen; equal configs choose the same."""

    alphas: tuple[float, ...] = option(
        (1, 1.25, 1.5, 2, 3), "values of α to choose among, the same for all domains", "What to choose", list[str], validate_default=True
    )
    learning_rates: tuple[float, ...] = option(
        (), "values of the learning rate to choose among (default: that of the merge)", "What to choose", list[str]
    )
    steps_grid: tuple[int, ...] = option((), "numbers of steps to choose among (default: that of the merge)", "What to choose", list[str])
    tune_limit: int = option(200, "validation questions per domain that each short run answers", "What to choose", ge=1)
    overwrite: bool = option(False, "replace the output folder if it exists, and the runs of a sweep with other options", "Output")

    @field_validator("alphas", "learning_rates", "steps_grid", mode="before")
    @classmethod
    def _values(cls, given: Any, info: Any) -> Any:
        flag = f"--{info.field_name.replace('_', '-')}"
        texts = [given] if isinstance(given, str) or not isinstance(given, Sequence) else given
        values = [_number(flag, part) for text in texts for part in str(text).split(",") if part]
        if len(set(values)) < len(values):
            raise ValueError(f"{flag} {','.join(map(str, texts))} names a value twice; name each once")
        for value in values:
            if flag == "--alphas" and value < 0:
                raise ValueError(f"{flag} {value:g} must be 0 or more; 1 copies the experts, 2 goes as far again")
            if flag != "--alphas" and value <= 0:
                raise ValueError(f"{flag} {value:g} must be above 0; leave it out")
            if flag == "--steps-grid" and value != int(value):
                raise ValueError(f"{flag} {value:g} is not a whole number of steps; give one, such as 50")
        return tuple(sorted(int(value) if flag == "--steps-grid" else value for value in values))

    @model_validator(mode="before")
    @classmethod
    def _alphas_of_method(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("method") in COPYING:
            return {"alphas": "1", **values}
        return values

    @model_validator(mode="after")
    def _can_choose(self) -> "SweepConfig":
        for grid, single in SWEPT.items():
            if grid == "alphas" and self.method in COPYING:
                continue  # α is 1 there, as `_alphas_of_method` has it
            if single in self.model_fields_set and (grid == "alphas" or getattr(self, grid)):
                one, many = (f"--{name.replace('_', '-')}" for name in (single, grid))
                raise ValueError(f"{one} {getattr(self, single)}: a sweep chooses it; leave it out, or name the values with {many}")
        if not self.alphas:
            raise ValueError("--alphas: no values given; name some, such as 1,1.25,1.5,2,3")
        if len(self.candidates) < 2:
            raise ValueError(f"--alphas {self.alphas[0]:g} leaves nothing to choose; name two values or more, or merge with --alpha")
        for candidate in self.candidates:
            if problem := contradiction(self.model_copy(update={"alpha": candidate.alpha, "steps": candidate.steps})):
                raise ValueError(problem)
        assert self.halving
        return self

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every combination of the values, smaller values of α first: where scores are equal the earlier one wins."""
        return tuple(halving.candidates(self.alphas, self.learning_rates, self.steps_grid or (self.steps,)))

    @property
    def halving(self) -> Halving:
        """How they are thinned out. Raises InputError where there are too many for so few steps."""
        return halving.plan([one.steps for one in self.candidates])

    def full_run(self, candidate: Candidate) -> MergeConfig:
        """The merge with a candidate's options."""
        merge = self.model_dump(include=set(MergeConfig.model_fields), exclude_unset=True)
        rate = candidate.learning_rate or self.learning_rate
        return MergeConfig.model_validate(merge | {"alpha": candidate.alpha, "steps": candidate.steps, "learning_rate": rate})

    def short_run(self, candidate: Candidate, steps: int, rate: float) -> MergeConfig:
        """The same in few steps, measured later; `rate` is the learning rate of the full run.

        It is a whole run: a fresh student, a learning rate that rises (for the same share of the steps) and falls to zero. To look at a
        longer run halfway would not do: while the learning rate is high a student is worse than where it comes to rest, the more so
        the higher the rate. Scores of different options could not be compared, nor could a score be with that of the full run.

        Its learning rate is higher by as much as its steps are fewer, so that it goes as far. Adam's steps are as long as the rate,
        whatever the gradient's size, and at first all gradients point the same way: at the rate of the full run a few steps end at
        the same student for every α, a little way from the base, and its score would say nothing of α.
        """
        full = self.full_run(candidate)
        few = {
            "steps": steps,
            "warmup_steps": math.ceil(full.warmup_steps * steps / full.steps),
            "learning_rate": rate * full.steps / steps,
        }
        return full.model_copy(update={**few, "eval": False})


def _number(flag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{flag} {text} is not a number; write numbers with commas between them, such as 1,1.5,2")
    return number
