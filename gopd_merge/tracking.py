"""--track: a run's curve in TensorBoard, Weights & Biases or Trackio, through accelerate's trackers.

What is logged are the lines of metrics.jsonl, each step once: a run that goes on continues its curve. Keys and accounts are the trackers'
own business (WANDB_API_KEY, `wandb login`); nothing here reads or writes them. No torch until a run is tracked.
"""

import importlib.util
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gopd_merge.disk import read_json_lines, write_json
from gopd_merge.errors import GopdError, InputError

if TYPE_CHECKING:
    from gopd_merge.config import MergeConfig
    from gopd_merge.distillation import Listener

NONE = "none"
PROJECT = "gopd-merge"
RUNS = "runs"  # TensorBoard's folder, beside the output
TRACKING = "tracking.json"  # in the run's folder: which tracker, the run's name there, and its last step


def check_tracker(name: str) -> None:
    """Raises InputError for a tracker that is not installed."""
    if name != NONE and importlib.util.find_spec(name) is None:
        raise InputError(f"--track {name}: {name} is not installed here; pip install {name}, or leave --track out")


@contextmanager
def tracked(config: "MergeConfig", folder: Path, log: Path, listener: "Listener") -> Iterator["Listener"]:
    """A listener that also sends each step to the tracker of the config, if there is one. `log` is the run's metrics.jsonl.

    It belongs into one process of a run, inside of its group. Raises GopdError where the tracker cannot begin.
    """
    if config.track == NONE:
        yield listener
        return
    curve = _read(folder / TRACKING, config)
    with redirect_stdout(_Nowhere()):  # standard output is for the result
        tracker = _started(config, curve)
    try:
        yield Tracked(listener, tracker, curve, folder / TRACKING, log)
    finally:
        with redirect_stdout(_Nowhere()):
            _finish(tracker, curve, listener)


@dataclass
class Curve:
    """What a tracker has of the run."""

    tracker: str
    run: str  # its name, and its id
    step: int  # the last that was logged


class Tracked:
    """Tells a listener everything, and a tracker each step."""

    def __init__(self, listener: "Listener", tracker: Any, curve: Curve, state: Path, log: Path) -> None:
        self._listener, self._tracker, self._curve, self._state, self._log = listener, tracker, curve, state, log
        self._works, self._said = True, False
        self.started, self.planned, self.phase = listener.started, listener.planned, listener.phase
        self.evaluating, self.note = listener.evaluating, listener.note

    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        """A step's line. Those before it that the tracker lacks are logged with it; one that it has is not logged again."""
        self._track(step, metrics)
        self._listener.step(step, steps, metrics)

    def _track(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not self._works:
            return
        curve = self._curve
        if step <= curve.step:
            if not self._said:
                self.note(f"{curve.tracker} has steps {step} to {curve.step} from before the run was stopped; they are not logged twice")
                self._said = True
            return
        rows = read_json_lines(self._log) if step > curve.step + 1 else [metrics]
        try:
            for row in rows:
                if curve.step < row["step"] <= step:
                    self._tracker.log(flattened(row), step=row["step"])
        except Exception as error:  # each tracker has errors of its own, and a merge does not depend on it
            self._works = False
            self.note(f"{curve.tracker}: {_line(error)}; the run is not tracked from step {step} on")
            return
        curve.step = step
        write_json(self._state, vars(curve))


def flattened(row: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as names and numbers: `kl_to_target`, `math/reward`. What has no value is left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            inner = flattened(value)
            found |= {(key if name == "domains" else f"{name}/{key}"): number for key, number in inner.items()}
        elif isinstance(value, int | float) and name != "step":
            found[name] = value
    return found


def _started(config: "MergeConfig", curve: Curve) -> Any:
    """The tracker, with the options of a run that it does not know yet."""
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState()  # what accelerate's own logging asks for
    try:
        if curve.tracker == "tensorboard":
            tracker = TensorBoardTracker(curve.run, str(config.output.absolute().parent / RUNS))
        elif curve.tracker == "trackio":
            tracker = TrackioTracker(PROJECT, name=curve.run, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)
        else:
            import wandb

            settings = wandb.Settings(console="off", silent=True, save_code=False)
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            tracker = WandBTracker(project, name=curve.run, id=curve.run, resume="allow", settings=settings)
        tracker.start()
        if curve.step == 0:
            values = {name: v if isinstance(v, str | int | float) else json.dumps(v) for name, v in config.model_dump(mode="json").items()}
            tracker.store_init_configuration(values)
    except Exception as error:  # each tracker has errors of its own
        raise GopdError(f"--track {curve.tracker}: {_line(error)}; see its own documentation, or leave --track out") from error
    return tracker


def _finish(tracker: Any, curve: Curve, listener: "Listener") -> None:
    try:
        if curve.tracker == "trackio":
            import trackio

            trackio.finish()  # accelerate's own way leaves the run current, and trackio finishes it again at the end of the program
        else:
            tracker.finish()
    except Exception as error:  # each tracker has errors of its own, and a merge does not depend on it
        listener.note(f"{curve.tracker}: {_line(error)}; what it has of the run may not be all")


def _read(path: Path, config: "MergeConfig") -> Curve:
    """Where the curve of this run is, if this tracker has begun one."""
    if path.is_file():
        curve = Curve(**json.loads(path.read_text(encoding="utf-8")))
        if curve.tracker == config.track:
            return curve
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in config.output.name)
    return Curve(config.track, f"{name}-{uuid.uuid4().hex[:8]}", 0)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...
