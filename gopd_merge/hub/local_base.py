"""Is a repository the base that a merge was trained beside? Its files are compared by their hashes; nothing large is fetched. No torch."""

import hashlib
from pathlib import Path

from gopd_merge.errors import InputError
from gopd_merge.experts.base import Base, find_folder
from gopd_merge.experts.fingerprint import TOKENIZER
from gopd_merge.experts.tensor_file import file_sha256

COMPARED = (".safetensors", TOKENIZER)  # the ends of the names of what an adapter depends on


def same_files(base: Base, name: str, adapter: Path) -> str | None:
    """What was found to be the same, in words; None where the local base is gone, or none of its weights has a file of that name there.

    Raises InputError where weights or tokenizer differ: the adapter would run beside another model.
    """
    local = find_folder(name, adapter)
    if local is None:
        return None
    there = remote_hashes(base.name, str(base.commit))
    shared = sorted(path.name for path in local.iterdir() if path.name.endswith(COMPARED) and path.name in there)
    for file in shared:
        if not is_same(local / file, there[file]):
            raise InputError(
                f"--base-id {base.name}@{base.commit}: its {file} is not that of {local}, beside which the adapter was trained; "
                "name the repository that holds this base"
            )
    weights = [file for file in shared if file.endswith(".safetensors")]
    return f"whose {', '.join(shared)} are those of the local base" if weights else None


def remote_hashes(repo: str, revision: str) -> dict[str, str]:
    """The hash of every file of a repository: sha256 of a large one (64 digits), git's own of the others (40). Errors are the Hub's."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(repo, revision=revision, recursive=True)
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree if isinstance(entry, RepoFile)}


def is_same(path: Path, remote: str) -> bool:
    """Whether a file has the content whose hash the Hub gives."""
    return remote == (file_sha256(path) if len(remote) == 64 else git_hash(path.read_bytes()))


def git_hash(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
