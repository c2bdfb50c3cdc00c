"""`gopd-merge sweep`: which α, learning rate and number of steps, and the merge with them."""

import shlex
import sys
from json import dumps as dump_json
from pathlib import Path
from typing import Any

from gopd_merge.cli.merging import summary
from gopd_merge.cli.options import CONFIG, JSON, QUIET, takes
from gopd_merge.cli.quiet import import_libraries, quieten_libraries
from gopd_merge.errors import GopdError, Interrupted
from gopd_merge.options import checked, read_config_file
from gopd_merge.stopping import stop_on_signals
from gopd_merge.sweep_config import SWEPT, SweepConfig


@takes(SweepConfig, CONFIG, JSON, QUIET, without=("alpha",))
def sweep(**options: Any) -> None:
    """Run a sweep; print its runs and the winner's table, or both as one document."""
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    config = _config(options)
    from gopd_merge.plan import check_output, read_inputs

    check_output(config.output, config.overwrite)
    inputs = read_inputs(config)  # refuses within a second, before torch is imported

    quieten_libraries()
    stop_on_signals()
    import_libraries()
    from gopd_merge.report.progress import Progress, Silent
    from gopd_merge.report.sweep import sweep_text
    from gopd_merge.sweep import sweep as run_sweep

    command = shlex.join(["gopd-merge", *sys.argv[1:]])
    with Silent() if quiet else Progress() as listener:
        try:
            found = run_sweep(config, command, listener, inputs)
        except OSError as error:
            raise GopdError(f"{error.filename or config.output}: {error.strerror or error}; what was finished is kept") from error
        except Interrupted as error:
            raise Interrupted("stopped; what was finished is kept, give the same command to go on", error.exit_code - 128) from None
    if as_json:
        print(dump_json({**found.merge.document, "scale": found.scale}, ensure_ascii=False))
    else:
        print(f"{sweep_text(found.scale)}\n\n{summary(found.merge, config)}")


def _config(options: dict[str, Any]) -> SweepConfig:
    """Flags win over the file: what they sweep replaces the file's one value, which a run's merge.json always has."""
    file: Path | None = options.pop("config", None)
    from_file = read_config_file(file) if file else {}
    for grid, single in SWEPT.items():
        if options.get(grid):
            from_file.pop(single, None)
    return checked(SweepConfig, from_file | options)
