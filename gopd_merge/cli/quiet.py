"""What every command does around its work: quiet libraries, signals."""

import logging
import os
import signal
import warnings

from gopd_merge.errors import Interrupted


def stop_on_signals() -> None:
    """SIGINT and SIGTERM raise Interrupted, so that what was computed is kept; a second one ends at once."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    raise Interrupted("stopped", number)


def quieten_libraries() -> None:
    """Their progress bars and notices would hide ours; their errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module="(transformers|peft|bitsandbytes|torch)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # the forecast reports what it cannot do itself
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
