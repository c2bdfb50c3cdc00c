"""Merge LoRA experts of one base model into one adapter, by on-policy distillation with reward extrapolation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gopd_merge.config import MergeConfig
    from gopd_merge.pipeline import MergeResult, merge

__all__ = ["MergeConfig", "MergeResult", "merge"]
__version__: str

_HOME = {"MergeConfig": "gopd_merge.config", "MergeResult": "gopd_merge.pipeline", "merge": "gopd_merge.pipeline"}


def __getattr__(name: str) -> Any:  # torch is imported on first use, not by `import gopd_merge`
    if name == "__version__":
        from importlib.metadata import version

        return version("gopd-merge")
    if name not in _HOME:
        raise AttributeError(f"module 'gopd_merge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
