"""What a run takes: seconds by phase, and memory."""

import ctypes
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

M_MMAP_THRESHOLD = -3  # of <malloc.h>


class Clock:
    """Seconds by phase. Phases may be entered again and again, but not inside each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count what the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Of this sitting and those before."""
        return {**self.seconds, "total": time.perf_counter() - self._started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        for phase, seconds in state.items():
            self.seconds[phase] += seconds
        self._started -= self.seconds.pop("total")

    def rounded(self) -> dict[str, float]:
        """By phase, and in total since the first start."""
        total = time.perf_counter() - self._started
        return {phase: round(seconds, 2) for phase, seconds in {**self.seconds, "total": total}.items()}


def give_back_freed_memory() -> None:
    """Blocks of 256 KiB and more return to the system when they are freed: the run then takes what its plan says, and more time.

    Left to itself glibc raises that limit up to 32 MiB, and the process keeps a heap full of holes. No-op on other systems.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 256 << 10)


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak allocation, or on CPU the largest resident size of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # getrusage would count what the process that started this one held
        held = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if held:
            return int(held[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
