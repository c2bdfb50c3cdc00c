"""The text of `gopd-merge plan`. No torch."""

from collections.abc import Mapping
from typing import Any

from gopd_merge.report.terminal import byte_text, columns

WHAT = {
    "program": "interpreter and libraries; on a GPU the CUDA context",
    "base": "once, for all roles",
    "experts": "their adapters",
    "student": "the adapter that is trained",
    "optimizer": "AdamW's two numbers for each trained one",
    "engine": "vLLM, its copy of the base, keys and values of all answers",
    "load": "and the base's file while it is read",
    "probe": "and keys and values of expert and base for a batch of questions",
    "rollout": "and keys and values of all answers",
    "score": "and hidden states of experts and reference",
    "update": "and activations of a micro-batch, gradients, and the loss of a chunk",
    "evaluate": "and keys and values, and the exact average",
}


def plan_text(document: Mapping[str, Any]) -> str:
    """Inputs, work, memory by part, time."""
    base, work, memory = document["base"], document["work"], document["memory"]
    precision = "4-bit NF4" if base["quantization"] == "nf4" else "full precision"
    rows = [["experts" if number == 0 else "", _expert(*one)] for number, one in enumerate(document["experts"].items())]
    rows.append(["base", f"{base['name']}, {base['parameters'] / 1e6:,.1f} M parameters, {precision}"])
    if larger := document["teacher_base"]:
        rows.append(["teachers", f"{larger['name']}, {larger['parameters'] / 1e6:,.1f} M parameters, {precision}, with the experts"])
    rows.append(["student", f"fresh LoRA, rank {document['student']['rank']}"])
    for number, d in enumerate(work["domains"]):
        times = f"{d['asked'] / d['prompts']:.1f} times each"
        tokens = f"{d['mean_tokens']:.0f} tokens on average, {d['longest']:,} the longest"
        rows.append(["prompts" if number == 0 else "", f"{d['domain']}: {d['prompts']:,}{_from(d['source'])}, asked {times}; {tokens}"])
    first = f"{work['probed_answers']:,} answers of the targets to choose α, then " if work["probed_answers"] else ""
    then = f"then {work['evaluated_answers']:,} answers to measure"
    shared = f" in {work['processes']} processes, of which one is shown" if work["processes"] > 1 else ""
    rows.append(["work", f"{first}{work['steps']:,} steps × {work['batch_size']} prompts{shared}, {then}"])
    rows.append(["tokens", f"{work['prompt_tokens']:,} of prompts, at most {work['response_tokens']:,} of responses"])
    blocks = [columns(rows), memory_text(memory), _verdict(document), _disk(document["disk"])]
    blocks += [f"warning  {text}" for text in document["warnings"]]
    return "\n\n".join([*blocks, _time(document["seconds"])])


def _expert(domain: str, e: Mapping[str, Any]) -> str:
    if e["sha256"] is None:
        return f"{domain}, behind {e['name']}"
    commit = f", commit {e['commit'][:8]}" if e["commit"] else ""
    return f"{domain}, rank {e['rank']}, {','.join(t.removesuffix('_proj') for t in e['targets'])}, sha256 {e['sha256'][:8]}{commit}"


def _from(source: str) -> str:
    return "" if source == "own" else f" of {source}"


def memory_text(memory: Mapping[str, Any]) -> str:
    """One line a part."""
    always = [name for name in WHAT if name in memory and (memory[name] or name != "engine")]
    phases = [name for name in WHAT if name in memory["phases"]]
    rows = [["memory" if i == 0 else "", name, byte_text(memory[name]).rjust(8), WHAT[name]] for i, name in enumerate(always)]
    rows += [["", name, ("+" + byte_text(memory["phases"][name])).rjust(8), WHAT[name]] for name in phases]
    rows.append(["", "peak", byte_text(memory["peak"]).rjust(8), f"in the phase {memory['peak_phase']}"])
    return columns(rows)


def _verdict(document: Mapping[str, Any]) -> str:
    memory, options = document["memory"], document["options"]
    device = "GPU" if memory["device"] == "cuda" else "CPU"
    if memory["fits"]:
        sizes = f"micro-batch {options['micro_batch_size']} and chunks of {options['chunk_tokens']:,} tokens"
        tight = "; memory is tight: freed blocks will be returned at once, which takes time" if memory["tight"] else ""
        return f"fits     into {byte_text(memory['limit'])} on the {device}, with {sizes}{tight}"
    return f"does not fit into {byte_text(memory['limit'])} on the {device}"


def _disk(disk: Mapping[str, Any]) -> str:
    sizes = {name: byte_text(value) for name, value in disk.items()}
    return f"disk     {sizes['peak']} for adapter and checkpoints of {sizes['checkpoint']}, and the answers; {sizes['free']} free"


def _time(seconds: Mapping[str, float] | None) -> str:
    if seconds is None:
        return "time     not known; --calibrate measures a few steps"
    parts = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items() if name != "total")
    return f"time     about {_duration(seconds['total'])}: {parts}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
