"""Sending a publication: one commit on top of the one that was looked at, or none. No torch.

The Hub takes files first and a commit last, so an upload that breaks off leaves a repository as it was. A commit whose answer got lost is
looked up before it is given again: it may have been made.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gopd_merge.errors import GopdError, InputError
from gopd_merge.experts.tensor_file import file_sha256
from gopd_merge.hub.explain import explained, status_of
from gopd_merge.hub.local_base import git_hash, remote_hashes
from gopd_merge.hub.prepare import File, Publication

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

MAIN = "main"
MESSAGE = "Merged adapter, by gopd-merge"
TRIES, FIRST_PAUSE, LONGEST_PAUSE = 5, 1.0, 60.0  # of the commit; seconds, each pause twice the last
MOVED = (409, 412)  # what the Hub says where the branch is not at the parent any more
Note = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Where to, as it was when it was looked at."""

    branch: str
    head: str | None  # its commit; None where there is no repository yet
    files: Mapping[str, str]  # by name, the hash as the Hub gives it
    private: bool | None


@dataclass(frozen=True)
class Published:
    """What came of it. `made` is false where the repository held exactly that already."""

    url: str
    commit: str
    made: bool


def look(publication: Publication, private: bool, revision: str | None, create_pr: bool, overwrite: bool) -> Target:
    """The repository as it is. Raises InputError where the publication cannot or should not go there. Nothing is sent."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    repo, branch = publication.repo, revision or MAIN
    with explained(repo):
        try:
            info = HfApi().model_info(repo, revision=branch)
        except RepositoryNotFoundError:
            return _new(repo, branch, create_pr)
        target = Target(branch, info.sha, remote_hashes(repo, str(info.sha)), info.private)
    if private and info.private is False:
        raise InputError(f"{repo}: exists and is public, so --private cannot hold; change that in its settings, or choose another name")
    replaced = [file.name for file in publication.files if file.name in target.files and not _has(target.files, file)]
    if replaced and not (overwrite or create_pr):
        raise InputError(
            f"{repo}: holds another {', '.join(replaced)} already; give --overwrite to replace what is there by a new commit, "
            "--create-pr to propose it, or another name"
        )
    return target


def _new(repo: str, branch: str, create_pr: bool) -> Target:
    if create_pr or branch != MAIN:
        option = "--create-pr" if create_pr else f"--revision {branch}"
        raise InputError(f"{repo}: there is no such repository, or you may not see it, so {option} means nothing; leave it out to make it")
    return Target(branch, None, {}, None)


def check_login(repo: str) -> None:
    """Raises InputError where nobody is logged in. Whether the log-in may write there, the Hub says."""
    from huggingface_hub import get_token

    if not get_token():
        raise InputError(f"{repo}: nobody is logged in to the Hub on this machine; log in with: hf auth login")


def check_card(publication: Publication) -> None:
    """Have the Hub look at the card's header. Raises InputError with what it says against it."""
    from huggingface_hub import ModelCard

    with explained(publication.repo):
        try:
            ModelCard(publication.card).validate()
        except ValueError as error:
            if status_of(error):  # some of the Hub's own errors are ValueErrors too
                raise
            remedy = "where it is the licence, give another --license"
            raise InputError(f"{publication.repo}: the Hub does not take the card's header ({_objections(str(error))}); {remedy}") from None


def _objections(answer: str) -> str:
    """What the Hub's answer holds against a card, in a line."""
    try:
        texts = [str(entry["message"]) for entry in json.loads(answer)["errors"]]
    except (ValueError, TypeError, KeyError):
        texts = [answer]
    return " ".join("; ".join(texts).split())[:300]


