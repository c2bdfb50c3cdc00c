"""Under which licence a model or adapter was given: what its card says. No torch."""

import re
from pathlib import Path

import yaml

CARD = "README.md"
LARGEST = 1 << 20  # bytes
HEADER = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")  # huggingface_hub's own
UNKNOWN = ("unknown", "other")  # words of the Hub that name no licence


def licence_of(folder: Path) -> str | None:
    """The licence in the card's header, in the Hub's short form (apache-2.0); None where there is none, or several."""
    path = folder / CARD
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        header = HEADER.search(path.read_text(encoding="utf-8-sig", errors="replace"))
        content = yaml.safe_load(header[2]) if header else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    found = content.get("license") if isinstance(content, dict) else None
    if isinstance(found, list) and len(found) == 1:
        (found,) = found
    if not isinstance(found, str) or not found.isprintable() or len(found) > 100:
        return None
    return None if found.strip().lower() in ("", *UNKNOWN) else found.strip().lower()
