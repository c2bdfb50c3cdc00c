"""The prompts that a merge would ask, as files: those of sources as they are read, those of experts after they wrote them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gopd_merge.casting import load_backbone
from gopd_merge.config import MergeConfig
from gopd_merge.disk import sync_all, whole_folder, write_json_lines
from gopd_merge.distillation import Listener
from gopd_merge.errors import InputError
from gopd_merge.plan import read_inputs
from gopd_merge.writing import FOLDER, LEFT_OUT, with_written


def write_prompts(config: MergeConfig, listener: Listener) -> dict[str, Any]:
    """DOMAIN.jsonl for each domain in `config.output`, a folder that appears whole; the document of what is in it.

    Raises InputError where that is there, and for whatever the merge would refuse; GopdError where an expert writes too few.
    """
    output = config.output
    if output.exists():
        raise InputError(f"{output} exists; choose another --output, or remove it")
    inputs = read_inputs(config.model_copy(update={"eval": False}))
    for note in inputs.notes:
        listener.note(note)
    with whole_folder(output) as folder:
        if inputs.is_synthetic:
            listener.phase("loading the base")
            inputs = with_written(load_backbone(config, inputs), config, inputs, folder, listener)
        for source in inputs.prompts:
            written = folder / FOLDER / f"{source.domain}.jsonl"
            if written.is_file():
                written.rename(folder / written.name)
                (folder / FOLDER / f"{source.domain}{LEFT_OUT}").rename(folder / f"{source.domain}{LEFT_OUT}")
            else:
                rows = [prompt.model_dump(exclude_none=True) for prompt in source.prompts]
                write_json_lines(folder / f"{source.domain}.jsonl", rows)
        if (folder / FOLDER).is_dir():
            (folder / FOLDER).rmdir()
            (folder / FOLDER.parent).rmdir()
        sync_all(folder)
    domains = {
        s.domain: {"file": str(Path(output) / f"{s.domain}.jsonl"), "prompts": len(s.prompts), **asdict(s.origin)} for s in inputs.prompts
    }
    return {"schema": 1, "output": str(output), "domains": domains}
