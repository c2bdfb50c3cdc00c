"""Safetensors files read by header, and their values streamed: finite? all zero? No tensor is held, and no torch."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

LARGEST_HEADER, MOST_TENSORS = 16 << 20, 75_000  # bytes; an expert of 94 layers with 128 experts each has 72,192
CHUNK = 1 << 20  # bytes read at once: what fits the processor's cache is looked at twice as fast
LARGEST_VALUE = 2.0**32  # whose products are still finite in float32; half precision has none so large
# What the values of a tensor may be: the bits of the exponent, and the smallest exponent that is too large (all bits: not finite).
EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "F16": (np.uint16, 0x7C00, 0x7C00),
    "BF16": (np.uint16, 0x7F80, (127 + 32) << 7),
    "F32": (np.uint32, 0x7F800000, (127 + 32) << 23),
    "F64": (np.uint64, 0x7FF0 << 48, (1023 + 32) << 52),
}


class UnreadableError(Exception):
    """The file is not what a safetensors file must be."""


class TensorInfo(NamedTuple):
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # in the file
    end: int


def read_header(path: Path) -> list[TensorInfo]:
    """What the file holds, in the order of the bytes. Raises UnreadableError, also for sizes, gaps and overlaps that do not add up."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > LARGEST_HEADER:
                raise UnreadableError(f"its header claims {size:,} bytes")
            header = file.read(size)
            if header.count(b'"data_offsets"') > MOST_TENSORS:
                raise UnreadableError(f"its header names more than {MOST_TENSORS:,} tensors")
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


def too_large(path: Path, tensors: list[TensorInfo]) -> Iterator[TensorInfo]:
    """Those of the tensors that hold NaN, infinity, or a value of LARGEST_VALUE or more. Their dtypes must be in EXPONENTS."""
    with path.open("rb") as file:
        for tensor in tensors:
            _, exponent, limit = EXPONENTS[tensor.dtype]
            if any(((chunk & exponent) >= limit).any() for chunk in _chunks(file, tensor)):
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
