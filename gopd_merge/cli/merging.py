"""`gopd-merge` and `gopd-merge plan`: the merge, and what it will take."""

import shlex
from json import dumps as dump_json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gopd_merge.cli.quiet import quieten_libraries, stop_on_signals
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.errors import GopdError, InputError, Interrupted, ProcessLost
from gopd_merge.options import read_config_file
from gopd_merge.parallel import launched

if TYPE_CHECKING:
    from gopd_merge.pipeline import MergeResult


def plan(options: dict[str, Any]) -> None:
    """Print what a merge would use and take. Raises InputError where it cannot fit, after printing."""
    as_json, with_time = options.pop("json", False), options.pop("calibrate", False)
    options.pop("quiet", False)
    config = _config(options)
    from rich.console import Console

    from gopd_merge.plan import check_output, read_inputs

    console = Console(stderr=True)
    inputs = read_inputs(config, weights=with_time)
    quieten_libraries()
    with console.status("counting tokens and memory"):
        from gopd_merge.forecast import Forecast
        from gopd_merge.report.plan import plan_text

        forecast = Forecast(config, inputs)
        document = forecast.document()
    try:
        check_output(config.output, config.overwrite)
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
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    processes = launched()
    with processes.one_voice():
        config = _config(options)
        from gopd_merge.plan import check_output, check_processes, read_inputs

        check_output(config.output, config.overwrite)
        check_processes(config, processes)
        inputs = read_inputs(config)  # refuses within a second, before torch is imported

    quieten_libraries()
    stop_on_signals()
    from gopd_merge import pipeline
    from gopd_merge.distill.engines import EngineError
    from gopd_merge.distill.remote import TeacherError
    from gopd_merge.report.progress import Progress, Silent

    with Silent() if quiet or not processes.is_first else Progress() as listener:
        try:
            result = pipeline.merge(config, listener, inputs)
        except OSError as error:
            raise GopdError(f"{error.filename or config.output}: {error.strerror or error}; {_kept(config.output)}") from error
        except (EngineError, TeacherError, ProcessLost) as error:
            raise GopdError(f"{error}; {_kept(config.output)}") from None
        except Interrupted as error:
            by = (
                "stopped"
                if processes.count == 1
                else "stopped by the launcher, as it was itself, or as another process of the run has ended"
            )
            raise Interrupted(f"{by}; {_kept(config.output)}", error.exit_code - 128) from None
    if not processes.is_first:
        return
    scale = result.scale
    if as_json:
        print(dump_json({**result.document, **({"scale": scale} if scale else {})}, ensure_ascii=False))
    else:
        print(summary(result, config))


def _config(options: dict[str, Any]) -> MergeConfig:
    file = options.pop("config", None)
    return make_config((read_config_file(file) if file else {}) | options)


def _kept(output: Path) -> str:
    """Where a run that did not finish left the student."""
    partial = output.with_name(output.name + ".partial")
    kept = f"{partial} holds the student so far" if (partial / "adapter_model.safetensors").is_file() else "no step was finished"
    return f"{kept}; {output} was not touched"


def summary(result: "MergeResult", config: MergeConfig) -> str:
    """A merge's table, how its α was chosen if that was, where it is, and the next two commands."""
    from gopd_merge.report.scale import scale_text

    written = f"{config.output} written and verified"
    name = shlex.quote(str(config.output))
    table = result.table  # where something was measured the picture of α is in it
    if not table and result.scale:
        return f"{scale_text(result.scale)}\n\n{written}"
    return f"{table}\n\n{written}\ntuned rivals: gopd-merge compare {name} · report: gopd-merge report {name}" if table else written
