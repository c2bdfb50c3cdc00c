"""What of a run others may read: its manifest and adapter config with names in place of paths and hosts; a last look for secrets.

A Hub id and its commit stay as they are. A folder or file on this machine becomes its last name, an expert behind a server the name that it
has there.
"""

import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from gopd_merge.errors import InputError
from gopd_merge.experts.hub import HUB_ID
from gopd_merge.prompt_source import FileSource, parse_source
from gopd_merge.server import is_remote

TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bBearer\s+\S{8,}|://[^/\s@]+:[^/\s@]+@")
PLACES = ("base", "teacher_base", "reference", "kl_reference", "start", "output", "rollout")  # options that may name a place
PINNED = re.compile(r"\w[\w.-]*/\w[\w.-]*@[0-9a-f]{40}")  # a Hub id with its commit


def public_manifest(manifest: Mapping[str, Any], base: tuple[str, str]) -> dict[str, Any]:
    """The manifest as others may read it, on the base `(Hub id, commit)`."""
    names = dict(_names(manifest))
    cleaned: dict[str, Any] = _renamed(dict(manifest), names)
    if manifest["base"]["commit"] is None:
        cleaned["config"]["base"] = f"{base[0]}@{base[1]}"
    cleaned["base"] |= {"name": base[0], "commit": base[1]}
    return cleaned


def public_name(place: str, commit: str | None) -> str:
    """What a place is called where others read it."""
    if commit is not None:
        return place
    if is_remote(place):
        return place.partition("#")[2] or "a server"
    return PurePath(place).name or place


def _names(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each place that the manifest may name, with what it is called instead."""
    config = manifest["config"]
    described = [*manifest["inputs"].values(), manifest["base"], *([manifest["teacher_base"]] if manifest.get("teacher_base") else [])]
    for one in described:
        yield one["name"], public_name(one["name"], one["commit"])
    hub = {one["name"] for one in described if one["commit"]}
    yield from _files(config)
    options = [*config["experts"].values(), *(config.get(name) for name in PLACES), manifest.get("output")]
    for place in options:
        if isinstance(place, str) and place.partition("@")[0] not in hub and not PINNED.fullmatch(place):
            yield place, public_name(place, None)


def _files(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files of prompts and of questions to keep them apart from; a data set's id stays as it is."""
    for text in config["prompts"].values():
        source = parse_source(text)
        if isinstance(source, FileSource):
            yield str(source.path), source.path.name
    for suite in config.get("decontaminate", ()):
        place = suite.rpartition("=")[2]
        yield place, PurePath(place).name


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The same with every place, wherever it stands in a text, under its other name. Longer ones first: they may hold shorter ones."""
    if isinstance(value, str):
        for place in sorted(names, key=len, reverse=True):
            if place != names[place] and ("/" in place or is_remote(place)):
                value = value.replace(place, names[place])
        return value
    if isinstance(value, Mapping):
        return {_renamed(key, names): _renamed(item, names) for key, item in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list | tuple) else value


def check_public(name: str, text: str, folder: Path) -> None:
    """Raises InputError where the text of a file holds a token, a place on this machine, or its name."""
    if TOKEN.search(text):
        raise InputError(f"{name}: holds what looks like a token or a password; take it out of the merge's options and merge again")
    for place in {str(Path.home()), str(Path.cwd()), str(folder.resolve().parent)} - {"/"}:
        if re.search(rf"(?<![\w.]){re.escape(place)}(?![\w-])", text):
            raise InputError(f"{name}: names the folder {place} of this machine; merge again with paths from the working directory")
    host = socket.gethostname()  # one of letters alone may be any word of the text
    if not host.isalpha() and re.search(rf"(?<![\w-]){re.escape(host)}(?![\w-])", text):
        raise InputError(f"{name}: names this machine, {host}; merge again with options that do not")


def check_repo(repo: str) -> None:
    """Raises InputError for what is no name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    match = HUB_ID.fullmatch(repo)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo}: not a name that the Hub takes ({' '.join(str(error).split())[:120]}); write user/name") from None
    if match is None or match["revision"]:
        raise InputError(f"{repo}: not a repository's name; write user/name, and a branch with --revision")
