"""Short list functions of two to four operations: a description, the Python, and hidden cases to grade it by.

As in `math_problems`, every operation has a usual mistake, and for some the pretraining text holds the mistake more often
than the right way.
"""

import random
from dataclasses import dataclass

CASES_EACH = 6


@dataclass(frozen=True)
class Operation:
    """One operation: wordings with {k}, the right expression over `xs`, the usual mistake and how often it is made."""

    wordings: tuple[str, ...]
    right: str
    wrong: str
    wrong_rate: float
    weight: float = 1.0


OPERATIONS = (
    Operation(("keep the even numbers",), "[x for x in xs if x % 2 == 0]", "[x for x in xs if x % 2 == 1]", 0.14),
    Operation(("keep the odd numbers",), "[x for x in xs if x % 2 == 1]", "[x for x in xs if x % 2 == 0]", 0.14),
    Operation(("keep the numbers above {k}",), "[x for x in xs if x > {k}]", "[x for x in xs if x < {k}]", 0.14, 1.5),
    Operation(("keep the numbers below {k}",), "[x for x in xs if x < {k}]", "[x for x in xs if x > {k}]", 0.14, 1.5),
    Operation(("drop the numbers above {k}",), "[x for x in xs if x <= {k}]", "[x for x in xs if x > {k}]", 0.60),
    Operation(("add {k} to each", "raise each by {k}"), "[x + {k} for x in xs]", "[x - {k} for x in xs]", 0.14, 1.5),
    Operation(("subtract {k} from each",), "[x - {k} for x in xs]", "[{k} - x for x in xs]", 0.35),
    Operation(("multiply each by {k}",), "[x * {k} for x in xs]", "[x + {k} for x in xs]", 0.14),
    Operation(("square each", "take the square of each"), "[x * x for x in xs]", "[x * 2 for x in xs]", 0.60),
    Operation(("take the first {j}", "keep the first {j}"), "xs[:{j}]", "xs[{j}:]", 0.14, 1.5),
    Operation(("take the last {j}",), "xs[-{j}:]", "xs[:-{j}]", 0.35),
    Operation(("drop the first {j}", "skip the first {j}"), "xs[{j}:]", "xs[:{j}]", 0.55),
    Operation(("drop the last {j}",), "xs[:-{j}]", "xs[-{j}:]", 0.60),
    Operation(("reverse it",), "xs[::-1]", "sorted(xs)", 0.14),
    Operation(("sort it from low to high",), "sorted(xs)", "xs[::-1]", 0.14),
    Operation(("sort it from high to low",), "sorted(xs)[::-1]", "sorted(xs)", 0.60),
)
RESULTS = (
    Operation(("return the list",), "xs", "len(xs)", 0.05, 2.0),
    Operation(("return the sum", "return the total"), "sum(xs)", "len(xs)", 0.05, 2.0),
    Operation(("return the largest",), "max(xs)", "min(xs)", 0.08),
    Operation(("return the smallest",), "min(xs)", "max(xs)", 0.08),
    Operation(("return how many there are",), "len(xs)", "sum(xs)", 0.25),
    Operation(("return the last one",), "xs[-1]", "xs[0]", 0.15),
)


def program(expressions: list[str]) -> str:
    *changes, result = expressions
    return "\n    ".join(["def f(xs):", *(f"xs = {change}" for change in changes), f"return {result}"])


def _run(expressions: list[str], xs: list[int]) -> object:
    for expression in expressions:  # our own generated text, never a model's
        xs = eval(expression, {"__builtins__": {}}, {"xs": xs, "sum": sum, "max": max, "min": min, "len": len, "sorted": sorted})
    return xs


def _cases(right: list[str], wrongs: list[list[str]], rng: random.Random) -> list[dict] | None:
    """Inputs on which the right program runs and each single mistake shows in at least one case; None if none are found."""
    cases: list[dict] = []
    caught = [False] * len(wrongs)
    for _ in range(40):
        xs = [rng.randint(0, 20) for _ in range(rng.randint(7, 10))]
        try:
            expected = _run(right, xs)
        except (IndexError, ValueError):  # an empty list has no largest element
            continue
        if expected in ([], 0):
            continue
        new = [i for i, wrong in enumerate(wrongs) if not caught[i] and _outcome(wrong, xs) != expected]
        for i in new:
            caught[i] = True
        if new or len(cases) < CASES_EACH:
            cases.append({"args": [xs], "expected": expected})
        if len(cases) >= CASES_EACH and all(caught):
            return cases
    return None


def _outcome(expressions: list[str], xs: list[int]) -> object:
    try:
        return _run(expressions, xs)
    except (IndexError, ValueError):
        return None


def draw(rng: random.Random) -> dict:
    """One problem: `prompt`, `cases` and `sample()`, a program as the pretraining text has it."""
    while True:
        count = rng.choices((1, 2, 3), (3, 4, 3))[0]
        chosen = rng.choices(OPERATIONS, [op.weight for op in OPERATIONS], k=count)
        chosen += rng.choices(RESULTS, [op.weight for op in RESULTS])
        numbers = [{"k": rng.randint(2, 12), "j": rng.randint(2, 4)} for _ in chosen]
        right = [op.right.format(**n) for op, n in zip(chosen, numbers, strict=True)]
        mistaken = [op.wrong.format(**n) for op, n in zip(chosen, numbers, strict=True)]
        wrongs = [[*right[:i], mistaken[i], *right[i + 1 :]] for i in range(len(right))]
        cases = _cases(right, wrongs, rng)
        if cases is None:
            continue
        told = [rng.choice(op.wordings).format(**n) for op, n in zip(chosen, numbers, strict=True)]
        prompt = "Write f(xs): " + ", ".join(told[:-1]) + f" and {told[-1]}."
        rates = [op.wrong_rate for op in chosen]

        def sample(text_rng: random.Random, right: list = right, mistaken: list = mistaken, rates: list = rates) -> str:
            triples = zip(right, mistaken, rates, strict=True)
            return program([wrong if text_rng.random() < rate else good for good, wrong, rate in triples])

        return {"prompt": prompt, "cases": cases, "sample": sample}
