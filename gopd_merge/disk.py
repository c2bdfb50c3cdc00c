"""Writing so that what is there is whole: files and folders appear by one rename, after everything has reached the disk. No torch."""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from gopd_merge.errors import InputError

LOCK = ".lock"
PARTIAL = ".partial"  # what follows the name of an output that is being made


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write in that becomes `target`, in place of an earlier one. If the block raises, nothing of it is left."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_all(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    sync(target.absolute().parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one readable JSON document. An earlier one stays whole until the new one is on the disk."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.absolute().parent)


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file, in place of an earlier one."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where there is no file. A last line that was cut off is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line]
    except (OSError, ValueError):
        return []


@contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """A full or failing disk has one error, whoever writes: safetensors has one of its own."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def sync_all(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk, readable for whom the folder is: safetensors writes for the owner alone."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (mode := folder.stat().st_mode & 0o666) != path.stat().st_mode & 0o777:
            with suppress(OSError):  # there are disks without modes
                path.chmod(mode)
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, emptied: Sequence[str] = ()) -> Iterator[None]:
    """A folder for this run alone, made where there is none; the files and folders in it that are named in `emptied` are removed.

    The system lets go of the lock when its holder dies, however that happens, so none is ever stale.
    Raises InputError while another run writes there, or where nothing can be written.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        (folder / LOCK).write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        remove(folder, emptied)
    except Timeout:
        raise InputError(f"{folder}: {holder(folder)} is writing there; wait for it, or choose another --output") from None
    except OSError as error:
        lock.release()
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from None
    try:
        yield
    finally:
        lock.release()


def partial_of(output: Path) -> Path:
    """Where a run works that will write this."""
    return output.with_name(output.name + PARTIAL)


def room_for(output: Path) -> int:
    """Bytes that a run can write there: what is free, and what it takes up already."""
    there = next(folder for folder in output.absolute().parents if folder.is_dir())
    return shutil.disk_usage(there).free + sum(path.stat().st_size for path in partial_of(output).rglob("*") if path.is_file())


def holder(folder: Path) -> str:
    """Who says of itself that it works there."""
    try:
        pid, host = (folder / LOCK).read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return "another run"
    return f"process {pid} on {host}"


def remove(folder: Path, names: Sequence[str]) -> None:
    """Those of these files and folders that are there."""
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
