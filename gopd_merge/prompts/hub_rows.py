"""Rows of a data set on the Hub through `datasets`: a small one from its cache, of a large one no more than is wanted, streamed."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any

from gopd_merge.errors import InputError
from gopd_merge.prompt_source import DatasetSource, Part
from gopd_merge.prompts.files import SEED, Row, make_row, some_of

STREAMED_FROM = 256 << 20  # bytes of a split's files: what is larger is streamed and not kept
BUFFER = 10_000  # rows of a stream among which the next is drawn
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubRows:
    """What was found, and where: `source` has splits and commit."""

    rows: tuple[Row, ...]
    source: DatasetSource
    licence: str | None  # as the data set's card says
    streamed: bool


def read_dataset(source: DatasetSource, limit: int | None) -> HubRows:
    """At most `limit` rows of a split, drawn at random but the same every time, in the order of the split where it is not streamed.

    Offline, what the cache of `datasets` holds. Raises InputError, one line, naming what the data set has where something is not there.
    """
    import datasets  # takes a second

    datasets.logging.set_verbosity_error()  # offline it would tell at length that the cache is used
    try:
        # The prefix keeps a folder of that name from standing in for the repository.
        builder = datasets.load_dataset_builder(f"hf://datasets/{source.repo}", source.config, revision=source.revision)
    except Exception as error:  # the network, the server, the cache: each has errors of its own
        problem, remedy = _problem(source, error)
        raise InputError(f"{source}: {problem}; {remedy}") from None
    commit = builder.hash if COMMIT.fullmatch(str(builder.hash)) else None
    if source.revision and COMMIT.fullmatch(source.revision) and commit != source.revision:  # offline, `datasets` takes what came last
        builder, there = _cached(source, builder.config.name), commit
        commit = source.revision
        if not os.path.isdir(builder.cache_dir):
            raise InputError(f"{source}: the cache has {source.repo} at {there}; connect to the Hub, or name that revision")
    found = replace(source, parts=_parts(source, builder), revision=commit or source.revision)
    files = builder.config.data_files or {}
    sizes = accumulate(_bytes(path) for part in found.parts for path in files.get(part.split, ()))
    streamed = any(size > STREAMED_FROM for size in sizes)
    try:
        if not streamed:
            builder.download_and_prepare()
        rows = list(_streamed(builder, found, limit) if streamed else _kept(builder, found, limit))
    except Exception as error:
        raise InputError(f"{source}: its rows could not be read ({_cause(error)}); connect to the Hub, or name a file instead") from None
    return HubRows(tuple(rows), found, _licence(source.repo, found.revision), streamed)


def _cached(source: DatasetSource, config: str) -> Any:
    """What the cache has, or not, of the very revision."""
    from datasets.packaged_modules.cache.cache import Cache

    name = source.repo.partition("/")[2]
    return Cache(repo_id=source.repo, dataset_name=name, config_name=config, version="0.0.0", hash=source.revision)


def _kept(builder: Any, source: DatasetSource, limit: int | None) -> Iterator[Row]:
    """Rows of tables that are here."""
    tables = {part.split: builder.as_dataset(part.split) for part in source.parts}
    numbers = [(part.split, n) for part in source.parts for n in range(len(tables[part.split]))[part.start : part.stop]]
    for split, number in (numbers[at] for at in some_of(len(numbers), limit)):
        yield make_row(f"{source.repo}, {split}: row {number + 1}", tables[split][number])


def _streamed(builder: Any, source: DatasetSource, limit: int | None) -> Iterator[Row]:
    """Rows as they come: of a range its first, else shards in random order, and rows out of BUFFER at a time."""
    left = limit
    for part in source.parts:
        stream = builder.as_streaming_dataset(part.split)
        if (part.start, part.stop) == (None, None):
            stream = stream.shuffle(seed=SEED, buffer_size=BUFFER)
        number = 0
        for number, values in enumerate(islice(islice(stream, part.start, part.stop), left), start=1):
            yield make_row(f"{source.repo}, {part.split}: streamed row {number}", values)
        left = None if left is None else left - number


def _parts(source: DatasetSource, builder: Any) -> tuple[Part, ...]:
    """What of the splits is meant. Raises InputError."""
    splits = list(map(str, builder.info.splits or builder.config.data_files or ()))
    if not source.parts and (len(splits) == 1 or "train" in splits):
        return (Part("train" if "train" in splits else splits[0]),)
    missing = [part.split for part in source.parts if part.split not in splits]
    if source.parts and not missing:
        return source.parts
    problem = f"has no split {missing[0]}" if missing else "does not say which split"
    example = replace(source, parts=(Part(splits[0] if splits else "train"),))
    raise InputError(f"{source}: {problem}; {source.repo} has {', '.join(splits) or 'none'}: write for instance {example}")


def _bytes(path: str) -> int:
    """Of a file of a data set, as the Hub tells it; 0 where it does not."""
    from huggingface_hub import HfFileSystem

    try:
        return int(HfFileSystem().info(path)["size"]) if path.startswith("hf://") else 0
    except (OSError, KeyError):
        return 0


def _licence(repo: str, revision: str | None) -> str | None:
    """What the card of the data set says, in the Hub's short form; None where it says nothing. `datasets` has fetched the card."""
    from huggingface_hub import DatasetCard, try_to_load_from_cache

    path = try_to_load_from_cache(repo, "README.md", revision=revision, repo_type="dataset")
    if not isinstance(path, str):
        return None
    try:
        found = DatasetCard.load(path, ignore_metadata_errors=True).data.license
    except (OSError, ValueError):
        return None
    found = ", ".join(found) if isinstance(found, list) else found
    return found if isinstance(found, str) and found.isprintable() and len(found) <= 100 else None


def _problem(source: DatasetSource, error: Exception) -> tuple[str, str]:
    """What is wrong with a data set that cannot be looked at, and what to do."""
    text = str(error)
    if "Config name is missing" in text or "BuilderConfig" in text:
        configs = re.findall(r"'([^']+)'", text.partition("[")[2].partition("]")[0])
        example = replace(source, config=configs[0] if configs else "CONFIG")
        said = f"has no configuration {source.config}" if source.config else "has several configurations"
        return f"{said}; it has {', '.join(configs)}", f"write for instance {example}"
    if "gated" in text:
        return "is gated", "ask for access on its page and log in with: hf auth login"
    if "doesn't exist" in text or "RepositoryNotFound" in text:
        return "no such data set on the Hub, or no such revision of it", "check the name; if it is private log in with: hf auth login"
    return f"cannot be had ({_cause(error)})", "connect to the Hub, or name a file instead"


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
