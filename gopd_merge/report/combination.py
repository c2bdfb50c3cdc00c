"""Several comparison documents as one, where their numbers may stand side by side. No torch."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gopd_merge.errors import InputError
from gopd_merge.report.document import Document, Part, ResultRow, Sample, Suite, read_document

SAME = ("version", "split", "k", "temperature", "max_new_tokens", "metric")  # what two measurements on one benchmark must share
P = TypeVar("P", bound=Part)


def build_report(sources: Sequence[Path]) -> Document:
    """Read the files or folders and combine them; the first one's merge is what the report is about."""
    if not sources:
        raise InputError(f"{len(sources)} documents given; name a measured merge, such as gopd-merge report merged.lora")
    return combine({str(path): read_document(path) for path in sources})


def combine(documents: Mapping[str, Document]) -> Document:
    """One document out of several, each named by where it comes from.

    The headline is the first one's. Raises InputError where the experts, the base or the settings of a benchmark differ, or where one
    measurement appears twice with different numbers.
    """
    _check_models(documents)
    _check_suites(documents)
    rows = _collapsed(documents)
    parts = list(documents.values())
    if len(parts) == 1:
        return parts[0].model_copy(update={"results": rows})
    return parts[0].model_copy(
        update={
            "output": _joined(d.output for d in parts),
            "suites": _first(parts, lambda d: d.suites, lambda s: s.key),
            "methods": _first(parts, lambda d: d.methods, lambda m: (m.who, m.sha256)),
            "results": rows,
            "comparisons": _first(parts, lambda d: d.comparisons, lambda c: (c.key, c.who, c.seeds, c.rival, c.rival_is)),
            "tuning": _first(parts, lambda d: d.tuning, lambda t: (t.method, repr(t.parameters), t.suite, t.domain)),
            "curves": _first(parts, lambda d: d.curves, lambda c: (c.who, c.seed)),
            "samples": _samples(parts),
            "command": _joined((d.command for d in parts), "\n"),
            "seconds": _sums(d.seconds for d in parts),
            "environment": _mixed([d.environment for d in parts]),
        }
    )


def identity(row: ResultRow) -> tuple[Hashable, ...]:
    """What makes two rows the same measurement."""
    return *row.key, row.who, row.split, row.seed, row.seeds


def _check_models(documents: Mapping[str, Document]) -> None:
    """Every document must speak of the same base and the same experts."""
    (first, one), *others = documents.items()
    for name, other in others:
        for key in ("name", "commit", "quantization"):
            if one.base.get(key) != other.base.get(key):
                found = f"{first} has the base's {key} {one.base.get(key)}, {name} {other.base.get(key)}"
                raise InputError(f"{found}; results on different bases cannot be compared: report them apart")
        for domain in one.inputs.keys() & other.inputs.keys():
            hashes = [str(d.inputs[domain].get("sha256"))[:12] for d in (one, other)]
            if hashes[0] != hashes[1]:
                found = f"{first} has the {domain} expert {hashes[0]}…, {name} {hashes[1]}…"
                raise InputError(f"{found}; results on different experts cannot be compared: report them apart")


def _check_suites(documents: Mapping[str, Document]) -> None:
    """Every benchmark must have been asked in the same way."""
    seen: dict[tuple[str, str], tuple[str, Suite]] = {}
    for name, document in documents.items():
        for suite in document.suites:
            first, known = seen.setdefault(suite.key, (name, suite))
            for field in SAME:
                ours, theirs = getattr(known, field), getattr(suite, field)
                if ours != theirs:
                    ours, theirs = (f"{v[:12]}…" if field == "version" else v for v in (ours, theirs))
                    found = f"{first} holds {suite.suite}/{suite.domain} {field} {ours}, {name} {field} {theirs}"
                    raise InputError(f"{found}; results of different suite versions cannot be compared: measure one of them again")


def _collapsed(documents: Mapping[str, Document]) -> tuple[ResultRow, ...]:
    """All rows, equal ones once."""
    seen: dict[tuple[Hashable, ...], tuple[str, ResultRow]] = {}
    for name, document in documents.items():
        for row in document.results:
            first, known = seen.setdefault(identity(row), (name, row))
            if known != row:
                what = f"{row.method}{'' if row.alpha is None else f' at alpha {row.alpha:g}'} on {row.suite}/{row.domain}"
                found = f"{first} scores {what} {known.score:.4f} of {known.n}, {name} {row.score:.4f} of {row.n}"
                raise InputError(f"{found}, both for seed {row.seed}; leave one of the files out")
    return tuple(row for _, row in seen.values())


def _first(parts: Sequence[Document], field: Callable[[Document], Iterable[P]], key: Callable[[P], Hashable]) -> tuple[P, ...]:
    """The parts of all documents, the first of each identity."""
    found: dict[Hashable, P] = {}
    for document in parts:
        for part in field(document):
            found.setdefault(key(part), part)
    return tuple(found.values())


def _samples(parts: Sequence[Document]) -> tuple[Sample, ...]:
    """Each question once, with the answers of all documents; of two answers of one method, the first document's."""
    found: dict[tuple[str, str, str], Sample] = {}
    for document in parts:
        for sample in document.samples:
            known = found.setdefault((sample.suite, sample.domain, sample.id), sample)
            had = {a.who for a in known.answers}
            answers = known.answers + tuple(a for a in sample.answers if a.who not in had)
            found[sample.suite, sample.domain, sample.id] = known.model_copy(update={"answers": answers})
    return tuple(found.values())


def _joined(texts: Iterable[str | None], by: str = ", ") -> str | None:
    return by.join(dict.fromkeys(text for text in texts if text)) or None


def _sums(times: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for seconds in times:
        for name, value in seconds.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _mixed(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One value a name; where the documents differ, all of them."""
    names = dict.fromkeys(name for environment in environments for name in environment)
    return {name: " / ".join(dict.fromkeys(str(e[name]) for e in environments if name in e)) for name in names}
