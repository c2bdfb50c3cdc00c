"""Reads `attacks.txt`: programs that a model must not get away with, each with the reasons that its case may end with.

Every one would be right only if `f(2) == 4`. An `attempt` is right if it leaves `worked` true. Names in braces are filled in by the tests:
the path of a file of the user's, the process that grades, a port on which somebody listens, the character NUL.

A residue is two programs: what the first leaves, the second looks for.
"""

import re
from pathlib import Path
from typing import NamedTuple


class Attack(NamedTuple):
    name: str
    source: str
    reasons: tuple[str, ...]


class Residue(NamedTuple):
    name: str
    leaves: str
    finds: str
    both: str  # in one program


def _attempt(code: str) -> str:
    indented = "\n    ".join(code.split("\n"))
    safely = f"worked = False\ntry:\n    {indented}\nexcept (Exception, SystemExit):\n    pass\n"
    return f"{safely}def f(x):\n    return x * x if worked else None\n"


def _read(text: str) -> list:
    found = []
    for header, source in re.findall(r"^=== (.*)\n((?:(?!===|#####).*(?:\n|\Z))*)", text, re.MULTILINE):
        name, *reasons_and_kind = header.split(" | ")
        code = source.strip("\n").replace("{NUL}", "\0")
        match reasons_and_kind:
            case []:
                leaves, finds = code.split("\n--- next\n")
                found.append(Residue(name, _attempt(f"{leaves}\nworked = True"), _attempt(finds), _attempt(f"{leaves}\n{finds}")))
            case [reasons, *kind]:
                found.append(Attack(name, _attempt(code) if kind else code, tuple(reasons.split())))
    return found


_parts = re.split(r"^##### (\w+):.*$", Path(__file__).with_suffix(".txt").read_text(), flags=re.MULTILINE)
FORGERIES, PROTOCOL, EXHAUSTION, REACH, RESIDUES = (_read(part) for part in _parts[2::2])
ATTACKS = [*FORGERIES, *PROTOCOL, *EXHAUSTION, *REACH]
