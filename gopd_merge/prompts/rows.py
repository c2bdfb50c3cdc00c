"""Rows of any source that has rows, with the columns that somebody needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gopd_merge.errors import InputError
from gopd_merge.prompt_source import DatasetSource, FileSource, NamedSource, parse_source
from gopd_merge.prompts.catalogue import entry
from gopd_merge.prompts.files import Row, read_file, some_of
from gopd_merge.prompts.hub_rows import read_dataset


@dataclass(frozen=True)
class Table:
    """Rows, and what is to be told of where they come from."""

    name: str  # as a message calls it
    rows: tuple[Row, ...]
    source: FileSource | DatasetSource  # of a data set with the split and the commit that were found
    licence: str | None = None

    @property
    def dataset(self) -> str | None:
        """The data set's id with its commit; None for a file."""
        return f"{self.source.repo}@{self.source.revision}" if isinstance(self.source, DatasetSource) else None

    @property
    def columns(self) -> list[str]:
        """Those that some row fills, in their order."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    def need(self, *columns: str) -> None:
        """Raises InputError, naming the columns that there are, unless every row has these."""
        if missing := [name for name in columns if name not in self.columns]:
            problem = f"has no column {' and no '.join(missing)}"
            raise InputError(f"{self.name}: {problem}; its columns are {', '.join(self.columns)}; rename one, or name another source")
        for row in self.rows:
            for name in columns:
                if name not in row.values:
                    raise InputError(f"{row.where}: its {name} is missing or null; fill it in, or remove the row")


def read_table(text: str, limit: int | None = None) -> Table:
    """The rows of a source in the form of --prompts: a file, a data set, an entry of the catalogue. Raises InputError, one line.

    With a limit, no more than so many, drawn at random but the same every time; a large data set is streamed only as far as that needs.
    """
    source = parse_source(text)
    licence = None
    if isinstance(source, NamedSource):
        if source.entry is None:
            raise InputError(f"{source}: has no rows; name a file, a data set, or an entry of the catalogue")
        licence, source = entry(source.entry).licence, entry(source.entry).where
    if isinstance(source, FileSource):
        rows = read_file(source.path)
        return Table(str(source.path), tuple(rows[at] for at in some_of(len(rows), limit)), source)
    found = read_dataset(source, limit)
    return Table(source.repo, found.rows, found.source, licence or found.licence)


def read_columns(text: str, columns: Sequence[str], limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a source as dictionaries of these columns, none of them null. Raises InputError, naming the columns that there are."""
    table = read_table(text, limit)
    table.need(*columns)
    return [{name: row.values[name] for name in columns} for row in table.rows]
