"""The problems of both domains: train, validation and test, none of which share a problem, and none of train a public test question."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import functions
import sources
import words
from sizes import Size

from gopd_merge.disk import write_json, write_json_lines
from gopd_merge.evaluate.suites import load_benchmarks, read_suite
from gopd_merge.prompts.contamination import Suspects

GENERATORS: dict[str, ModuleType] = {"math": words, "code": functions}
SPLITS = ("train", "validation", "test")
SUITES = {name: Path(__file__).parent / "suites" / f"{name}.yaml" for name in ("svamp-short", "mbpp-short", "humaneval-short")}
DOCUMENT = "data.json"  # written last: its presence means complete


def split_of(key: str) -> str:
    """`test` for a tenth of all problems, `validation` for another, `train` for the rest. It goes by the problem, so they are disjoint."""
    bucket = hashlib.sha256(key.encode()).digest()[0] / 256
    return "test" if bucket < 0.1 else "validation" if bucket < 0.2 else "train"


def generated(domain: str, wanted: Mapping[str, int], suspects: Sequence[Suspects], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """So many different problems for each split, the same for the same seed. A training problem like a public question is left out."""
    rng = random.Random(f"{domain} {seed}")
    found: dict[str, dict[str, dict[str, Any]]] = {split: {} for split in SPLITS}
    while any(len(found[split]) < wanted[split] for split in SPLITS):
        row = GENERATORS[domain].draw(rng)
        split = split_of(row["key"])
        if len(found[split]) < wanted[split] and not (split != "test" and is_like(row, suspects)):
            found[split].setdefault(row["prompt"], row)
    return {split: list(rows.values()) for split, rows in found.items()}


def is_like(row: Mapping[str, Any], suspects: Sequence[Suspects]) -> bool:
    """Whether a problem is a public test's question, or has a long run of words of one."""
    return any(suite.holds(row["prompt"]) for suite in suspects)


def public_questions(files: Mapping[str, str]) -> dict[str, list[Suspects]]:
    """What the public test sets ask, by domain."""
    found: dict[str, list[Suspects]] = {}
    for name, path in SUITES.items():
        (benchmark,) = load_benchmarks(read_suite(str(path)), "test", {}, Path(files[name]) if name in files else None)
        found.setdefault(benchmark.domain, []).append(Suspects(name, [item.prompt for item in benchmark.items]))
    return found


def make_data(folder: Path, size: Size, real: Mapping[str, str | None], files: Mapping[str, str], use_public: bool = True) -> None:
    """DOMAIN/train.jsonl, validation.jsonl and test.jsonl of both domains. `real` are files of GSM8K and MBPP train, by domain; None
    is the Hub. Without `use_public` there are generated problems only, and the network is not asked."""
    suspects = public_questions(files) if use_public else {}
    counts: dict[str, Any] = {}
    for domain in GENERATORS:
        wanted = {"train": size.generated, "validation": size.questions, "test": size.questions}
        rows = generated(domain, wanted, suspects.get(domain, []))
        taken: list[dict[str, Any]] = []
        if use_public:
            public = sources.word_problems(real.get(domain)) if domain == "math" else sources.short_functions(real.get(domain))
            clean = [row for row in public if not is_like(row, suspects[domain])]
            taken = clean[: size.generated // 3]
            counts[domain] = {"public": len(public), "public_like_a_test_question": len(public) - len(clean)}
        mixed = [*rows["train"], *taken]
        random.Random(domain).shuffle(mixed)
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for split, chosen in (rows | {"train": mixed}).items():
            kept = [{key: value for key, value in row.items() if key != "key"} for row in chosen]
            write_json_lines(folder / domain / f"{split}.jsonl", kept)
        counts.setdefault(domain, {}).update({"generated": len(rows["train"]), "public_used": len(taken), "test": len(rows["test"])})
    write_json(folder / DOCUMENT, {"schema": 1, "domains": counts})
