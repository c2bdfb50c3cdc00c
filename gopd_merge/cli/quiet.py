"""What a command does before its work: quiet libraries, imported no slower than need be."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

# How often a thread of GNU's OpenMP looks whether the others are done before it sleeps; 300,000 where nobody says. Beside a program that
# kept one of two cores busy a merge of the embedded default then gave 80 to 115 tokens a second; 550 to 610 with this, 1,900 alone.
SPINS = "10000"


def quieten_libraries() -> None:
    """Their progress bars and notices would hide ours; their errors still come through. And threads do not wait at others' expense."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    warnings.filterwarnings("ignore", module="(transformers|peft|bitsandbytes|torch)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # the forecast reports what it cannot do itself
    if "huggingface_hub" in sys.modules:  # it has read the variables; what is imported later asks it
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def import_libraries() -> None:
    """Import what holds a model, in half of the time.

    As it is imported bitsandbytes asks torch.compile for functions of 8-bit layers and optimisers, none of which a merge calls. That would
    import the compiler, which takes two seconds; here such a function is compiled when it is first called.
    """
    import torch

    compiled = torch.compile

    def when_called(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if function is None:
            return lambda given: when_called(given, **options)
        made: list[Callable[..., Any]] = []

        def call(*arguments: Any, **named: Any) -> Any:
            if not made:
                made.append(compiled(function, **options))
            return made[0](*arguments, **named)

        return call

    torch.compile = when_called  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401 - what imports it later finds it
    finally:
        torch.compile = compiled
