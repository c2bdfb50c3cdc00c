"""Checked reads of adapter folders: config, tensor headers and streamed values. No model, no torch; all findings at once."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError, Refused
from gopd_merge.experts.hub import ADAPTER_FILES, fetch, is_hub_id
from gopd_merge.experts.licence import licence_of
from gopd_merge.experts.patterns import check_patterns, selector, values_by_pattern
from gopd_merge.experts.schema import SAVE_AGAIN, LoraSettings, check_settings, cut
from gopd_merge.experts.tensor_file import (
    EXPONENTS,
    LARGEST_VALUE,
    TensorInfo,
    UnreadableError,
    all_zero,
    file_sha256,
    read_header,
    too_large,
)

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LARGEST_CONFIG = 1 << 20  # bytes
LONGEST_NAME = 512  # characters, of a tensor
LORA_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|B\.bias|embedding_A|embedding_B|magnitude_vector(\.weight)?)"
)
SAVED_TENSOR = re.compile(
    r"base_model\.model\.(?P<name>(?P<module>.+)(?<!\.base_layer)(?<!\.original_module)(?<!\.modules_to_save)\.(weight|bias))"
)
BASE_TENSOR = re.compile(r"base_model\.model\.(.+\.)?(base_layer|original_module|modules_to_save|embed_tokens|lm_head)\.weight")
Finding = tuple[str, str]  # the problem, the remedy


@dataclass(frozen=True)
class Expert:
    """A checked LoRA adapter.

    `modules` maps each adapted module to its (rank, in, out), `saved` each tensor of `modules_to_save` to its shape.
    """

    domain: str
    name: str  # as it was given: a path, or user/name
    path: Path
    commit: str | None  # of the Hub, if it came from there
    base_name: str
    rank: int  # the largest over its modules
    targets: tuple[str, ...]  # last parts of the module names, sorted
    parameters: int
    sha256: str
    uses_dora: bool
    is_plain: bool  # its update of every weight is scale · B · A and nothing else
    warnings: tuple[str, ...]
    licence: str | None  # as its card says
    settings: LoraSettings = field(repr=False)
    modules: dict[str, tuple[int, int, int]] = field(repr=False)
    saved: dict[str, tuple[int, ...]] = field(repr=False)

    @property
    def mixes(self) -> bool:
        """Whether it can run beside other roles in one batch: PEFT refuses DoRA there, copies of norms, and a copy that not all have."""
        return not (self.uses_dora or self.saved)

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """Last parts of the names of the modules of which it has a whole copy, sorted."""
        return tuple(sorted({name.split(".")[-2] for name in self.saved}))


def read_experts(paths: Mapping[str, str], allow_noop: bool = False) -> list[Expert]:
    """All experts, in order of domain. Raises InputError with every finding on every one of them."""
    experts, refusals = try_experts(paths, allow_noop)
    if refusals:
        raise InputError(*(line for refusal in refusals for line in refusal.lines))
    by_content: dict[str, Expert] = {}
    for expert in experts:
        other = by_content.setdefault(expert.sha256, expert)
        if other is not expert:
            raise InputError(f"{other.name} and {expert.name} hold the same adapter; name each expert once")
    return experts


def check_mixable(experts: Sequence[Expert]) -> None:
    """Raises InputError for an expert that cannot run beside the base in one batch: its target cannot be sampled."""
    for one in experts:
        if not one.mixes:
            cause = "it uses DoRA" if one.uses_dora else "it has saved modules"
            raise InputError(
                f"{one.path}: {cause}, so it cannot run beside the base in one batch, as sampling the target needs; "
                "choose α by gopd-merge sweep, or give it as a number"
            )


def try_experts(paths: Mapping[str, str], allow_noop: bool = False) -> tuple[list[Expert], list[InputError]]:
    """Those that can be read, in order of domain, and why the others cannot."""
    experts: list[Expert] = []
    refusals: list[InputError] = []
    for domain in sorted(paths):
        try:
            experts.append(read_expert(domain, paths[domain], allow_noop))
        except InputError as error:
            refusals.append(error)
    return experts, refusals


def read_expert(domain: str, path: str, allow_noop: bool = False) -> Expert:
    """An adapter folder, or a Hub id `user/name` or `user/name@revision`.

    Raises InputError when it is missing or no LoRA adapter, Refused with all findings when it cannot be merged correctly.
    """
    folder, commit = Path(path), None
    if not os.path.isdir(folder):
        if not is_hub_id(path):
            raise InputError(f"{path}: no such folder; name a folder that holds {CONFIG} and {WEIGHTS}, or a Hub id")
        snapshot = fetch(path, ADAPTER_FILES, CONFIG)
        path, folder, commit = snapshot.repo, snapshot.folder, snapshot.commit
    if not (folder / CONFIG).is_file():
        raise InputError(f"{path}: not a LoRA adapter, it has no {CONFIG}; name the folder that PEFT's save_pretrained wrote")
    findings = _check_links(folder)
    if findings:
        raise Refused(path, findings)
    content, findings = _read_config(folder)
    settings, config_findings, warnings = check_settings(content) if content else (None, [], [])
    findings += [(f"{CONFIG}: {problem}", remedy) for problem, remedy in config_findings]
    tensors, file_findings = _read_tensors(folder, settings, allow_noop)
    findings += file_findings
    modules, shape_findings = _modules(tensors, settings)
    findings += shape_findings
    if not findings and not modules:
        findings.append((f"{WEIGHTS}: holds saved modules, but no LoRA", "only a LoRA can be merged: train the expert as one"))
    if findings or settings is None:
        raise Refused(path, findings)
    if (folder / PICKLE).exists():
        warnings.append(f"{PICKLE} beside the safetensors is ignored: only safetensors is read")
    return Expert(
        domain=domain,
        name=path,
        path=folder,
        commit=commit,
        base_name=settings.base_model_name_or_path,
        rank=max(rank for rank, _, _ in modules.values()),
        targets=tuple(sorted({name.rpartition(".")[2] for name in modules})),
        parameters=sum(math.prod(t.shape) for t in tensors),
        sha256=file_sha256(folder / WEIGHTS),
        uses_dora=settings.use_dora,
        is_plain=all(t.name.endswith(("lora_A.weight", "lora_B.weight")) for t in tensors),
        warnings=tuple(warnings),
        licence=licence_of(folder),
        settings=settings,
        modules=modules,
        saved=_saved(tensors, settings),
    )


def _check_links(folder: Path) -> list[Finding]:
    """A link must stay in the folder, or lead from a Hub cache's snapshot to that cache's blobs."""
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parents[1] / "blobs")
    outside = [name for name in (CONFIG, WEIGHTS) if not any(_leads_into(folder / name, place) for place in allowed)]
    return [(f"{name} is a link that leaves the folder", "put the file itself there") for name in outside]


def _leads_into(path: Path, place: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(place)  # Path.resolve raises on a link to itself


def _read_config(folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    path = folder / CONFIG
    try:
        if (size := path.stat().st_size) > LARGEST_CONFIG:
            return {}, [(f"{CONFIG}: {size:,} bytes, larger than any adapter's", SAVE_AGAIN)]
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [(f"{CONFIG}: cannot be read ({error.strerror})", "look at its permissions")]
    except (ValueError, RecursionError) as error:
        return {}, [(f"{CONFIG}: not valid JSON ({error})", SAVE_AGAIN)]
    if not isinstance(content, dict) or not content:
        return {}, [(f"{CONFIG}: expected a JSON object with settings, found {type(content).__name__}", SAVE_AGAIN)]
    return content, []


def _read_tensors(folder: Path, settings: LoraSettings | None, allow_noop: bool) -> tuple[list[TensorInfo], list[Finding]]:
    path = folder / WEIGHTS
    if not path.is_file():
        found = f"found {PICKLE}, but only safetensors is read" if (folder / PICKLE).exists() else "the file is missing"
        return [], [(f"{WEIGHTS}: {found}", "save the adapter with safe_serialization=True")]
    try:
        tensors = read_header(path)
    except UnreadableError as error:
        return [], [(f"{WEIGHTS}: not a readable safetensors file ({error})", SAVE_AGAIN)]
    if not tensors:
        return [], [(f"{WEIGHTS}: holds no tensors", "train or save the adapter again")]
    saved = _saved(tensors, settings)
    known = {f"base_model.model.{name}" for name in saved}
    findings = [_foreign(t.name) for t in tensors if not _as_lora(t.name) and t.name not in known]
    findings += _saved_findings(saved, settings)
    findings += [(f"{t.name} has the type {t.dtype}", f"save it as {', '.join(EXPONENTS)}") for t in tensors if t.dtype not in EXPONENTS]
    if not findings:
        diverged = "its training diverged: train it again"
        findings = [(f"{t.name} holds NaN, infinity or a value beyond {LARGEST_VALUE:.0e}", diverged) for t in too_large(path, tensors)]
        updates = [t for t in tensors if "lora_B" in t.name or "lora_embedding_B" in t.name or "magnitude" in t.name]
        if not findings and not allow_noop and not saved and all_zero(path, updates):
            findings = [("every lora_B is zero, so the adapter changes nothing", "train it first, or take it with --allow-noop")]
    return tensors, findings


def _saved(tensors: list[TensorInfo], settings: LoraSettings | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that stand in for the base's own, by their names there; without settings, all that may be."""
    matches = [(SAVED_TENSOR.fullmatch(t.name), t.shape) for t in tensors if _is_readable(t.name) and not _as_lora(t.name)]
    return {m["name"]: shape for m, shape in matches if m and (settings is None or settings.saves(m["module"]))}


