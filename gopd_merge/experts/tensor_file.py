"""Safetensors files read by header, and their values streamed: finite? all zero? No tensor is held, and no torch."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

LARGEST_HEADER = 16 << 20  # bytes: room for a hundred thousand tensors
CHUNK = 16 << 20  # bytes read at once
# What the values of a tensor may be, and the bits of each that say "not finite" when all are set.
EXPONENTS = {"F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80), "F32": (np.uint32, 0x7F800000), "F64": (np.uint64, 0x7FF0 << 48)}


class UnreadableError(Exception):
    """The file is not what a safetensors file must be."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # in the file
    end: int


def read_header(path: Path) -> list[TensorInfo]:
    """What the file holds, in the order of the bytes. Raises UnreadableError, also for sizes, gaps and overlaps that do not add up."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise UnreadableError(f"its header claims {size:,} bytes")
        header = file.read(size)
    try:
        with safe_open(path, framework="numpy") as checked:  # the library's own check of everything that the header claims
            names = set(checked.keys())
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    except (SafetensorError, ValueError, AttributeError, OSError) as error:
        raise UnreadableError(str(error)) from None
    if names != entries.keys():
        raise UnreadableError("its header names a tensor twice")
    found = [
        TensorInfo(name, e["dtype"], tuple(e["shape"]), 8 + size + e["data_offsets"][0], 8 + size + e["data_offsets"][1])
        for name, e in entries.items()
    ]
    return sorted(found, key=lambda tensor: (tensor.begin, tensor.name))


def not_finite(path: Path, tensors: list[TensorInfo]) -> Iterator[TensorInfo]:
    """Those of the tensors that hold a NaN or an infinity. Their dtypes must be in EXPONENTS."""
    with path.open("rb") as file:
        for tensor in tensors:
            _, exponent = EXPONENTS[tensor.dtype]
            if any(((chunk & exponent) == exponent).any() for chunk in _chunks(file, tensor)):
                yield tensor


def all_zero(path: Path, tensors: list[TensorInfo]) -> bool:
    """Whether every value of every one of the tensors is zero (of either sign)."""
    with path.open("rb") as file:
        for tensor in tensors:
            for chunk in _chunks(file, tensor):
                if (chunk << 1).any():  # the sign does not matter
                    return False
    return True


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(file: BinaryIO, tensor: TensorInfo) -> Iterator[np.ndarray]:
    """The tensor's values as unsigned integers."""
    file.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        chunk = file.read(min(CHUNK, left))
        left -= len(chunk)
        yield np.frombuffer(chunk, dtype=EXPONENTS[tensor.dtype][0])
