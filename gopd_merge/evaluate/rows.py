"""Rows of a data set: from the Hub through `datasets`, or from a file of the user's."""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError

COMMIT = re.compile(r"[0-9a-f]{40}")
VALIDATION_SHARE = 5  # one question in so many of a file that has no splits
SPLITS = ("test", "validation")
OWN_FORM = 'write {"prompt": "…", "answer": "…"} or the like, one a line'


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
        raise InputError(f"{path}: cannot be read ({error.strerror}); name an existing file of questions") from None
    if not content.strip():
        raise InputError(f"{path}: the file is empty; {OWN_FORM}")
    rows = [_row(where, values) for where, values in _PARSERS[kind](path, content)]
    if not rows:
        raise InputError(f"{path}: holds no rows; {OWN_FORM}")
    return rows


def read_hub(suite: str, repo: str, config: str | None, revision: str | None, split: str) -> list[Row]:
    """The rows of a split of a data set on the Hub, or in its cache; `split` may be a slice. Raises InputError, one line."""
    import datasets  # takes a second

    try:
        # The prefix keeps a folder of that name from standing in for the repository.
        found = datasets.load_dataset(f"hf://datasets/{repo}", config, split=split, revision=revision)
    except Exception as error:  # the network, the server, the cache, a split that is not there: each has errors of its own
        problem = f"its data set {repo} could not be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise InputError(f"{suite}: {problem}; connect to the Hub, or name a file: --data {suite}=FILE") from None
    commit = Path(found.cache_files[0]["filename"]).parent.name if found.cache_files else None
    if revision and COMMIT.fullmatch(revision) and commit != revision:  # offline, `datasets` takes whatever it has
        problem = f"the cache has {repo} at {commit}, the suite names {revision}"
        raise InputError(f"{suite}: {problem}; connect to the Hub, or name a file: --data {suite}=FILE")
    return [_row(f"{repo}, {split}: row {number}", dict(row)) for number, row in enumerate(found, start=1)]


def choose(path: Path, rows: Sequence[Row], split: str, expression: str | None) -> list[Row]:
    """The rows of a file that make up a split, in the file's order. Raises InputError when there are none.

    `expression` is what the suite calls that split on the Hub, such as `train[:500]`: it is read off the rows' `split`; a file without
    that column is the test split. Where the suite has no splits, the rows' `split` says test or validation; without it, one
    question in five, by the hash of its prompt, is for validation.
    """
    unnamed = [row for row in rows if "split" not in row.values]
    if unnamed and len(unnamed) < len(rows):
        raise InputError(f'{unnamed[0].where} has no "split", other rows have one; give it to all or to none')
    if expression is None:
        chosen = [row for row in rows if (_hashed_split(row) if unnamed else _named_split(row)) == split]
    elif unnamed:
        chosen = list(rows) if split == "test" else []
    else:
        chosen = _slice(path, rows, expression)
    if not chosen:
        found = ", ".join(f"{count} of {name}" for name, count in Counter(row.values.get("split", "none") for row in rows).items())
        wanted = f"{split}, which is {expression}" if expression else split
        raise InputError(f'{path}: has no rows of the split {wanted} (its rows by their "split": {found}); add some, or name another file')
    return chosen


def _slice(path: Path, rows: Sequence[Row], expression: str) -> list[Row]:
    """Rows by an expression of `datasets`, such as `validation+train[:100]`, of the splits that the file has."""
    import datasets

    splits: dict[str, list[Row]] = {name: [] for name in re.findall(r"[A-Za-z_]\w*", expression)}
    for row in rows:
        splits.setdefault(str(row.values["split"]), []).append(row)
    try:
        parts = datasets.ReadInstruction.from_spec(expression).to_absolute({name: len(found) for name, found in splits.items()})
    except (ValueError, AssertionError) as error:
        raise InputError(f"{path}: {expression} cannot be taken from it ({error}); see the suite's splits") from None
    return [row for part in parts for row in splits[part.splitname][part.from_ : part.to]]


def _named_split(row: Row) -> str:
    name = row.values["split"]
    if name not in (*SPLITS, "train"):
        raise InputError(f'{row.where}: its "split" is {name}; write test or validation')
    return str(name)


def _hashed_split(row: Row) -> str:
    digest = hashlib.sha256(str(row.values.get("prompt")).encode("utf-8", "backslashreplace")).digest()
    return "validation" if int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0 else "test"


def _row(where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected an object, found {type(values).__name__}; {OWN_FORM}")
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
        raise InputError(f"{where} is not JSON ({error}); {OWN_FORM}") from None


def _json_lines(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    # Not splitlines(), which also breaks at characters that JSON may hold.
    for number, line in enumerate(_text(path, content).split("\n"), start=1):
        if line.strip():
            yield f"{path}: line {number}", _json(f"{path}: line {number}", line)


def _json_array(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    rows = _json(f"{path}: it", _text(path, content))
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of objects, found {type(rows).__name__}; {OWN_FORM} in a .jsonl file")
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
