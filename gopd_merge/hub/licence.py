"""Which licence a merge may be given on: the strictest of its inputs, where that is one of them."""

from collections.abc import Mapping
from typing import Any

from gopd_merge.errors import InputError

# Each may be passed on under any that follows it, and under any other licence.
PERMISSIVE = ("cc0-1.0", "unlicense", "pddl", "wtfpl", "isc", "mit", "bsd-2-clause", "bsd-3-clause", "ncsa", "apache-2.0")
PASSED_ON = {  # what else may be passed on under which
    "cc-by-4.0": ("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    "cc-by-nc-4.0": ("cc-by-nc-sa-4.0",),
    "lgpl-3.0": ("gpl-3.0", "agpl-3.0"),
    "gpl-3.0": ("agpl-3.0",),
}
NOT_WITH_APACHE = ("gpl-2.0", "lgpl-2.1")  # whose terms Apache-2.0's contradict


def covers(stricter: str, other: str) -> bool:
    """Whether what is under `other` may be passed on under `stricter`."""
    if stricter == other:
        return True
    if other in PERMISSIVE:
        if stricter in PERMISSIVE:
            return PERMISSIVE.index(stricter) > PERMISSIVE.index(other)
        return not (other == "apache-2.0" and stricter in NOT_WITH_APACHE)
    return stricter in PASSED_ON.get(other, ())


def licences(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """The licence of each input of a merge, as its card said; None where that is not known."""
    found = {f"the {domain} expert": expert.get("licence") for domain, expert in manifest["inputs"].items()}
    found["the base"] = manifest["base"].get("licence")
    return found | ({"the experts' base": manifest["teacher_base"].get("licence")} if manifest.get("teacher_base") else {})


def strictest(inputs: Mapping[str, str | None]) -> str | None:
    """That under which all inputs may be passed on together, if it is one of theirs; None also where one is not known."""
    known = [licence for licence in inputs.values() if licence]
    if len(known) < len(inputs):
        return None
    return next((licence for licence in known if all(covers(licence, other) for other in known)), None)


def settle(inputs: Mapping[str, str | None], given: str | None) -> str:
    """The licence of a merge of these inputs: the one that is given, else the strictest of theirs.

    Raises InputError where none can be told, or where the one that is given is looser than an input's.
    """
    if given:
        for name, licence in inputs.items():
            if licence and covers(licence, given) and not covers(given, licence):
                raise InputError(f"--license {given}: {name} is under {licence}, which is stricter; give that or a stricter one")
        return given
    if unknown := [name for name, licence in inputs.items() if not licence]:
        raise InputError(
            f"the licence of {', '.join(unknown)} is not known, so none can be chosen for the merge; look it up and give --license"
        )
    if found := strictest(inputs):
        return found
    listed = ", ".join(f"{name}: {licence}" for name, licence in inputs.items())
    raise InputError(f"the licences of the inputs do not settle that of the merge ({listed}); read them and give --license")
