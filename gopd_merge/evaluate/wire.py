"""How values travel between a model's program and its tests: as plain data that cannot carry code, in messages of bounded size.

Neither pickle nor marshal may read what a hostile process wrote. Standard library only, because it also runs inside the sandbox.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False  # importing typing would take as long as the rest of a candidate's start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LONGEST_FRAME = 16 << 20  # bytes
DEEPEST = 100  # containers in containers


class UnsupportedError(ValueError):
    """A value that is not made of plain types."""


class GarbledError(ValueError):
    """Bytes that are no message."""


def encode(value: Any) -> bytes:
    """None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset and dict, nested; raises UnsupportedError on anything else.

    An instance of a subclass travels as its plain type, and a value of numpy's as what its `tolist` gives.
    """
    parts: list[bytes] = []
    _encode(value, parts, 0)
    return b"".join(parts)


def _encode(value: Any, parts: list[bytes], depth: int) -> None:
    if depth > DEEPEST:
        raise UnsupportedError(f"nested deeper than {DEEPEST}")
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or value is True or value is False:
        parts.append({None: b"N", True: b"T", False: b"F"}[value])
    elif isinstance(value, int):
        data = int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True)
        parts.append(b"i" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, float):
        parts.append(b"d" + struct.pack("<d", value))
    elif isinstance(value, complex):
        parts.append(b"c" + struct.pack("<dd", value.real, value.imag))
    elif isinstance(value, str):
        data = str.encode(value, "utf-8", "surrogatepass")
        parts.append(b"s" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, bytes):
        parts.append(b"b" + struct.pack("<I", len(value)) + value)
    elif isinstance(value, dict):
        pairs = list(dict.items(value))
        _encode_items(b"m", len(pairs), (item for pair in pairs for item in pair), parts, depth)
    else:
        kinds: tuple[tuple[bytes, Any], ...] = ((b"l", list), (b"t", tuple), (b"e", set), (b"z", frozenset))
        for tag, plain in kinds:
            if isinstance(value, plain):
                items = list(plain.__iter__(value))
                return _encode_items(tag, len(items), items, parts, depth)
        raise UnsupportedError(f"a value of type {type(value).__name__}")
    return None


def _encode_items(tag: bytes, count: int, items: Iterable[Any], parts: list[bytes], depth: int) -> None:
    parts.append(tag + struct.pack("<I", count))
    for item in items:
        _encode(item, parts, depth + 1)


def decode(data: bytes) -> Any:
    """The value of one encoding. Raises GarbledError on any other bytes; what it makes are plain values whatever the bytes are."""
    try:
        value, end = _decode(data, 0, 0)
    except (struct.error, TypeError, ValueError) as error:  # cut short; unhashable in a set; not UTF-8
        raise GarbledError(f"not a message ({type(error).__name__})") from None
    if end != len(data):
        raise GarbledError("not a message (bytes left over)")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise GarbledError("too deep")
    tag, at = data[at : at + 1], at + 1
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag], at
    if tag == b"d":
        return struct.unpack_from("<d", data, at)[0], at + 8
    if tag == b"c":
        return complex(*struct.unpack_from("<dd", data, at)), at + 16
    (size,) = struct.unpack_from("<I", data, at)
    at += 4
    if size > len(data) - at:  # an item takes a byte or more
        raise GarbledError("cut short")
    if tag in (b"i", b"s", b"b"):
        piece = data[at : at + size]
        value = (
            int.from_bytes(piece, "little", signed=True)
            if tag == b"i"
            else piece.decode("utf-8", "surrogatepass")
            if tag == b"s"
            else piece
        )
        return value, at + size
    kinds: dict[bytes, Callable[[list[Any]], Any]] = {b"l": list, b"t": tuple, b"e": set, b"z": frozenset, b"m": _pairs}
    if tag not in kinds:
        raise GarbledError("no such type")
    items = []
    for _ in range(2 * size if tag == b"m" else size):
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    return kinds[tag](items), at


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def write_frame(descriptor: int, data: bytes) -> None:
    """One message, with its length before it."""
    left = memoryview(struct.pack("<I", len(data)) + data)
    while left:
        left = left[os.write(descriptor, left) :]


def read_frame(descriptor: int) -> bytes:
    """The next message. Raises EOFError when the other side is gone and GarbledError when it announces too much."""
    (size,) = struct.unpack("<I", read_exactly(descriptor, 4))
    if size > LONGEST_FRAME:
        raise GarbledError(f"a message of {size} bytes")
    return read_exactly(descriptor, size)


def read_exactly(descriptor: int, size: int) -> bytes:
    """So many bytes. Raises EOFError when there will not be as many."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(descriptor, min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
