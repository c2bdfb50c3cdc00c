"""Which of the prompts that an expert wrote are kept, and why the others are not. No torch.

The last test says whether a prompt is of the expert's own domain. Its training left a mark on the likelihoods there: the log-ratio of
expert to base, in expectation KL(expert ‖ base), is large on its own ground and near zero elsewhere. It is measured on the expert's answer
to the prompt: an expert that was trained on answers alone writes prompts just as the base does, so that the log-ratio of the prompt's own
words tells next to nothing (docs/prompts.md has the numbers).
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from gopd_merge.prompts.likeness import copies

SHORTEST = 3  # tokens
FAINT = 0.03  # of the mark on the strongest quarter: what shows less of it is not of the domain
CUT, BROKEN, SHORT = "cut at the limit of tokens", "hold what is no text", "too short"
SCRIPT, COPY = "in another script than most", "like an earlier one"
OTHERS, FAINTLY = "more another expert's than its own", "answered nearly as the base does"
REMEDY = {
    CUT: "raise --synth-tokens",
    COPY: "ask for fewer with --synth-prompts",
    OTHERS: "name prompts for this domain",
    FAINTLY: "name prompts for this domain",
}


@dataclass(frozen=True)
class Candidate:
    """A text that an expert wrote."""

    text: str
    tokens: int
    ended: bool  # by itself
    is_text: bool  # no special tokens inside


@dataclass(frozen=True)
class Mark:
    """What experts' training left in the likelihoods of a candidate and of its answer, in nats a token."""

    log_ratio: float  # of the prompt's own words, the writer against the base
    kl: Mapping[str, float]  # of the answer, by expert: KL(expert ‖ base)


def readable(candidates: Sequence[Candidate], known: Callable[[str], str | None]) -> list[str | None]:
    """Why each candidate is left out before it is answered; None for what is kept. `known` says in which suite a text is."""
    why: list[str | None] = [_form(one) for one in candidates]
    scripts = [_script(one.text) for one in candidates]
    usual = Counter(script for script, reason in zip(scripts, why, strict=True) if script and not reason)
    most = usual.most_common(1)[0][0] if usual else None
    why = [reason or (SCRIPT if script not in (None, most) else None) for reason, script in zip(why, scripts, strict=True)]
    left = [number for number, reason in enumerate(why) if reason is None]
    for number, copied in zip(left, copies([candidates[number].text for number in left]), strict=True):
        why[number] = COPY if copied else known(candidates[number].text)
    return why


def own(marks: Sequence[Mark], domain: str) -> list[str | None]:
    """Why each candidate is not of the expert's domain; None for what is.

    Of several experts none may depart further from the base there. Of what is left, that on which the expert departs less than FAINT as
    far as on the strongest quarter; with no other expert to compare with, than on half of all.
    """
    strength = [mark.kl[domain] for mark in marks]
    is_own = [all(mark.kl[domain] >= other for other in mark.kl.values()) for mark in marks]
    mine = [value for value, yes in zip(strength, is_own, strict=True) if yes]
    if len(mine) < 2:
        return [None if yes else OTHERS for yes in is_own]
    floor = FAINT * quantiles(mine, n=4)[2]
    if all(len(mark.kl) == 1 for mark in marks):
        floor = max(floor, median(mine))
    return [OTHERS if not yes else FAINTLY if value < floor else None for value, yes in zip(strength, is_own, strict=True)]


def remedy(counts: Mapping[str, int]) -> str:
    """What to do about the reason that took most."""
    most = max(counts, key=lambda why: counts[why], default="")
    return REMEDY.get(most, "name prompts for this domain")


def row(one: Candidate, mark: Mark | None, why: str | None = None) -> dict[str, Any]:
    """A line of the file that is kept for inspection."""
    measured = {"log_ratio": round(mark.log_ratio, 6), "kl": {d: round(v, 6) for d, v in mark.kl.items()}} if mark else {}
    return {"prompt": one.text, "tokens": one.tokens, **measured, **({"left_out": why} if why else {})}


def counts_in(left_out: Path) -> dict[str, int]:
    """The reasons in a file of what was left out."""
    lines = left_out.read_text(encoding="utf-8").split("\n") if left_out.is_file() else []
    return dict(Counter(json.loads(line)["left_out"] for line in lines if line))


def _form(one: Candidate) -> str | None:
    if not one.ended:
        return CUT
    if not one.is_text or any(_is_broken(character) for character in one.text):
        return BROKEN
    return SHORT if one.tokens <= SHORTEST or not one.text else None


def _is_broken(character: str) -> bool:
    """A replacement character, or one that controls a terminal."""
    return character == "\ufffd" or (unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") and character not in "\n\r\t")


def _script(text: str) -> str | None:
    """The script of most letters (LATIN, CYRILLIC, CJK …), as their names in Unicode begin; None for a text without letters.

    Digits, signs and operators belong to none, so mathematics and code in any notation are what their words are.
    """
    found = Counter(unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
    return found.most_common(1)[0][0] if found else None
