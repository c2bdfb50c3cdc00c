"""What this machine has: a GPU, and memory. PyTorch is asked, but not imported where its files tell: that takes seconds."""

import ctypes
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import psutil

from gopd_merge.errors import InputError

CUDA_CONTEXT = 500 << 20  # bytes that a process takes on a GPU before its first tensor: an allowance
LIBRARIES = 500 << 20  # bytes of the interpreter and all libraries of a merge, as seen with PyTorch for CPUs on CPython 3.11
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def resolve_device(device: str) -> str:
    """`auto` is the GPU where there is one."""
    return device if device != "auto" else "cuda" if has_gpu() else "cpu"


def has_gpu() -> bool:
    """Whether there is a GPU that PyTorch can use."""
    if "torch" not in sys.modules and not _may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available()


def _may_have_gpu() -> bool:
    """False where the installed PyTorch is for CPUs alone, or is for CUDA and no driver is here."""
    found = find_spec("torch")
    path = Path(found.origin).with_name("version.py") if found and found.origin else None
    spec = spec_from_file_location("gopd_merge._torch_version", path) if path and path.is_file() else None
    if spec is None or spec.loader is None:
        return True
    version = module_from_spec(spec)
    spec.loader.exec_module(version)
    if getattr(version, "hip", None):
        return True
    if not getattr(version, "cuda", None):
        return False
    try:
        ctypes.CDLL("libcuda.so.1" if sys.platform != "win32" else "nvcuda.dll")
    except OSError:
        return False
    return True


def free_memory(device: str) -> int:
    """Bytes that a new process can have on the device now. Raises InputError for a GPU that is not there."""
    if device == "cuda":
        if not has_gpu():
            raise InputError(
                f"--device {device}: this machine has no GPU that PyTorch can use; use --device cpu, or plan with --memory 24GB"
            )
        import torch

        return int(torch.cuda.mem_get_info()[0])
    limits = [Path(file).read_text(encoding="ascii").strip() for file in CGROUP_LIMITS if Path(file).exists()]
    free = int(psutil.virtual_memory().available) + resident_memory()
    return min([free, *(int(limit) for limit in limits if limit.isdigit())])


def program_memory(device: str) -> int:
    """Bytes of a merge's process without its tensors. What this process has already is the least, where the libraries are loaded."""
    if device == "cuda":
        return CUDA_CONTEXT
    return max(LIBRARIES, resident_memory()) if "torch" in sys.modules else LIBRARIES


def resident_memory() -> int:
    """Bytes of this process now."""
    return int(psutil.Process().memory_info().rss)
