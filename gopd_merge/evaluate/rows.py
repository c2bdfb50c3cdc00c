"""Rows of a benchmark: of a split on the Hub through `datasets`, or of a file that says which split each belongs to."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gopd_merge.errors import InputError
from gopd_merge.prompts.files import Row, make_row

COMMIT = re.compile(r"[0-9a-f]{40}")
VALIDATION_SHARE = 5  # one question in so many of a file that has no splits
SPLITS = ("test", "validation")


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
    return [make_row(f"{repo}, {split}: row {number}", dict(row)) for number, row in enumerate(found, start=1)]


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
