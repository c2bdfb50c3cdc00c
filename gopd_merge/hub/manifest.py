"""A finished merge's merge.json, checked: everything that is said of a merge in public comes out of it. No torch."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from gopd_merge.config import MergeConfig
from gopd_merge.errors import InputError
from gopd_merge.experts.intake import CONFIG, WEIGHTS
from gopd_merge.experts.quantization import MANIFEST


class Part(BaseModel):
    """A part of it; what is not named here is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Base(Part):
    """The base as the merge found it."""

    name: str
    commit: str | None
    quantization: Literal["nf4", "none"]
    licence: str | None = None


class Expert(Part):
    """One input. Of one behind a server only the name and the prompts are known."""

    name: str
    commit: str | None
    sha256: str | None
    rank: int | None
    prompts: int
    licence: str | None = None


class Student(Part):
    """The adapter that was trained."""

    rank: int
    targets: tuple[str, ...]


class Manifest(Part):
    """The parts that a card needs."""

    config: MergeConfig
    inputs: dict[str, Expert]
    base: Base
    teacher_base: dict[str, str | None] | None = None
    student: Student
    files: dict[str, str]  # the sha256 of what the merge wrote
    tokens: int
    seconds: dict[str, float]
    environment: dict[str, Any]

    @field_validator("files")
    @classmethod
    def _both(cls, value: dict[str, str]) -> dict[str, str]:
        if missing := [name for name in (CONFIG, WEIGHTS) if name not in value]:
            raise ValueError(f"there is no hash of {missing[0]}")
        return value


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of merge.json. Raises InputError where no merge has ended in the folder, or where a part is missing or damaged."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that a merge has written, such as merged.lora")
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST}, so no merge has ended there; finish it with gopd-merge resume {folder}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        Manifest.model_validate(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); look at its permissions") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: is not what a merge by this version writes ({place}: {first['msg']}); merge again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON document ({error}); merge again") from None
    return dict(content)
