"""`gopd-merge eval`, `gopd-merge compare` and `gopd-merge report`: is it really better?"""

import shlex
import sys
from collections.abc import Sequence
from json import dumps as dump_json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from gopd_merge.cli.options import JSON, QUIET, takes
from gopd_merge.cli.quiet import import_libraries, quieten_libraries
from gopd_merge.errors import GopdError, InputError, Interrupted
from gopd_merge.eval_config import CompareConfig, EvalConfig
from gopd_merge.options import checked
from gopd_merge.stopping import stop_on_signals

FORMATS = {"html": ".html", "markdown": ".md", "json": ".json", "text": ".txt"}


@takes(EvalConfig, JSON, QUIET, arguments="adapters")
def evaluate(*adapters: str, **options: Any) -> None:
    """Measure adapters beside their base."""
    _measure(EvalConfig, adapters, options)


@takes(CompareConfig, JSON, QUIET, arguments="adapters")
def compare(*adapters: str, **options: Any) -> None:
    """Measure a merge against its experts and tuned rivals."""
    _measure(CompareConfig, adapters, options)


def _measure(kind: type[EvalConfig], adapters: Sequence[str], options: dict[str, Any]) -> None:
    """Measure what the options say, and print the table or the document."""
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    config = checked(kind, {**options, "adapters": tuple(adapters)})
    quieten_libraries()
    stop_on_signals()
    import_libraries()
    from gopd_merge.comparison.run import compare as compare_all
    from gopd_merge.report.progress import Progress, Silent

    command = shlex.join(["gopd-merge", *sys.argv[1:]])
    with Silent() if quiet else Progress() as listener:
        try:
            found = compare_all(config, command, listener)
        except OSError as error:
            raise GopdError(f"{error.filename or config.output}: {error.strerror or error}; what was answered is kept") from error
        except Interrupted as error:
            raise Interrupted("stopped; what was answered is kept, give the same command to go on", error.exit_code - 128) from None
    if as_json:
        print(dump_json(found.document, ensure_ascii=False))
        return
    again = f"report: gopd-merge report {shlex.quote(str(found.folder))}"
    print(f"{found.table}\n\nanswers and results in {found.folder}\n{again}")


def report(
    *runs: Path,
    output: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    format: Literal["html", "markdown", "json", "text"] = "html",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write what was measured as one page: verdict, scores, answers.

    Parameters
    ----------
    runs
        merges that were measured, or their evaluation folders or results.json; several are put on one page
    output
        file to write (default: report.html or the like in the first run's evaluation folder); - is standard output
    format
        html (one file that needs no network), markdown, json or text
    overwrite
        replace the file that --output names
    """
    from gopd_merge.report.combination import build_report
    from gopd_merge.report.document import json_document, locate
    from gopd_merge.report.page import html_page
    from gopd_merge.report.text import markdown_text, terminal_text

    writers = {"html": html_page, "markdown": markdown_text, "json": json_document, "text": terminal_text}
    text = writers[format](build_report(runs))
    target = output or locate(runs[0]).with_name("report" + FORMATS[format])
    if str(target) == "-":
        print(text)
        return
    if output is not None and target.exists() and not overwrite:
        raise InputError(f"{target} exists; add --overwrite to replace it, or choose another --output")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); choose another --output") from None
    print(f"{target} written")
