"""`gopd-merge` and `gopd-merge plan`: the merge, and what it will take."""

import shlex
from json import dumps as dump_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gopd_merge.cli.quiet import import_libraries, quieten_libraries
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.errors import GopdError, InputError, Interrupted, ProcessLost
from gopd_merge.options import read_config_file
from gopd_merge.parallel import Processes, launched
from gopd_merge.stopping import stop_on_signals

if TYPE_CHECKING:
    from gopd_merge.pipeline import MergeResult
    from gopd_merge.plan import Inputs

MANIFEST = "merge.json"


def plan(options: dict[str, Any]) -> None:
    """Print what a merge would use and take. Raises InputError where it cannot fit, after printing."""
    as_json, with_time = options.pop("json", False), options.pop("calibrate", False)
    options.pop("quiet", False)
    resume, count = options.pop("resume", False), options.pop("processes", 1)
    config = configured(options)
    if count < 1 or (count > 1 and with_time):
        raise InputError(
            f"--processes {count} cannot be planned like this; give 1 or more, and leave out --calibrate, which measures one process"
        )
    from rich.console import Console

    from gopd_merge.plan import check_output, check_processes, read_inputs
    from gopd_merge.run_folder import check_unfinished

    console, processes = Console(stderr=True), Processes(count=count, local_count=count)
    check_processes(config, processes)
    inputs = read_inputs(config, weights=with_time)
    quieten_libraries()
    with console.status("counting tokens and memory"):
        from gopd_merge.forecast import Forecast
        from gopd_merge.report.plan import plan_text

        forecast = Forecast(config, inputs, processes)
        document = forecast.document()
    try:
        check_output(config.output, config.overwrite)
        check_unfinished(config.output, config.overwrite or resume)
    except InputError as error:
        document["warnings"].append(str(error))  # the merge will not begin, but its plan is worth seeing
    if with_time and forecast.fits:
        from gopd_merge.calibration import calibrate

        with console.status("measuring a few steps"):
            document["seconds"] = calibrate(config, inputs, forecast)
    print(dump_json(document, ensure_ascii=False) if as_json else plan_text(document))
    forecast.check()


def merge(options: dict[str, Any]) -> None:
    """Run a merge and print its table or document."""
    resume = options.pop("resume", False)
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    with launched().one_voice():
        config = configured(options)
        from gopd_merge.plan import check_output, check_processes, read_inputs
        from gopd_merge.run_folder import check_unfinished, is_complete, is_same

        done = resume and is_complete(config.output)
        if not done:
            check_output(config.output, config.overwrite)
        if not resume:
            check_unfinished(config.output, config.overwrite)
        check_processes(config, launched())
        inputs = read_inputs(config)  # refuses within a second, before torch is imported
    if done and is_same(config, inputs):
        _print_complete(config, as_json)
    else:
        _run(config, inputs, resume, as_json, quiet)


def resume(
    output: str, *, json: Annotated[bool, Parameter(negative=())] = False, quiet: Annotated[bool, Parameter(negative=())] = False
) -> None:
    """Go on with a merge, or the training of an expert, that was stopped or killed, as it was begun.

    Parameters
    ----------
    output
        the folder that it was to be written to
    json
        print the result as one JSON document
    quiet
        no progress, only the result
    """
    from gopd_merge.cli import training
    from gopd_merge.disk import PARTIAL
    from gopd_merge.plan import check_processes, read_inputs
    from gopd_merge.run_folder import command_of, is_complete, stored_config

    folder = Path(output.rstrip("/").removesuffix(PARTIAL))
    if command_of(folder) == training.COMMAND or is_complete(folder, training.MANIFEST):
        training.resume(folder, json, quiet)
        return
    if is_complete(folder):
        _print_complete(make_config(read_config_file(folder / MANIFEST) | {"output": folder}), json)
        return
    with launched().one_voice():
        config = stored_config(folder)
        check_processes(config, launched())
        inputs = read_inputs(config)
    _run(config, inputs, True, json, quiet)


def _run(config: MergeConfig, inputs: "Inputs", resume: bool, as_json: bool, quiet: bool) -> None:
    quieten_libraries()
    stop_on_signals()
    import_libraries()
    from gopd_merge import pipeline
    from gopd_merge.distill.engines import EngineError
    from gopd_merge.distill.remote import TeacherError
    from gopd_merge.report.progress import Progress, Silent
    from gopd_merge.run_folder import kept, left_by_a_stop

    output, processes = config.output, launched()
    with Silent() if quiet or not processes.is_first else Progress() as listener:
        try:
            result = pipeline.merge(config, listener, inputs, resume=resume)
        except OSError as error:
            raise GopdError(f"{error.filename or output}: {error.strerror or error}; {kept(output)}") from error
        except (EngineError, TeacherError, ProcessLost) as error:
            raise GopdError(f"{error}; {kept(output)}") from None
        except Interrupted as error:
            launcher = "stopped by the launcher, as it was itself, or as another process of the run has ended,"
            text = left_by_a_stop(output, launcher if processes.count > 1 else "stopped")
            raise Interrupted(text, error.exit_code - 128) from None
    if not processes.is_first:
        return
    scale = result.scale
    if as_json:
        print(dump_json({**result.document, **({"scale": scale} if scale else {})}, ensure_ascii=False))
    else:
        print(summary(result, config))


def configured(options: dict[str, Any]) -> MergeConfig:
    """The config of flags, over those of a file. Raises InputError."""
    file = options.pop("config", None)
    return make_config((read_config_file(file) if file else {}) | options)


def _print_complete(config: MergeConfig, as_json: bool) -> None:
    """A merge that ended is not made again; what its end may have left to remove is removed."""
    from gopd_merge.run_folder import tidy

    tidy(config.output, config.keep_checkpoints)
    if as_json:
        print((config.output / MANIFEST).read_text(encoding="utf-8"), end="")
    else:
        print(f"{config.output} is complete, nothing is left to do")


def summary(result: "MergeResult", config: MergeConfig) -> str:
    """A merge's table, how its α was chosen if that was, where it is, and the next commands."""
    from gopd_merge.report.scale import scale_text

    written = f"{config.output} written and verified"
    name = shlex.quote(str(config.output))
    table = result.table  # where something was measured the picture of α is in it
    if not table and result.scale:
        return f"{scale_text(result.scale)}\n\n{written}"
    if not table:
        return written
    then = {"tuned rivals": f"compare {name}", "report": f"report {name}", "publish": f"publish {name} you/name"}
    return f"{table}\n\n{written}\n{' · '.join(f'{what}: gopd-merge {words}' for what, words in then.items())}"
