"""Adapters and bases by Hub id: pinned to a commit and fetched into the Hub's own cache; from there on a folder like any other."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gopd_merge.errors import InputError

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "prompts/*.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "merge.json",
)
BASE_SETTINGS = ("README.md", "config.json", "generation_config.json", "*token*", "*.jinja", "vocab*", "merges.txt")
BASE_FILES = (*BASE_SETTINGS, "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository, on this machine."""

    repo: str
    commit: str
    folder: Path


def is_hub_id(name: str) -> bool:
    """Whether `user/name` or `user/name@revision` can only mean a repository: a path would have its first folder here."""
    return HUB_ID.fullmatch(name) is not None and not os.path.isdir(name.partition("/")[0])


def fetch(name: str, files: Sequence[str], key_file: str) -> Snapshot:
    """The newest commit of the revision (or of main), downloaded where it is not in the cache; offline, what the cache has.

    Raises InputError, one line, when the repository, the revision or the network is not there.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    match = HUB_ID.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: not a Hub id; write user/name or user/name@revision")
    repo, revision = match["repo"], match["revision"]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(files), ignore_patterns=["original/*"]))
    except LocalEntryNotFoundError as error:
        # Another program may have fetched all that is needed, but not all that the patterns name.
        cached = try_to_load_from_cache(repo, key_file, revision=revision)
        if not isinstance(cached, str):
            raise InputError(
                f"{name}: no such folder, not in the Hub's cache, and the Hub cannot be reached ({_cause(error)}); "
                "connect, or give a folder"
            ) from None
        folder = Path(cached).parent
    except GatedRepoError:
        raise InputError(f"{name}: the repository is gated; ask for access on its page and log in with: hf auth login") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{name}: no such folder, and no such repository on the Hub; if it is private, log in with: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: the repository has no revision {revision}; name a branch, a tag or a whole commit hash") from None
    except Exception as error:  # the network, the disk, the server: each library underneath has errors of its own
        raise InputError(f"{name}: the download failed ({_cause(error)}); give the command again, what has arrived is kept") from error
    if not (folder / key_file).is_file():
        raise InputError(f"{name}: the repository has no {key_file}; is it the right one?")
    return Snapshot(repo, folder.name, folder)


def fetch_shapes(snapshot: Snapshot) -> tuple[dict[str, list[int]], int]:
    """Shape of every weight of a repository, and the bytes of all: only the headers of its files are read. Raises InputError."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().get_safetensors_metadata(snapshot.repo, revision=snapshot.commit).files_metadata.values()
    except Exception as error:  # the network, the server, a file that is none
        raise InputError(
            f"{snapshot.repo}: its weights cannot be looked at ({_cause(error)}); is it a model with safetensors weights?"
        ) from error
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return {name: list(tensor.shape) for name, tensor in tensors.items()}, sum(
        t.data_offsets[1] - t.data_offsets[0] for t in tensors.values()
    )


def _cause(error: BaseException) -> str:
    """The first error of the chain, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
