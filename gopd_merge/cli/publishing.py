"""`gopd-merge publish`: a merged adapter on the Hub."""

import sys
from json import dumps as dump_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gopd_merge.errors import Interrupted
from gopd_merge.stopping import stop_on_signals

if TYPE_CHECKING:
    from gopd_merge.hub.prepare import Publication
    from gopd_merge.hub.publish import Target

Flag = Annotated[bool, Parameter(negative=())]


def publish(
    folder: Path,
    repo: str,
    /,
    *,
    license: str | None = None,
    base_id: str | None = None,
    private: Flag = False,
    revision: str | None = None,
    create_pr: Flag = False,
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
    quiet: Flag = False,
) -> None:
    """Put a merged adapter and its card on the Hub, in one commit.

    Parameters
    ----------
    folder
        the folder that the merge was written to
    repo
        where to: user/name, made if it does not exist
    license
        its licence, such as apache-2.0 (default: the strictest of its inputs', where they settle it)
    base_id
        where the base is on the Hub, owner/name@commit, for a merge whose base is a folder on this machine
    private
        make the repository private
    revision
        branch to commit to (default: main)
    create_pr
        propose the commit as a pull request
    overwrite
        replace files of another adapter that is there, by a new commit
    dry_run
        only show the exact files and the card; nothing is sent
    json
        print the result as one JSON document
    quiet
        no progress, only the result
    """
    stop_on_signals()
    from gopd_merge.hub.prepare import prepare
    from gopd_merge.hub.publish import check_card, check_login, look, send

    publication = prepare(folder, repo, license, base_id)
    target = look(publication, private, revision, create_pr, overwrite)
    if dry_run:
        print(dump_json(_document(publication, target, None)) if json else f"{_plan(publication, target, private)}\n\n{publication.card}")
        return
    check_login(repo)
    if not quiet:
        print(f"{_plan(publication, target, private)}\n\n{publication.card}", file=sys.stderr)
    check_card(publication)
    try:
        found = send(publication, target, private, create_pr, _note)
    except Interrupted as error:
        raise Interrupted("stopped; the repository has all of it or nothing, give the command again", error.exit_code - 128) from None
    if json:
        print(dump_json(_document(publication, target, {"commit": found.commit, "url": found.url, "made": found.made})))
        return
    proposed = " as a pull request" if create_pr else ""
    print(f"published{proposed}: {found.url}" if found.made else f"{repo} holds exactly this already: {found.url}")
    print(f"merge from it: gopd-merge --experts {repo}@{found.commit} …")


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _plan(publication: "Publication", target: "Target", private: bool) -> str:
    """Where to, and the files with their sizes and hashes."""
    where = f"{publication.repo}, branch {target.branch}"
    made = f"at {target.head[:12]}" if target.head else "a new private repository" if private else "a new public repository"
    lines = [f"to       {where}, {made}", f"base     {publication.base[0]} at {publication.base[1]}", f"licence  {publication.licence}"]
    width = max(len(file.name) for file in publication.files)
    lines += [
        f"{'files' if first else '':8} {file.name.ljust(width)}  {file.size:>13,} bytes  sha256 {file.sha256}"
        for first, file in zip([True] + [False] * len(publication.files), publication.files, strict=False)
    ]
    return "\n".join([*lines, *(f"note     {note}" for note in publication.notes)])


def _document(publication: "Publication", target: "Target", result: dict[str, Any] | None) -> dict[str, Any]:
    base, commit = publication.base
    return {
        "schema": 1,
        "repository": publication.repo,
        "branch": target.branch,
        "parent": target.head,
        "files": [{"name": file.name, "bytes": file.size, "sha256": file.sha256} for file in publication.files],
        "licence": publication.licence,
        "base": {"name": base, "commit": commit},
        "notes": list(publication.notes),
        "card": publication.card,
        "published": result,
    }
