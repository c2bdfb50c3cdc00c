"""A finished merge read back and checked, and the exact files that would be published of it. Nothing is sent. No torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError
from gopd_merge.experts.base import Base, resolve_base
from gopd_merge.experts.fingerprint import has_chat_template
from gopd_merge.experts.hub import HUB_ID
from gopd_merge.experts.intake import CONFIG, WEIGHTS, Expert, read_expert
from gopd_merge.experts.quantization import CARD, MANIFEST
from gopd_merge.hub.card import Place, card_text
from gopd_merge.hub.licence import licences, settle
from gopd_merge.hub.local_base import same_files
from gopd_merge.hub.manifest import read_manifest
from gopd_merge.hub.picture import scores_svg
from gopd_merge.hub.public import check_public, check_repo, public_manifest, public_name
from gopd_merge.report.combination import build_report
from gopd_merge.report.document import Document, locate

METRICS, PICTURE = "metrics.jsonl", "scores.svg"
AGAIN = "copy it again, or merge again"


@dataclass(frozen=True)
class File:
    """One file of a publication. What is not the adapter's weights is held in memory, so nothing can change it any more."""

    name: str
    content: bytes | Path
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Publication:
    """What is to be published: these files and no other."""

    repo: str
    files: Sequence[File]  # in order of name
    card: str
    licence: str
    base: tuple[str, str]  # Hub id and commit
    notes: Sequence[str]  # what is worth knowing before it is sent


def prepare(folder: Path, repo: str, licence: str | None = None, base_id: str | None = None) -> Publication:
    """Read, check and describe a finished merge. The Hub is asked about its base and for nothing else.

    Raises InputError, or Refused with all findings, for whatever should not be published.
    """
    check_repo(repo)
    manifest = read_manifest(folder)
    expert, config = _adapter(folder, manifest)
    settled = settle(licences(manifest), licence)
    base, stated, notes = _base(folder, expert, manifest, base_id)
    document, doubts = _results(folder, expert.sha256)
    picture = scores_svg(document) if document else ""
    assert base.commit is not None  # it came from the Hub
    place = Place(
        repo.partition("/")[2],
        repo,
        settled,
        (base.name, base.commit),
        stated,
        PICTURE if picture else None,
        has_chat_template(Path(base.location)),
    )
    card = card_text(manifest, document, place)
    texts = {
        CONFIG: _json(config | {"base_model_name_or_path": base.name, "revision": base.commit}),
        CARD: card,
        **({PICTURE: picture} if picture else {}),
        **({METRICS: (folder / METRICS).read_text(encoding="utf-8")} if (folder / METRICS).is_file() else {}),
    }
    hashes = {WEIGHTS: expert.sha256, CONFIG: hashlib.sha256(texts[CONFIG].encode()).hexdigest()}
    texts[MANIFEST] = _json(public_manifest(manifest, (base.name, base.commit)) | {"output": place.name, "files": hashes})
    for name, text in texts.items():
        check_public(name, text, folder)
    files = [File(name, data := text.encode(), len(data), hashlib.sha256(data).hexdigest()) for name, text in texts.items()]
    files.append(File(WEIGHTS, folder / WEIGHTS, (folder / WEIGHTS).stat().st_size, expert.sha256))
    return Publication(
        repo, sorted(files, key=lambda file: file.name), card, settled, (base.name, base.commit), [*expert.warnings, *notes, *doubts]
    )


def _adapter(folder: Path, manifest: Mapping[str, Any]) -> tuple[Expert, dict[str, Any]]:
    """The adapter as any other that is read, its tensors finite and its config theirs, and that config. Their bytes are the merge's own."""
    expert = read_expert("merged", str(folder))
    config = (folder / CONFIG).read_bytes()
    for name, found in ((CONFIG, hashlib.sha256(config).hexdigest()), (WEIGHTS, expert.sha256)):
        if found != (expected := manifest["files"][name]):
            raise InputError(
                f"{folder / name}: has changed since the merge (sha256 {found[:12]}…, {MANIFEST} says {expected[:12]}…); {AGAIN}"
            )
    return expert, dict(json.loads(config))


def _base(folder: Path, expert: Expert, manifest: Mapping[str, Any], base_id: str | None) -> tuple[Base, bool, list[str]]:
    """The base on the Hub, whether only its publisher says that it is the one, and what is to be noted about it.

    The adapter must fit it: its shapes and tokenizer, of which only headers and small files are fetched.
    """
    known = manifest["base"]
    if known["commit"] and base_id and base_id != f"{known['name']}@{known['commit']}":
        raise InputError(f"--base-id {base_id}: the merge is for {known['name']} at {known['commit']}; leave --base-id out")
    if not known["commit"] and base_id is None:
        raise InputError(
            f"{folder}: its base is a folder on this machine ({public_name(known['name'], None)}), which others do not have; "
            "publish that first, and say where it is with --base-id owner/name@commit"
        )
    named = f"{known['name']}@{known['commit']}" if known["commit"] else str(base_id)
    if HUB_ID.fullmatch(named) is None:
        raise InputError(f"--base-id {named}: not a Hub id; write owner/name@commit")
    base = resolve_base([expert], named, "headers", known["quantization"])
    if base.commit is None:
        raise InputError(f"--base-id {named}: is a folder on this machine; write owner/name@commit of the Hub")
    if known["commit"]:
        return base, False, list(base.warnings)
    compared = same_files(base, known["name"], folder)
    notes = [*base.warnings, f"the base is {base.name} at {base.commit}" + (f", {compared}" if compared else "")]
    if compared:
        return base, False, notes
    return base, True, [*notes, "no file of it could be compared with the base of the merge; the card says that you state it"]


def _results(folder: Path, sha256: str) -> tuple[Document | None, list[str]]:
    """What was measured of this adapter, by the merge itself or by compare since, and why it is left out if it is."""
    if not locate(folder).is_file():
        return None, ["nothing was measured, and the card says so; gopd-merge compare measures"]
    document = build_report([folder])
    mine = [method for method in document.methods if method.who == document.headline.who]
    if any(method.sha256 == sha256 for method in mine):
        return document, []
    return None, [f"{locate(folder)} is about another adapter, and was left out; gopd-merge compare {folder} measures this one"]


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
