"""`gopd-merge prompts`: the catalogue, or the prompts of a merge as files."""

import json as json_format
from pathlib import Path
from typing import Any

from gopd_merge.cli.merging import configured
from gopd_merge.cli.options import CONFIG, JSON, QUIET, takes
from gopd_merge.cli.quiet import quieten_libraries
from gopd_merge.config import MergeConfig
from gopd_merge.errors import GopdError
from gopd_merge.stopping import stop_on_signals


@takes(MergeConfig, CONFIG, JSON, QUIET)
def prompts(**options: Any) -> None:
    """List the catalogue; with --experts and --output, write the prompts that their merge would ask, one file a domain."""
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    if not {"experts", "config"} & set(options):
        from gopd_merge.prompts.catalogue import ENTRIES
        from gopd_merge.report.prompts import catalogue_text

        listed = {name: entry.model_dump() for name, entry in ENTRIES.items()}
        print(json_format.dumps(listed, ensure_ascii=False) if as_json else catalogue_text(listed))
        return
    config = configured({"output": Path("prompts"), **options})
    quieten_libraries()
    stop_on_signals()
    from gopd_merge.asking import write_prompts
    from gopd_merge.report.progress import Progress, Silent
    from gopd_merge.report.prompts import written_text

    with Silent() if quiet else Progress() as listener:
        try:
            document = write_prompts(config, listener)
        except OSError as error:
            raise GopdError(f"{error.filename or config.output}: {error.strerror or error}; nothing there was replaced") from error
    print(json_format.dumps(document, ensure_ascii=False) if as_json else written_text(document))
