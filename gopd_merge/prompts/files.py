"""Rows of a file of the user's: JSON lines, JSON, CSV or Parquet."""

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError

SEED = 0  # of which rows are taken where there are more than wanted: the same in every run
FORM = 'write one object a line, such as {"prompt": "…"}'


@dataclass(frozen=True)
class Row:
    """One row, and where a message may say that it is. Columns that hold nothing (null) are left out."""

    where: str  # such as "mine.jsonl: line 3"
    values: dict[str, Any]


def read_file(path: Path) -> list[Row]:
    """All rows of a .jsonl, .jsonl.gz, .json, .csv or .parquet file. Raises InputError, one line.

    Lines are parsed here and not by `datasets`: a message can name the line, and a column may hold values of several types,
    as the arguments of hidden cases do.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "json", "csv", "parquet"):
        raise InputError(f"{path}: its name ends in none of .jsonl, .jsonl.gz, .json, .csv, .parquet; rename or convert it")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); copy it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name an existing file") from None
    if not content.strip():
        raise InputError(f"{path}: the file is empty; {FORM}")
    rows = [make_row(where, values) for where, values in _PARSERS[kind](path, content)]
    if not rows:
        raise InputError(f"{path}: holds no rows; {FORM}")
    return rows


def some_of(count: int, limit: int | None) -> list[int]:
    """Which of so many rows are taken: all, or `limit` of them drawn at random, in their order."""
    return list(range(count)) if limit is None or count <= limit else sorted(random.Random(SEED).sample(range(count), limit))


def make_row(where: str, values: Any) -> Row:
    """A row without its nulls. Raises InputError for what is no object."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected an object, found {type(values).__name__}; {FORM}")
    return Row(where, {name: value for name, value in values.items() if value is not None})


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8") from None


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); {FORM}") from None


def _json_lines(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    # Not splitlines(), which also breaks at characters that JSON may hold.
    for number, line in enumerate(_text(path, content).split("\n"), start=1):
        if line.strip():
            yield f"{path}: line {number}", _json(f"{path}: line {number}", line)


def _json_array(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    rows = _json(f"{path}: it", _text(path, content))
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of objects, found {type(rows).__name__}; {FORM} in a .jsonl file")
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def _csv(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    table = csv.DictReader(io.StringIO(_text(path, content), newline=""), strict=True)
    while True:
        try:
            row = next(table, None)
        except csv.Error as error:
            raise InputError(f"{path}: line {table.line_num} is not CSV ({error}); quote what holds commas or quotes") from None
        if row is None:
            return
        where = f"{path}: line {table.line_num}"
        if None in row:
            raise InputError(f"{where} has more fields than the first line has names; quote what holds commas")
        yield where, {name: value or None for name, value in row.items()}  # an empty cell holds nothing


def _parquet(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:120]}); copy it again") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


_PARSERS = {"jsonl": _json_lines, "json": _json_array, "csv": _csv, "parquet": _parquet}
