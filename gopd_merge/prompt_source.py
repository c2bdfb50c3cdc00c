"""Where prompts come from, as it is written in `--prompts`: a file, a data set on the Hub, the catalogue, or a word. No torch.

FILE[#COLUMN]                                             math.jsonl, .jsonl.gz, .json, .csv or .parquet
user/name[:CONFIG][/SPLIT][@REVISION][#COLUMN]            openai/gsm8k:main/train#question, and parts: /train[500:]+test[:9]
catalogue:NAME                                            catalogue:gsm8k
own                                                       prompts/train.jsonl in the adapter's folder
synth                                                     the expert writes them itself
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gopd_merge.errors import InputError

OWN, SYNTH, CATALOGUE = "own", "synth", "catalogue:"
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
PART = r"\w+(?:\.\w+)*(?:\[\d*:\d*\])?"
DATASET = re.compile(rf"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.,+-]+))?(/(?P<split>{PART}(\+{PART})*))?(@(?P<revision>\w[\w./-]*))?")
FORMS = "FILE.jsonl, user/dataset:CONFIG/SPLIT#COLUMN, catalogue:NAME, own, or synth"


@dataclass(frozen=True)
class FileSource:
    """Rows of a file of the user's."""

    path: Path
    column: str | None = None  # of the prompts; None: `prompt`, or `messages`

    def __str__(self) -> str:
        return f"{self.path}{_after('#', self.column)}"


@dataclass(frozen=True)
class Part:
    """Rows of a split, from `start` on and before `stop`, counted from 0."""

    split: str
    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        return self.split if (self.start, self.stop) == (None, None) else f"{self.split}[{_after('', self.start)}:{_after('', self.stop)}]"


@dataclass(frozen=True)
class DatasetSource:
    """Rows of a data set on the Hub, or in its cache."""

    repo: str
    config: str | None = None
    parts: tuple[Part, ...] = ()  # none: the split train, or the only one
    revision: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        split = f"/{'+'.join(map(str, self.parts))}" if self.parts else ""
        return f"{self.repo}{_after(':', self.config)}{split}{_after('@', self.revision)}{_after('#', self.column)}"


@dataclass(frozen=True)
class NamedSource:
    """An entry of the catalogue by its name; or `own`, or `synth`."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def entry(self) -> str | None:
        """The name in the catalogue; None for what is not in it."""
        return self.name.removeprefix(CATALOGUE) if self.name.startswith(CATALOGUE) else None


Source = FileSource | DatasetSource | NamedSource


def parse_source(text: str) -> Source:
    """What a text names. Nothing is read. Raises InputError, one line, for a text of no form."""
    if text in (OWN, SYNTH) or (text.startswith(CATALOGUE) and text != CATALOGUE):
        return NamedSource(text)
    place, hash_, column = text.partition("#")
    if hash_ and not column:
        raise InputError(f"{text}: names no column after its #; write the column's name there, or leave the # out")
    if place.lower().endswith(ENDINGS):
        return FileSource(Path(place), column or None)
    if os.path.isfile(place):
        raise InputError(f"{place}: its name ends in none of {', '.join(ENDINGS)}; rename or convert it")
    match = DATASET.fullmatch(place)
    if match is None or os.path.isdir(place.partition("/")[0]):
        raise InputError(f"{text}: is no source of prompts; write {FORMS}")
    parts = tuple(_part(text, part) for part in (match["split"] or "").split("+") if part)
    return DatasetSource(match["repo"], match["config"], parts, match["revision"], column or None)


def _part(text: str, part: str) -> Part:
    split, _, bounds = part.removesuffix("]").partition("[")
    start, stop = (int(bound) if bound else None for bound in (bounds or ":").split(":"))
    if stop is not None and (start or 0) >= stop:
        raise InputError(f"{text}: {part} holds no row; write [FIRST:LAST], counted from 0, the last not among them")
    return Part(split, start, stop)


def _after(mark: str, value: object) -> str:
    return "" if value is None else f"{mark}{value}"
