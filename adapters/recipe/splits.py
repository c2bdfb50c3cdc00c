"""Which split a prompt belongs to is a function of its text, so the splits cannot overlap."""

import hashlib
import random
from collections.abc import Iterator

import code_problems
import math_problems

DOMAINS = {"math": math_problems.draw, "code": code_problems.draw}


def split_of(prompt: str) -> str:
    """`test` for a tenth of all prompts, `validation` for another tenth, `train` for the rest."""
    bucket = hashlib.sha256(prompt.encode()).digest()[0] / 256
    return "test" if bucket < 0.1 else "validation" if bucket < 0.2 else "train"


def stream(domain: str, split: str, seed: int) -> Iterator[dict]:
    """Problems of one domain and split without end; the same for the same seed."""
    rng = random.Random(f"{domain} {split} {seed}")
    while True:
        problem = DOMAINS[domain](rng)
        if split_of(problem["prompt"]) == split:
            yield problem


def distinct(domain: str, split: str, seed: int, n: int) -> list[dict]:
    """The first `n` problems of a stream whose prompts differ."""
    found: dict[str, dict] = {}
    for problem in stream(domain, split, seed):
        found.setdefault(problem["prompt"], problem)
        if len(found) == n:
            break
    return list(found.values())
