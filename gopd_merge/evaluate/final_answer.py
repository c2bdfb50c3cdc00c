"""The final answer in a model's text, and answers that are plain numbers: compared exactly, without a formula parser."""

import re
from fractions import Fraction

FINAL = "####"  # what comes before the final answer, as in GSM8K
LONGEST_ANSWER = 400  # characters; the longest answer of the 12,500 problems of MATH has 159
LONGEST_NUMBER = 60  # characters; Fraction("1e9999999999") would fill the memory
_BOX = re.compile(r"\\f?boxed\s*(?=\{)|\\fbox\s*(?=\{)")
_NUMBER = re.compile(r"(?P<sign>[-+]?)(?:\\?\$)?(?P<value>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:/(?P<divisor>\d+))?\.?", re.ASCII)


def final_answer(text: str, final: str = "any") -> str | None:
    r"""The part of a model's text that is its final answer, without the space around it, or None.

    `final` is "boxed" for what the last \boxed{…} holds, "any" for that or what follows the last ####, whichever comes last,
    or else the marker that must precede the answer; the answer then goes to the end of the line.
    """
    if final == "boxed":
        return _boxed(text)[1]
    if final != "any":
        return _marked(text, final)[1]
    return max(_boxed(text), _marked(text, FINAL), key=lambda found: found[0])[1]


def _marked(text: str, marker: str) -> tuple[int, str | None]:
    """Where the last marker is, -1 for nowhere, and the rest of its line."""
    at = text.rfind(marker)
    if at < 0:
        return -1, None
    return at, text[at + len(marker) :].strip().split("\n")[0].strip()


def _boxed(text: str) -> tuple[int, str | None]:
    """Where the last box is, -1 for nowhere, and what it holds; an answer that was cut off before the box closed is none."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    box = _BOX.match(text, at) if at >= 0 else None
    if box is None:
        return -1, None
    depth = 0
    for i in range(box.end(), min(len(text), box.end() + LONGEST_ANSWER)):
        depth += {"{": 1, "}": -1}.get(text[i], 0) if text[i - 1] != "\\" else 0
        if depth == 0:
            return at, text[box.end() + 1 : i].strip()
    return at, None


def plain_number(text: str) -> Fraction | None:
    """The number that the text is, digits with commas between thousands and a dollar sign allowed, or None: 1,234.50, -$3, 6/2."""
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= LONGEST_NUMBER else None
    if match is None or (match["divisor"] and not int(match["divisor"])):
        return None
    value = Fraction(match["value"].replace(",", "")) / int(match["divisor"] or 1)
    return -value if match["sign"] == "-" else value
