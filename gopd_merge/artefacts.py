"""What a run leaves behind: one folder that appears whole or not at all, its manifest, and the proof that it loads."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.rollout import encode
from gopd_merge.errors import InputError, VerificationError
from gopd_merge.experts.intake import WEIGHTS
from gopd_merge.plan import check_output

VERSIONED = ("gopd-merge", "torch", "transformers", "peft", "bitsandbytes", "safetensors")
READBACK = "readback"


@contextmanager
def new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` to write in; on success it becomes `output` by one rename, after everything reached the disk.

    If the block raises, `output` is as it was and what had been written stays in OUTPUT.partial.
    """
    partial = partial_of(output)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        with suppress(OSError):  # it is not empty: what was computed stays
            partial.rmdir()
        raise
    for path in sorted(partial.rglob("*")):
        _fsync(path)
    _fsync(partial)
    check_output(output, overwrite)  # it may have appeared meanwhile
    replaced = output.with_name(output.name + ".replaced")
    if output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    partial.rename(output)
    _fsync(output.absolute().parent)
    shutil.rmtree(replaced, ignore_errors=True)


def partial_of(output: Path) -> Path:
    """The folder that becomes `output` when everything is in it."""
    return output.with_name(output.name + ".partial")


@contextmanager
def alone(folder: Path, emptied: Sequence[str] = ()) -> Iterator[None]:
    """A folder for this run alone, made where there is none; the files and folders in it that are named in `emptied` are removed.

    Raises InputError while another run writes there, or where nothing can be written.
    """
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        for name in emptied:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    except Timeout:
        raise InputError(f"{folder}: another run is writing there; wait for it, or choose another --output") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from None
    try:
        yield
    finally:
        lock.release()


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one readable JSON document."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_json(path: Path, content: Mapping[str, Any]) -> None:
    """The same in place of an earlier one, which stays whole until the new one is on the disk."""
    partial = path.with_name(path.name + ".partial")
    write_json(partial, content)
    _fsync(partial)
    partial.replace(path)
    _fsync(path.absolute().parent)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where there is no file. A last line that was cut off is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line]
    except (OSError, ValueError):
        return []


@torch.no_grad()
def verify_adapter(backbone: Backbone, folder: Path, prompts: list[str]) -> None:
    """Read the written adapter back with plain PEFT, beside the student on the same base: finite, and the same logits.

    Raises VerificationError.
    """
    if backbone.is_shared:  # no process can run it alone
        _verify_tensors(backbone, folder)
        return
    backbone.load_adapter(folder, READBACK)
    try:
        ids, mask = encode(backbone, prompts)
        logits = {role: backbone.logits(backbone.hidden(role, ids, mask)[:, -1], role) for role in (STUDENT, READBACK)}
    finally:
        backbone.remove(READBACK)
    if not logits[READBACK].isfinite().all():
        raise VerificationError(f"{folder}: the merged adapter gives logits that are not finite; lower --learning-rate or --alpha")
    gap = (logits[STUDENT] - logits[READBACK]).abs().max().item()
    if gap > (0 if backbone.device.type == "cpu" else 0.01 * logits[STUDENT].abs().max().item()):  # a GPU may sum in another order
        raise VerificationError(
            f"{folder}: read back, the adapter's logits differ by up to {gap:.2g} from those in memory; please report this"
        )


def _verify_tensors(backbone: Backbone, folder: Path) -> None:
    """The tensors of the file are those of the student in memory, and finite."""
    held = get_peft_model_state_dict(backbone.peft, adapter_name=STUDENT, save_embedding_layers=False)
    written = load_file(folder / WEIGHTS)
    if held.keys() != written.keys() or any(not torch.equal(held[name].cpu(), tensor) for name, tensor in written.items()):
        raise VerificationError(f"{folder}: read back, the adapter's tensors differ from those in memory; please report this")
    if not all(tensor.isfinite().all() for tensor in written.values()):
        raise VerificationError(f"{folder}: the merged adapter is not finite; lower --learning-rate or --alpha")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, without host or user names."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    return {"commit": _commit(), "python": platform.python_version(), **versions, "device": hardware}


def _commit() -> str | None:
    """The commit of the checkout that the command runs in, if it is one of gopd-merge."""
    git = shutil.which("git")
    if not git or not Path("gopd_merge/pipeline.py").is_file():
        return None
    done = subprocess.run(  # noqa: S603 - no part of the command comes from outside
        [git, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
