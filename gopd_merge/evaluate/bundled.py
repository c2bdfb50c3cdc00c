"""Where the suites and metrics are that come with the program: inside an installed package, beside the package in a checkout."""

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parent.parent


def bundled(kind: Literal["suites", "metrics"]) -> Path:
    """The folder of all bundled suites, or of all bundled metrics."""
    installed = PACKAGE / kind
    return installed if installed.is_dir() else PACKAGE.parent / "eval" / kind
