"""Answers on disk, a JSON line each, so that an evaluation that was stopped goes on where it was and nothing is asked twice."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError


@dataclass(frozen=True)
class Answer:
    """One response of one model to one question."""

    id: str  # of the question
    sample: int  # from 0
    text: str
    score: float  # 1 right, 0 wrong; in an open-ended domain the expert's mean log-likelihood ratio, nats a token
    length: int  # tokens
    capped: bool  # whether the length limit cut it
    seconds: float  # its share of the time that its batch took


class AnswerFile:
    """The answers of one model to one benchmark. The first line says what was asked of whom, and how."""

    def __init__(self, path: Path, header: Mapping[str, Any], batch_size: int) -> None:
        """Reads what is there already, in whole batches: a batch that was cut off is dropped and asked again.

        Raises InputError when the file answers something else than `header`.
        """
        self.path = path
        self.answers: list[Answer] = []
        self._header: dict[str, Any] = json.loads(json.dumps({**header, "batch_size": batch_size}))
        if path.exists() and b"\n" in path.read_bytes():  # else it was cut off in its first line
            self._read(batch_size)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([self._header], "w")

    def append(self, answers: Sequence[Answer]) -> None:
        """Add the answers of one batch."""
        self.answers += answers
        self._write([asdict(answer) for answer in answers], "a")

    def _write(self, rows: Sequence[Mapping[str, Any]], mode: str) -> None:
        with self.path.open(mode, encoding="utf-8", newline="\n") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def _read(self, batch_size: int) -> None:
        content = self.path.read_bytes()
        lines = content.split(b"\n")[:-1]  # what follows the last line end was cut off
        try:
            header = dict(json.loads(lines[0]))
            answers = [Answer(**json.loads(line)) for line in lines[1:]]
        except (IndexError, ValueError, TypeError) as error:
            raise InputError(f"{self.path}: not a file of answers ({error}); remove it, or give --overwrite to ask again") from None
        for key in self._header.keys() | header.keys():
            there, now = header.get(key), self._header.get(key)
            if there != now:
                raise InputError(
                    f"{self.path}: answers a run with {key} {there}, this one has {now}; their scores cannot be compared: "
                    "give --overwrite to ask again, or another --output"
                )
        total = self._header["questions"] * self._header["samples"]
        whole = len(answers) if len(answers) == total else len(answers) // batch_size * batch_size
        self.answers = answers[:whole]
        kept = sum(len(line) + 1 for line in lines[: whole + 1])
        if kept < len(content):
            with self.path.open("r+b") as file:
                file.truncate(kept)
