"""`gopd-merge inspect`: what each adapter is, and whether they fit together. Loads adapters, never a base."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from gopd_merge.errors import InputError
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.deltas import load_updates
from gopd_merge.experts.geometry import norms_by_layer, overlap
from gopd_merge.experts.intake import Expert


def inspect(experts: Sequence[Expert], base: str | None = None) -> dict[str, Any]:
    """The document that `--json` prints. `conflict` says in a line why the experts cannot be merged, null if they can."""
    plain = {e.domain: load_updates(e) for e in experts if e.is_plain}
    conflict = None
    try:
        if experts:
            resolve_base(list(experts), base, fetched="nothing")
    except InputError as error:
        conflict = str(error)
    return {
        "schema": 1,
        "experts": [
            {
                "domain": e.domain,
                "name": e.name,
                "commit": e.commit,
                "base": e.base_name,
                "rank": e.rank,
                "lora_alpha": e.settings.lora_alpha,
                "kind": kind_of(e),
                "targets": list(e.targets),
                "modules": len(e.modules),
                "parameters": e.parameters,
                "sha256": e.sha256,
                "warnings": list(e.warnings),
                "norm_by_layer": norms_by_layer(plain[e.domain]) if e.domain in plain else None,
            }
            for e in experts
        ],
        "overlaps": [asdict(overlap(a, plain[a], b, plain[b])) for a, b in combinations(plain, 2)],
        "conflict": conflict,
    }


def kind_of(expert: Expert) -> str:
    """Its variant of LoRA in a word or two, and the modules that it brings whole."""
    names = [
        name
        for name, is_on in (
            ("DoRA", expert.settings.use_dora),
            ("rsLoRA", expert.settings.use_rslora),
            ("LoRA with bias", expert.settings.lora_bias),
        )
        if is_on
    ]
    kind = ", ".join(names) or "LoRA"
    saved = expert.settings.modules_to_save
    return f"{kind}, saves {', '.join(sorted(saved))}" if saved else kind
