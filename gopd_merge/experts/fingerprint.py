"""Was an expert trained with the base's own tokenizer and chat template? Only where files of its own come with it."""

import json
from pathlib import Path
from typing import Any

from gopd_merge.errors import InputError

TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
LARGEST = 64 << 20  # bytes


def check_tokenizer(name: str, expert: Path, base: Path) -> None:
    """Raises InputError when the tokenizer beside the adapter gives tokens other numbers than the base's.

    The roles read one and the same token ids, so an expert with tokens of its own cannot be asked.
    """
    ours, theirs = (_vocabulary(folder / TOKENIZER) for folder in (expert, base))
    if not ours or not theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        raise InputError(
            f"{name}: {len(differing):,} tokens of its {TOKENIZER} are not those of the base, such as {differing[0]!r}; "
            "train the expert with the base's tokenizer"
        )


def check_same_tokenizer(name: str, model: Path, other_name: str, other: Path) -> None:
    """Raises InputError for two models that do not read one and the same token ids.

    Their log-probabilities speak of different texts then, and nothing can be distilled token by token.
    """
    ours, theirs = (_vocabulary(folder / TOKENIZER) for folder in (model, other))
    if not ours or not theirs:
        raise InputError(
            f"{(name if not ours else other_name)}: has no {TOKENIZER} to compare; save it with the tokenizers library's format"
        )
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        raise InputError(
            f"{name} and {other_name} have different tokenizers ({len(differing):,} tokens, such as {differing[0]!r}): a teacher scores "
            "the student's tokens one by one, so both must read the same; take models of one family"
        )


def chat_template_warning(name: str, expert: Path, base: Path) -> str | None:
    """A sentence if both have a chat template and they differ: prompts are then formatted unlike in the expert's training."""
    ours, theirs = _chat_template(expert), _chat_template(base)
    if ours and theirs and ours.strip() != theirs.strip():
        return f"{name} was trained with another chat template than the base's, which is used"
    return None


def has_chat_template(folder: Path) -> bool:
    """Whether prompts for the model are put into a conversation."""
    return bool(_chat_template(folder))


def _vocabulary(path: Path) -> dict[str, int]:
    """Token to number, added tokens included. Empty where there is no file, or none that means anything."""
    content = read_json(path)
    try:
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list):  # Unigram: pairs of token and score
            vocab = {token: number for number, (token, _) in enumerate(vocab)}
        return dict(vocab) | {entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError):
        return {}


def _chat_template(folder: Path) -> str | None:
    path = folder / CHAT_TEMPLATE
    if path.is_file() and path.stat().st_size <= LARGEST:
        return path.read_text(encoding="utf-8", errors="replace")
    template = read_json(folder / TOKENIZER_CONFIG).get("chat_template")
    return template if isinstance(template, str) else None


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a file of at most so many bytes; empty where there is none."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= largest else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
