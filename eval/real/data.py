"""The problems of both domains: train, validation and test, none of which share a problem, and none of train a public test question."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import functions
import sources
import words
from overlap import Forbidden
from sizes import Size

from gopd_merge.disk import write_json, write_json_lines
from gopd_merge.evaluate.suites import load_benchmarks, read_suite

GENERATORS: dict[str, ModuleType] = {"math": words, "code": functions}
SPLITS = ("train", "validation", "test")
SUITES = {name: Path(__file__).parent / "suites" / f"{name}.yaml" for name in ("svamp-short", "mbpp-short", "humaneval-short")}
DOCUMENT = "data.json"  # written last: its presence means complete


def split_of(key: str) -> str:
    """`test` for a tenth of all problems, `validation` for another, `train` for the rest. It goes by the problem, so they are disjoint."""
    bucket = hashlib.sha256(key.encode()).digest()[0] / 256
    return "test" if bucket < 0.1 else "validation" if bucket < 0.2 else "train"


def generated(domain: str, wanted: Mapping[str, int], forbidden: Forbidden, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """So many different problems for each split, the same for the same seed. A training problem that meets a test question is left out."""
    rng = random.Random(f"{domain} {seed}")
    found: dict[str, dict[str, dict[str, Any]]] = {split: {} for split in SPLITS}
    while any(len(found[split]) < wanted[split] for split in SPLITS):
        row = GENERATORS[domain].draw(rng)
        split = split_of(row["key"])
        if len(found[split]) < wanted[split] and not (split != "test" and forbidden.meets(row["prompt"].rsplit("\n", 1)[0])):
            found[split].setdefault(row["prompt"], row)
    return {split: list(rows.values()) for split, rows in found.items()}


def public_questions(files: Mapping[str, str]) -> dict[str, list[str]]:
    """What the public test sets ask, by domain, without the instruction that all share."""
    asked: dict[str, list[str]] = {}
    for name, path in SUITES.items():
        suite = read_suite(str(path))
        (benchmark,) = load_benchmarks(suite, "test", {}, Path(files[name]) if name in files else None)
        shared = {words.INSTRUCTION, functions.INSTRUCTION, "Complete this Python function."}
        for item in benchmark.items:
            asked.setdefault(benchmark.domain, []).append("\n".join(line for line in item.prompt.splitlines() if line not in shared))
    return asked


def make_data(folder: Path, size: Size, real: Mapping[str, str | None], files: Mapping[str, str], use_public: bool = True) -> None:
    """DOMAIN/train.jsonl, validation.jsonl and test.jsonl of both domains. `real` are files of GSM8K and MBPP train, by domain; None
    is the Hub. Without `use_public` there are generated problems only, and the network is not asked."""
    asked = public_questions(files) if use_public else {}
    counts: dict[str, Any] = {}
    for domain in GENERATORS:
        forbidden = Forbidden(asked.get(domain, []))
        wanted = {"train": size.generated, "validation": size.questions, "test": size.questions}
        rows = generated(domain, wanted, forbidden)
        taken: list[dict[str, Any]] = []
        if use_public:
            read = sources.word_problems if domain == "math" else sources.short_functions
            public = read(real.get(domain))
            taken = forbidden.without(public)[: size.generated // 3]
            counts[domain] = {"public": len(public), "public_that_meet_a_test_question": len(public) - len(forbidden.without(public))}
        mixed = [*rows["train"], *taken]
        random.Random(domain).shuffle(mixed)
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for split, chosen in (rows | {"train": mixed}).items():
            kept = [{key: value for key, value in row.items() if key != "key"} for row in chosen]
            write_json_lines(folder / domain / f"{split}.jsonl", kept)
        counts.setdefault(domain, {}).update({"generated": len(rows["train"]), "public_used": len(taken), "test": len(rows["test"])})
    write_json(folder / DOCUMENT, {"schema": 1, "domains": counts})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A file of problems."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
