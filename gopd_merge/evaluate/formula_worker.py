"""Compares answers with math-verify, one JSON line in, "1" or "0" out. `formulas.py` runs this file in a process of its own.

Computer algebra on a model's text can take for ever inside one operation on large integers, where no Python code gets to run any more. So
each comparison has a timer whose signal nothing handles: when it rings, the kernel ends the process.
"""

import json
import logging
import re
import resource
import signal
import sys

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MEMORY = 1 << 30  # bytes of address space
BOX = (LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),)  # all of it or nothing
TEXT = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
BARE_UNIT = re.compile(r"(?<=[0-9])\\?\s+([A-Za-z][A-Za-z .]*)$")


def equal(given: str, reference: str, is_text: bool) -> bool:
    """Whether an answer is mathematically the reference. When `is_text` it is somewhere in the text `given`, else it is all of it.

    A percentage may be given as its number or its value (50 for 50%), an inequality for an interval, units left out or added, and a decimal
    fraction rounded to six places or more.
    """
    gold = parse(_boxed(reference), BOX, parsing_timeout=None)
    if is_text:
        found = parse(given, TEXT, parsing_timeout=None)
    else:
        found = parse(_boxed(BARE_UNIT.sub(r" \\text{ \1}", given)), BOX, parsing_timeout=None)
    return bool(verify(gold, found, allow_set_relation_comp=True, timeout_seconds=None))


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer.strip().rstrip('.')}}}"


def serve() -> None:
    """Answers requests `[given, reference, is_text, seconds]` until there are no more."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _write("ready")
    for line in sys.stdin:
        given, reference, is_text, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = equal(given, reference, is_text)
        except Exception:
            verdict = False  # what cannot be read is not the answer
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(str(int(verdict)))


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
