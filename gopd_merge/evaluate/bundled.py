"""Where the benchmarks and metrics are that come with the package: inside it when it was installed, in eval/ of a checkout."""

from pathlib import Path
from typing import Literal

from gopd_merge.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent


def bundled(kind: Literal["suites", "metrics"]) -> Path:
    """The folder of that kind. Raises InputError where there is none, which only a damaged installation brings about."""
    places = (PACKAGE / kind, PACKAGE.parent / "eval" / kind)
    for place in places:
        if place.is_dir():
            return place
    raise InputError(f"{kind}: this installation lacks them ({places[0]} is missing); install gopd-merge again")
