"""`gopd-merge train-expert`: an expert made on the quantised base."""

import shlex
from json import dumps as dump_json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gopd_merge.cli.options import JSON, QUIET, Flag, takes
from gopd_merge.cli.quiet import import_libraries, quieten_libraries
from gopd_merge.errors import GopdError, Interrupted
from gopd_merge.options import checked, read_config_file
from gopd_merge.stopping import stop_on_signals
from gopd_merge.train_config import TrainConfig

if TYPE_CHECKING:
    from gopd_merge.training.inputs import TrainingInputs

COMMAND, MANIFEST = "train-expert", "training.json"
CONFIG: Flag = (
    "config",
    Path | None,
    "options from this YAML file, or an expert's training.json; flags given as well win",
    "What to train",
)
DRY_RUN: Flag = ("dry_run", bool, "only show what the training would use and do", "Output")
RESUME: Flag = ("resume", bool, "go on where this training was stopped, or begin where nothing is there yet", "Output")


@takes(TrainConfig, CONFIG, JSON, QUIET, DRY_RUN, RESUME)
def train_expert(**options: Any) -> None:
    """Train an adapter, and print where it is, its score and the next command."""
    resume, dry_run = options.pop("resume", False), options.pop("dry_run", False)
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    file = options.pop("config", None)
    config = checked(TrainConfig, (read_config_file(file) if file else {}) | options)
    from gopd_merge.plan import check_output
    from gopd_merge.run_folder import check_unfinished, has_settings, is_complete
    from gopd_merge.training.inputs import read_training

    done = resume and is_complete(config.output, MANIFEST)
    if not (done or dry_run):
        check_output(config.output, config.overwrite, MANIFEST)
    if not (resume or dry_run):
        check_unfinished(config.output, config.overwrite)
    inputs = read_training(config)
    if dry_run:
        _plan(config, inputs, as_json)
    elif done and has_settings(config.output, inputs.settings(config), MANIFEST):
        _print_complete(config.output, as_json)
    else:
        run(config, inputs, resume, as_json, quiet)


def resume(output: Path, as_json: bool, quiet: bool) -> None:
    """Go on with a training that was stopped or killed, as it was begun."""
    from gopd_merge.run_folder import is_complete, stored_options
    from gopd_merge.training.inputs import read_training

    if is_complete(output, MANIFEST):
        _print_complete(output, as_json)
        return
    config = checked(TrainConfig, stored_options(output))
    run(config, read_training(config), True, as_json, quiet)


def run(config: TrainConfig, inputs: "TrainingInputs", resume: bool, as_json: bool, quiet: bool) -> None:
    """Train, or go on training."""
    quieten_libraries()
    stop_on_signals()
    import_libraries()
    from gopd_merge.report.training_progress import SilentTraining, TrainingProgress, score_text
    from gopd_merge.run_folder import kept, left_by_a_stop
    from gopd_merge.training.run import train_expert as train

    output = config.output
    with SilentTraining() if quiet else TrainingProgress() as listener:
        try:
            result = train(config, listener, inputs, resume)
        except OSError as error:
            raise GopdError(f"{error.filename or output}: {error.strerror or error}; {kept(output)}") from error
        except Interrupted as error:
            raise Interrupted(left_by_a_stop(output, manifest=MANIFEST), error.exit_code - 128) from None
    document = result.document
    if as_json:
        print(dump_json(document, ensure_ascii=False))
        return
    best = f": step {document['best']['step']}, {score_text(document['best'])}" if document["best"] else ""
    print(f"{output} written and verified{best}")
    print(f"next: gopd-merge --experts {shlex.quote(str(output))} …")


def _plan(config: TrainConfig, inputs: "TrainingInputs", as_json: bool) -> None:
    """Print what the training would do, without loading the base."""
    quieten_libraries()
    from gopd_merge.report.training_progress import plan_text
    from gopd_merge.training.planning import plan

    document = plan(config, inputs)
    print(dump_json(document, ensure_ascii=False) if as_json else plan_text(document))


def _print_complete(output: Path, as_json: bool) -> None:
    """A training that ended is not made again."""
    print(
        (output / MANIFEST).read_text(encoding="utf-8") if as_json else f"{output} is complete, nothing is left to do",
        end="" if as_json else "\n",
    )
