"""`gopd-merge probe`: which α is worth it?"""

import shlex
import sys
from json import dumps as dump_json
from typing import Any

from gopd_merge.cli.options import JSON, QUIET, takes
from gopd_merge.cli.quiet import import_libraries, quieten_libraries
from gopd_merge.config import MergeConfig
from gopd_merge.errors import GopdError, Interrupted
from gopd_merge.options import checked, expert_domain
from gopd_merge.probe_config import ProbeConfig
from gopd_merge.stopping import stop_on_signals


@takes(ProbeConfig, JSON, QUIET)
def probe(**options: Any) -> None:
    """Measure the targets, and print their scores, the choice and the command to give next."""
    as_json, quiet = options.pop("json", False), options.pop("quiet", False)
    config = checked(ProbeConfig, options)
    quieten_libraries()
    stop_on_signals()
    import_libraries()
    from gopd_merge.report.progress import Progress, Silent
    from gopd_merge.report.scale import SCALE
    from gopd_merge.scaling import probe as probing

    command = shlex.join(["gopd-merge", *sys.argv[1:]])
    with Silent() if quiet else Progress() as listener:
        try:
            found = probing.probe(config, command, listener)
        except OSError as error:
            raise GopdError(f"{error.filename or config.output}: {error.strerror or error}; what was answered is kept") from error
        except Interrupted as error:
            raise Interrupted("stopped; what was answered is kept, give the same command to go on", error.exit_code - 128) from None
    if as_json:
        print(dump_json(found.document, ensure_ascii=False))
        return
    print(f"{found.picture}\n\nanswers and {SCALE} in {found.folder}")
    if found.document["chosen"]:
        print(f"next: {merge_command(config, found.document['chosen'])}")


def merge_command(config: ProbeConfig, chosen: dict[str, float]) -> str:
    """The merge of the same experts with the chosen α; a domain for which none could be chosen has the default."""
    default = MergeConfig.model_fields["alpha"].default
    words = ["gopd-merge", "--experts"]
    words += [path if expert_domain(path) == domain else f"{domain}={path}" for domain, path in config.experts.items()]
    words += ["--alpha", *(f"{domain}={chosen.get(domain, default):g}" for domain in config.experts)]
    words += [word for name in ("base", "quantize", "device") for word in _given(config, name)]
    return shlex.join(words)


def _given(config: ProbeConfig, name: str) -> list[str]:
    """An option that the merge has too, where it is not at its default."""
    value = getattr(config, name)
    return [] if value == ProbeConfig.model_fields[name].default else [f"--{name}", str(value)]
