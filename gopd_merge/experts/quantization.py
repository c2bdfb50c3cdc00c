"""The precision of the base: as it is stored, as an expert was trained on it, and as the run holds it."""

import json
import re
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError
from gopd_merge.experts.fingerprint import read_json

NAMES = {"nf4": "4-bit NF4", "fp4": "4-bit FP4", "int8": "8 bits", "none": "full precision"}
CARD, MANIFEST = "README.md", "merge.json"
LARGEST = 1 << 20  # bytes
# What PEFT wrote into the cards of adapters that were trained on a quantised base: "- load_in_4bit: True".
CARD_LINE = re.compile(r"^- (quant_method|load_in_8bit|load_in_4bit|bnb_4bit_quant_type): (\S+)\s*$", re.MULTILINE)
NF4_STATE = ".quant_state.bitsandbytes__nf4"  # a tensor beside each weight that bitsandbytes stored in 4 bits: JSON, with the shape


def check_stored(name: str, config: dict[str, Any], quantize: str) -> None:
    """Raises InputError for a base whose weights are stored in another precision than the run can hold them in."""
    stored = _kind(config.get("quantization_config"))
    if stored not in (None, "none", "nf4"):
        raise InputError(f"{name} is stored in {_name(stored)}, which cannot be loaded as NF4; name the unquantised model with --base")
    if stored == "nf4" and quantize != "nf4":
        raise InputError(f"{name} is stored in {_name(stored)}; use --quantize nf4, or name the unquantised model with --base")


def training_warning(name: str, folder: Path, quantize: str) -> str | None:
    """A sentence if the expert's files say that it was trained on the base at another precision than the run's."""
    trained = _training_quantization(folder)
    if trained is None or trained == quantize:
        return None
    return f"{name} was trained on the base in {_name(trained)}, this run holds it in {_name(quantize)}: its answers may differ a little"


def unpacked_shapes(shapes: dict[str, list[int]], states: dict[str, bytes]) -> dict[str, list[int]]:
    """Shapes by name, where packed weights have the shape of what they hold. Raises ValueError, KeyError or TypeError."""
    packed = {name.removesuffix(NF4_STATE): [int(size) for size in json.loads(state)["shape"]] for name, state in states.items()}
    parts = re.compile(r"(.+\.weight)\..+")  # `a.weight.absmax` belongs to `a.weight`
    rest = {name: shape for name, shape in shapes.items() if not ((match := parts.fullmatch(name)) and match[1] in packed)}
    return rest | packed


def _training_quantization(folder: Path) -> str | None:
    """From the manifest of a merge, else from the card; None where neither says."""
    base = read_json(folder / MANIFEST, LARGEST).get("base")
    if isinstance(base, dict) and isinstance(found := base.get("quantization"), str):
        return found if found in NAMES else None
    lines = dict(CARD_LINE.findall(_read(folder / CARD)))
    return _kind({key: {"True": True, "False": False}.get(value, value) for key, value in lines.items()}) if lines else None


def _kind(config: Any) -> str | None:
    """nf4, fp4, int8, none, or the name of another method. None without a config."""
    if not isinstance(config, dict) or not config:
        return None
    method = (
        str(config.get("quant_method", "bitsandbytes"))
        .lower()
        .removeprefix("quantizationmethod.")
        .replace("bits_and_bytes", "bitsandbytes")
    )
    if method != "bitsandbytes":
        return method
    if config.get("load_in_8bit"):
        return "int8"
    return str(config.get("bnb_4bit_quant_type", "fp4")) if config.get("load_in_4bit") else "none"


def _name(kind: str | None) -> str:
    return NAMES.get(str(kind), str(kind).upper())


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() and path.stat().st_size <= LARGEST else ""