def _saved_findings(saved: Mapping[str, tuple[int, ...]], settings: LoraSettings | None) -> Iterator[Finding]:
    for entry in settings.modules_to_save or () if settings else ():
        if not any(f"{entry}." in name for name in saved):
            yield f"{CONFIG}: modules_to_save names {entry}, of which the file holds no copy", "take it out, or save the adapter again"


def _as_lora(name: str) -> re.Match[str] | None:
    return LORA_TENSOR.fullmatch(name) if _is_readable(name) else None


def _is_readable(name: str) -> bool:
    return len(name) <= LONGEST_NAME and name.isprintable()


def _foreign(name: str) -> Finding:
    if len(name) > LONGEST_NAME:
        return f"{cut(name)} has a name of {len(name):,} characters", SAVE_AGAIN
    if BASE_TENSOR.fullmatch(name):
        return f"{name} is a copy of a layer of the base, which the roles share", "save the adapter with save_embedding_layers=False"
    return f"{name} is not a LoRA tensor, and none of modules_to_save", "save the adapter again with PEFT"


def _modules(tensors: list[TensorInfo], settings: LoraSettings | None) -> tuple[dict[str, tuple[int, int, int]], list[Finding]]:
    """(rank, in, out) of every adapted module, and what does not fit together."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor in tensors:
        if match := _as_lora(tensor.name):
            part = match["part"].removeprefix("embedding_").removesuffix(".weight")
            parts.setdefault(match["module"], {})[part] = tensor.shape
    modules: dict[str, tuple[int, int, int]] = {}
    findings = [(f"{CONFIG}: {problem}", remedy) for problem, remedy in check_patterns(settings, parts)] if settings else []
    judge = _settings_judge(settings) if settings and not findings else None
    for module, found in parts.items():
        problems = list(_halves_findings(module, found))
        if not problems:
            (rank, inputs), (outputs, _) = found["A"], found["B"]
            modules[module] = (rank, inputs, outputs)
            problems = list(judge(module, found)) if judge else []
        findings += problems
    return modules, list(dict.fromkeys(findings))


def _halves_findings(module: str, found: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    """Do A and B make one low-rank update?"""
    for side in ("A", "B"):
        if side not in found:
            yield f"{module} has no lora_{side}", "the file is incomplete: copy or train it again"
        elif len(found[side]) != 2:
            yield f"{module} is no linear layer, its lora_{side} has {len(found[side])} dimensions", "train the expert without it"
    if {"A", "B"} <= found.keys() and found["A"][:1] != found["B"][1:2]:
        yield f"{module} has lora_A of {_shape(found['A'])} and lora_B of {_shape(found['B'])}: the ranks differ", SAVE_AGAIN


def _settings_judge(settings: LoraSettings) -> Callable[[str, Mapping[str, tuple[int, ...]]], Iterator[Finding]]:
    """A function from a module and its tensors to findings. The settings' patterns must have been checked."""
    rank_of = values_by_pattern(settings.rank_pattern, settings.r)
    is_selected = selector(settings.target_modules)
    options = (("magnitude_vector", settings.use_dora, "use_dora"), ("B.bias", settings.lora_bias, "lora_bias"))
    together = "put the config and the tensors of one training together"

    def findings(module: str, found: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
        """Does the config speak of these tensors? PEFT would skip what it does not select, without a word."""
        if (rank := rank_of(module)) != found["A"][0]:
            yield f"{module} has rank {found['A'][0]}, but {CONFIG} says {rank}", together
        if not is_selected(module):
            yield f"{module} is none of the target_modules of {CONFIG}", together
        for part, wanted, option in options:
            if (part in found) != wanted:
                yield f"{module} has {'no' if wanted else 'a'} {part}, but {option} is {str(wanted).lower()}", together

    return findings


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
