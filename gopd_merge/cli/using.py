"""`gopd-merge export`: the merged adapter where PEFT is not."""

from json import dumps as dump_json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from gopd_merge.cli.quiet import quieten_libraries
from gopd_merge.errors import GopdError, InputError


def export(
    adapter: str,
    *,
    format: Literal["gguf", "merged-bf16"] | None = None,
    merged_bf16: Annotated[bool, Parameter(negative=())] = False,
    output: Path | None = None,
    base: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write an adapter as GGUF for llama.cpp, or as one bfloat16 model.

    Parameters
    ----------
    adapter
        adapter folder or Hub id
    format
        gguf = the adapter alone, for a GGUF of the base; merged-bf16 = the whole model, out of the original base, never quantised
    merged_bf16
        short for --format merged-bf16
    output
        file (gguf) or folder (merged-bf16) to write, one that exists is refused (default: the adapter's name with .gguf, or -bf16)
    base
        folder or Hub id of the base model (default: the one that the adapter names)
    json
        print the result as one JSON document
    """
    from gopd_merge.experts.base import resolve_base
    from gopd_merge.experts.intake import read_expert

    if merged_bf16 and format == "gguf":
        raise InputError("--format gguf --merged-bf16: these are two files; give one of them, then the other")
    format = "merged-bf16" if merged_bf16 else format
    if format is None:
        raise InputError("export: in which form is not said; give --format gguf or --merged-bf16")
    name = adapter.rstrip("/").rpartition("/")[2].partition("@")[0].removesuffix(".lora")
    output = output or Path(f"{name}.gguf" if format == "gguf" else f"{name}-bf16")
    if output.exists() or not output.absolute().parent.is_dir():
        found = "exists" if output.exists() else "is in a folder that does not exist"
        raise InputError(f"--output {output}: {found}; choose another --output")
    expert = read_expert("adapter", adapter, allow_noop=True)
    quieten_libraries()
    on = resolve_base([expert], base, "headers" if format == "gguf" else "all")
    document: dict[str, Any] = {
        "schema": 1,
        "output": str(output),
        "format": format,
        "adapter": expert.name,
        "base": on.name,
        "commit": on.commit,
    }
    try:
        if format == "gguf":
            from gopd_merge.export.gguf_file import write_gguf

            document["modules"] = write_gguf(expert, on, output)
            text = f"{output} written: {len(expert.modules)} modules, float32; load it beside a GGUF of {on.name}"
        else:
            from gopd_merge.export.full_weights import write_full_weights

            rounding = write_full_weights(expert, on, output).document()
            document["rounding"] = rounding
            text = (
                f"{output} written, bfloat16; the weights that the adapter changes are rounded by {rounding['mean']:.1e} on average and "
                f"{rounding['largest']:.1e} at most, {100 * rounding['share_of_update']:.1f} % of the update's norm"
            )
    except OSError as error:
        raise GopdError(f"{error.filename or output}: {error.strerror or error}; nothing was written") from error
    print(dump_json(document, ensure_ascii=False) if json else text)
