"""`gopd-merge inspect` and `gopd-merge doctor`: what is there."""

from dataclasses import asdict
from json import dumps as dump_json
from typing import Annotated

from cyclopts import Parameter

from gopd_merge.cli.quiet import quieten_libraries
from gopd_merge.config import make_config
from gopd_merge.errors import GopdError, InputError


def inspect(*paths: str, base: str | None = None, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show what adapters are, and whether they fit together.

    Parameters
    ----------
    paths
        adapter folders: PATH or DOMAIN=PATH, each
    base
        folder of the base model (default: the one that the adapters name)
    json
        print one JSON document
    """
    config = make_config({"experts": list(paths)})
    from gopd_merge.experts.intake import try_experts
    from gopd_merge.inspection import inspect as inspect_experts
    from gopd_merge.report.inspection import inspection_text

    experts, refusals = try_experts(config.experts, allow_noop=True)
    document = inspect_experts(experts, base)
    if experts or json:
        print(dump_json(document, ensure_ascii=False) if json else inspection_text(document))
    if refusals:
        raise InputError(*(line for refusal in refusals for line in refusal.lines))


def doctor(*, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show what this machine has for a merge, and what is missing.

    Parameters
    ----------
    json
        print one JSON document
    """
    quieten_libraries()
    from gopd_merge.doctor import examine, is_healthy
    from gopd_merge.report.inspection import checks_text

    checks = examine()
    print(dump_json({"schema": 1, "checks": [asdict(c) for c in checks]}) if json else checks_text(checks))
    if not is_healthy(checks):
        raise GopdError("this machine cannot run a merge; see the lines that are not ok")
