"""OUTPUT.partial, where a run works until it is done: who works there, what run it is, and whether another may take its place. No torch.

It becomes OUTPUT by one rename. What only a run that goes on needs is removed after that.
"""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gopd_merge import __version__
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.disk import LOCK, alone, partial_of, read_json_lines, remove, sync, sync_all, write_json
from gopd_merge.errors import InputError
from gopd_merge.experts.intake import WEIGHTS
from gopd_merge.plan import MANIFEST, Inputs, check_output, pin
from gopd_merge.settings import differences, settings_of
from gopd_merge.tracking import TRACKING

REPLACED = ".replaced"  # what follows the name of an output that is being replaced
RUN, CHECKPOINTS = "run.json", "checkpoints"
SCHEMA = 1


@contextmanager
def run_folder(
    config: MergeConfig, inputs: Inputs, resume: bool, environment: Mapping[str, Any], note: Callable[[str], None]
) -> Iterator[Path]:
    """The folder of this merge alone, see `working_folder`; what only a run that goes on needs is removed from it at the end."""
    about = {"config": pin(config, inputs).model_dump(mode="json"), "settings": settings_of(config, inputs), "environment": environment}
    with working_folder(config.output, config.overwrite, about, resume, note) as folder:
        yield folder
    tidy(config.output, config.keep_checkpoints)


@contextmanager
def working_folder(
    output: Path, overwrite: bool, about: Mapping[str, Any], resume: bool, note: Callable[[str], None], manifest: str = MANIFEST
) -> Iterator[Path]:
    """The folder of this run alone; on success it becomes `output`, whole, after everything reached the disk.

    If the block raises, the output is as it was, and what was computed stays in OUTPUT.partial. With `resume` the run that is there goes
    on, if there is one; `note` is told where the machine is another than it began on.

    `about` holds the `config`, the `settings` that the result depends on, the `environment`, and the `command` where that is no
    merge, which writes another `manifest`.
    Raises InputError where another run works there, or one is there that this one does not go on with.
    """
    check_output(output, overwrite, manifest)
    partial = partial_of(output)
    with alone(partial):
        if resume and (partial / RUN).is_file():
            _take_up(partial, about, note)
        else:
            check_unfinished(output, overwrite)
            remove(partial, [path.name for path in partial.iterdir() if path.name != LOCK])
            begun = {"schema": SCHEMA, "version": __version__, "directory": os.path.relpath(Path.cwd(), partial.resolve())}
            write_json(partial / RUN, {**begun, **about})
        try:
            yield partial
        except BaseException:
            if {path.name for path in partial.iterdir()} <= {RUN, LOCK}:
                shutil.rmtree(partial)  # nothing was computed
            raise
        sync_all(partial)
        check_output(output, overwrite, manifest)  # it may have appeared meanwhile
        if output.exists():
            remove(output.parent, [output.name + REPLACED])
            output.rename(output.with_name(output.name + REPLACED))
        partial.rename(output)
        sync(output.absolute().parent)


def tidy(output: Path, keep_checkpoints: bool) -> None:
    """Remove what a finished run has no use for."""
    remove(output, [RUN, LOCK, TRACKING, *(() if keep_checkpoints else (CHECKPOINTS,))])
    remove(output.parent, [output.name + REPLACED])


def is_complete(output: Path, manifest: str = MANIFEST) -> bool:
    """Whether a run ended there, and none is under way to replace it."""
    return (output / manifest).is_file() and not partial_of(output).exists()


def is_same(config: MergeConfig, inputs: Inputs) -> bool:
    """Whether the merge that is under way, or that ended there, is this one."""
    return has_settings(config.output, settings_of(config, inputs))


def has_settings(output: Path, settings: Mapping[str, Any], manifest: str = MANIFEST) -> bool:
    """Whether the run that is under way, or that ended there, is the one with these settings."""
    path = output / manifest if is_complete(output, manifest) else partial_of(output) / RUN
    try:
        return not differences(json.loads(path.read_text(encoding="utf-8"))["settings"], _as_json(settings))
    except (OSError, ValueError, LookupError):
        return False


