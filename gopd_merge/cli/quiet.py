"""What every command does before its work: quiet libraries."""

import logging
import os
import sys
import warnings


def quieten_libraries() -> None:
    """Their progress bars and notices would hide ours; their errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module="(transformers|peft|bitsandbytes|torch)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # the forecast reports what it cannot do itself
    if "huggingface_hub" in sys.modules:  # it has read the variables; what is imported later asks it
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