def send(publication: Publication, target: Target, private: bool, create_pr: bool, note: Note) -> Published:
    """Make the repository where there is none, upload, and commit on top of what `look` found.

    Raises GopdError where that fails; the branch is then as it was.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, repo = HfApi(), publication.repo
    if all(_has(target.files, file) for file in publication.files):
        return Published(f"{api.endpoint}/{repo}/tree/{target.head}", str(target.head), False)
    head = target.head
    with explained(repo, made=head is None), warnings.catch_warnings(action="ignore"):
        if head is None:
            api.create_repo(repo, private=private)
            head = str(api.model_info(repo).sha)
        operations = [CommitOperationAdd(file.name, file.content) for file in publication.files]
        api.preupload_lfs_files(repo, operations, revision=target.branch, create_pr=create_pr, free_memory=False)
        _check_unchanged(publication, operations)
        info = _commit(api, publication, operations, target.branch, head, create_pr, note)
        if not create_pr:
            _check_there(publication, info.oid)
    return Published(str(info.pr_url or info.commit_url), info.oid, True)


def _check_unchanged(publication: Publication, operations: "list[CommitOperationAdd]") -> None:
    """What was sent is what was checked."""
    for file, operation in zip(publication.files, operations, strict=True):
        now = file.sha256 if isinstance(file.content, bytes) else file_sha256(file.content)
        if not file.sha256 == now == operation.upload_info.sha256.hex():
            raise GopdError(f"{file.name}: has changed while it was being published, so nothing was; give the command again")


def _commit(
    api: "HfApi", publication: Publication, operations: "list[CommitOperationAdd]", branch: str, head: str, create_pr: bool, note: Note
) -> "CommitInfo":
    """The one commit. Given again where the Hub is busy or away, after looking whether it was made."""
    repo = publication.repo
    arguments: dict[str, Any] = {"commit_message": MESSAGE, "revision": branch, "create_pr": create_pr, "parent_commit": head}
    for pause in [*_pauses(), None]:
        try:
            info: CommitInfo = api.create_commit(repo, operations, **arguments)
            return info
        except Exception as error:
            status = status_of(error)
            may_be_made = status is None or status >= 500 or status in MOVED
            if may_be_made and not create_pr and (made := _already_made(api, publication, branch, head)):
                return made
            if status in MOVED:
                raise GopdError(
                    f"{repo}: somebody else has committed to {branch} meanwhile (it was at {head[:12]}), so nothing was published; "
                    "look at what is there, then give the command again"
                ) from None
            if pause is None or not (status is None or status == 429 or status >= 500) or (create_pr and may_be_made):
                raise
            wait = max(pause, _asked_to_wait(error))
            note(f"the Hub did not take the commit ({status or type(error).__name__}); trying again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _already_made(api: "HfApi", publication: Publication, branch: str, head: str) -> "CommitInfo | None":
    """The commit, if it was made though its answer never came: the branch's newest, with our message and our files."""
    from huggingface_hub import CommitInfo
    from huggingface_hub.errors import HfHubHTTPError

    try:
        newest = api.list_repo_commits(publication.repo, revision=branch)[0]
        if newest.commit_id == head or newest.title != MESSAGE:
            return None
        there = remote_hashes(publication.repo, newest.commit_id)
    except (HfHubHTTPError, OSError):
        return None  # nobody can tell: what went wrong first is reported
    if not all(_has(there, file) for file in publication.files):
        return None
    return CommitInfo(
        commit_url=f"{api.endpoint}/{publication.repo}/commit/{newest.commit_id}",
        commit_message=MESSAGE,
        commit_description="",
        oid=newest.commit_id,
    )


def _check_there(publication: Publication, commit: str) -> None:
    """Read back what the commit holds."""
    there = remote_hashes(publication.repo, commit)
    wrong = [file.name for file in publication.files if not _has(there, file)]
    if wrong:
        raise GopdError(f"{publication.repo}: read back, {', '.join(wrong)} at {commit[:12]} is not what was sent; publish again")


def _has(files: Mapping[str, str], file: File) -> bool:
    """Whether the file is there, with this content."""
    found = files.get(file.name)
    if found is None or len(found) == 64:
        return found == file.sha256
    return found == git_hash(file.content if isinstance(file.content, bytes) else file.content.read_bytes())


def _pauses() -> Iterator[float]:
    for number in range(TRIES - 1):
        yield min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)


def _asked_to_wait(error: Exception) -> float:
    """Seconds that the Hub asked for, at most LONGEST_PAUSE."""
    response = getattr(error, "response", None)
    after = response.headers.get("Retry-After", "") if response is not None else ""
    return min(LONGEST_PAUSE, float(after)) if after.isdigit() else 0.0