def saved_steps(output: Path) -> list[int]:
    """The steps of which the run has a checkpoint, whole or not, in order."""
    names = [path.name.removeprefix("step-") for path in (partial_of(output) / CHECKPOINTS).glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def kept(output: Path) -> str:
    """What a run that failed left, and how to go on."""
    steps = saved_steps(output)
    if not steps:
        return f"no step is saved; {output} was not touched"
    return f"step {steps[-1]} is saved, go on with: gopd-merge resume {shlex.quote(str(output))}"


def left_by_a_stop(output: Path, stopped: str = "stopped", manifest: str = MANIFEST) -> str:
    """What a run that a signal ended left, and how to go on, after the words that say what stopped it."""
    if is_complete(output, manifest):
        return f"stopped; {output} is complete"
    if not partial_of(output).exists():
        return f"{stopped} before anything was computed"
    saved = (saved_steps(output) or [0])[-1]
    done = len(read_json_lines(partial_of(output) / "metrics.jsonl"))
    what = "everything is saved" if done == saved else f"step {saved} is saved"
    return f"{stopped} at step {done}; {what}. Go on with: gopd-merge resume {shlex.quote(str(output))}"


def check_unfinished(output: Path, overwrite: bool) -> None:
    """Raises InputError where a fresh run would throw away what an earlier one computed."""
    partial, steps = partial_of(output), saved_steps(output)
    computed = steps or (partial / WEIGHTS).is_file() or any(partial.glob("probe/answers/*"))
    if overwrite or not computed:
        return
    if not (partial / RUN).is_file():
        raise InputError(f"{partial}: holds a student of a run that cannot go on; move it away, or give --overwrite to begin anew")
    there = f"was stopped at step {steps[-1]}" if steps else "was stopped"
    raise InputError(
        f"{partial}: holds a run that {there}; go on with gopd-merge resume {output}, or give --overwrite to throw it away and begin anew"
    )


def command_of(output: Path) -> str | None:
    """The command whose run works or was stopped there, where that is no merge."""
    try:
        about = json.loads((partial_of(output) / RUN).read_text(encoding="utf-8"))
        return str(about["command"]) if "command" in about else None
    except (OSError, ValueError, TypeError):
        return None


def stored_config(output: Path) -> MergeConfig:
    """The options of the merge that works or was stopped there. Raises InputError as `stored_options`."""
    return make_config(stored_options(output))


def stored_options(output: Path) -> dict[str, Any]:
    """The options of the run that works or was stopped there; the working directory becomes the one that it was started in.

    Raises InputError where there is none.
    """
    partial = partial_of(output)
    if not (partial / RUN).is_file():
        raise InputError(f"{output}: no run was stopped there; begin one with gopd-merge --experts … --output {output}")
    about = _read(partial)
    output = output.absolute()
    try:
        os.chdir(partial / about["directory"])
    except OSError as error:
        raise InputError(
            f"{partial}: cannot go on, the folder it was started in is not there ({error.strerror}); give its command again with --resume"
        ) from None
    return {**about["config"], "output": os.path.relpath(output)}


def _take_up(partial: Path, now: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Raises InputError unless it is the run that is there."""
    about = _read(partial)
    if found := differences(about["settings"], _as_json(now["settings"])):
        raise InputError(
            f"{partial}: was begun with {', '.join(found)}; go on with what it was begun with, "
            "or give --overwrite without --resume to begin anew"
        )
    remove(partial, [path.name for path in partial.glob(".gopd-rollout-*")])  # of an engine that a kill left no time
    write_json(partial / RUN, about | {"config": now["config"]})  # what may change counts from now on
    if moved := differences(about["environment"], _as_json(now["environment"])):
        note(f"it began with {', '.join(moved)}: what comes may differ by rounding from a run that was never stopped")


def _read(partial: Path) -> dict[str, Any]:
    """run.json. Raises InputError."""
    try:
        about = dict(json.loads((partial / RUN).read_text(encoding="utf-8")))
        schema, _ = about["schema"], (about["directory"], about["config"], about["settings"], about["environment"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{partial / RUN}: cannot be read ({error}); move it away, or give --overwrite to begin anew") from None
    if schema != SCHEMA:
        raise InputError(f"{partial}: was begun by gopd-merge {about.get('version')}, another version; go on with that one")
    return about


def _as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(content)))
