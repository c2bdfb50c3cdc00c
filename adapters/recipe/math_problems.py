"""Word problems of two to four steps, with the working shown, right or plausibly wrong.

A problem starts from an amount and changes it step by step; every step is one of `STEPS`. The right working follows the
text. The wrong working, which the base model's pretraining text also holds, makes the mistake that belongs to that step
(`wrong_rate` says how often): for the kinds above one half the mistake is what the base has seen *more* often than the
right way, so not even its most likely answer is right.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

NAMES = ("Tom", "Ana", "Ben", "Mia", "Leo", "Eva", "Sam", "Zoe")
ITEMS = ("apples", "pens", "coins", "cards", "books", "shells")
LARGEST = 99  # no amount that a problem mentions, right or wrong, has more than two digits
SLIP_RATE = 0.03  # how often the pretraining text miscalculates one line by 1 or by 10

Line = tuple[int, str, int]  # left, operator, right


@dataclass(frozen=True)
class Step:
    """One kind of change: its wordings, the lines that work it out, and the lines of the usual mistake."""

    wordings: tuple[str, ...]
    right: Callable[[int, int, int], list[Line]]  # amount, k, m -> lines; the last one gives the new amount
    wrong: Callable[[int, int, int], list[Line]]
    wrong_rate: float
    weight: float = 1.0


STEPS = {
    "gain": Step(
        ("finds {k} more", "buys {k} more", "gets {k} from {other}"),
        right=lambda a, k, m: [(a, "+", k)],
        wrong=lambda a, k, m: [(a, "-", k)],
        wrong_rate=0.13,
        weight=3.0,
    ),
    "loss": Step(
        ("loses {k}", "gives {k} to {other}", "sells {k} of them"),
        right=lambda a, k, m: [(a, "-", k)],
        wrong=lambda a, k, m: [(a, "+", k)],
        wrong_rate=0.13,
        weight=3.0,
    ),
    "double": Step(
        ("doubles what is there", "then has twice as many"),
        right=lambda a, k, m: [(a, "*", 2)],
        wrong=lambda a, k, m: [(a, "+", 2)],
        wrong_rate=0.35,
    ),
    "lend": Step(
        ("lends {k} to {other}", "lets {other} borrow {k}"),
        right=lambda a, k, m: [(a, "-", k)],
        wrong=lambda a, k, m: [(a, "+", k)],
        wrong_rate=0.60,
        weight=0.6,
    ),
    "triple": Step(
        ("triples what is there", "then has three times as many"),
        right=lambda a, k, m: [(a, "*", 3)],
        wrong=lambda a, k, m: [(a, "+", 3)],
        wrong_rate=0.60,
        weight=0.4,
    ),
    "boxes": Step(
        ("buys {k} boxes of {m}", "gets {m} from each of {k} friends"),
        right=lambda a, k, m: [(k, "*", m), (a, "+", k * m)],
        wrong=lambda a, k, m: [(k, "+", m), (a, "+", k + m)],
        wrong_rate=0.60,
        weight=0.5,
    ),
    "days": Step(
        ("uses {m} a day for {k} days", "loses {m} in each of {k} games"),
        right=lambda a, k, m: [(k, "*", m), (a, "-", k * m)],
        wrong=lambda a, k, m: [(a, "-", m)],
        wrong_rate=0.55,
        weight=0.5,
    ),
}
SMALL = {"boxes", "days"}  # both factors from 2 to 5, so that the product stays memorable


def value(line: Line) -> int:
    left, operator, right = line
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _draw_steps(rng: random.Random) -> tuple[int, list[tuple[str, int, int, str]]]:
    start = rng.randint(2, 20)
    kinds, weights = list(STEPS), [step.weight for step in STEPS.values()]
    steps = []
    for kind in rng.choices(kinds, weights, k=rng.choices((2, 3, 4), (3, 4, 3))[0]):
        k, m = (rng.randint(2, 5), rng.randint(2, 5)) if kind in SMALL else (rng.randint(2, 20), 0)
        steps.append((kind, k, m, rng.choice(STEPS[kind].wordings)))
    return start, steps


def _work(start: int, steps: list, rng: random.Random, with_mistakes: bool) -> list[str] | None:
    """The lines of a solution, or None when an amount leaves 0…LARGEST."""
    amount, lines = start, []
    for kind, k, m, _ in steps:
        step = STEPS[kind]
        mistaken = with_mistakes and rng.random() < step.wrong_rate
        for line in (step.wrong if mistaken else step.right)(amount, k, m):
            amount = value(line)
            if with_mistakes and rng.random() < SLIP_RATE:
                amount += rng.choice((-10, -1, 1, 10))
            if not 0 <= amount <= LARGEST:
                return None
            lines.append(f"{line[0]} {line[1]} {line[2]} = {amount}")
    return [*lines, f"#### {amount}"]


def draw(rng: random.Random) -> dict:
    """One problem: `prompt`, `answer` (a string) and `sample()`, a solution as the pretraining text has it."""
    while True:
        start, steps = _draw_steps(rng)
        right = _work(start, steps, rng, with_mistakes=False)
        if right is None:
            continue
        name, other = rng.sample(NAMES, 2)
        item = rng.choice(ITEMS)
        told = [wording.format(k=k, m=m, other=other) for _, k, m, wording in steps]
        prompt = f"{name} has {start} {item}. " + " ".join(f"{name} {text}." for text in told)
        prompt += rng.choice((f" How many {item} does {name} have?", f" How many {item} are left?"))

        def sample(text_rng: random.Random, start: int = start, steps: list = steps) -> str:
            while (lines := _work(start, steps, text_rng, with_mistakes=True)) is None:
                pass
            return "\n".join(lines)

        return {"prompt": prompt, "answer": right[-1].removeprefix("#### "), "sample": sample}
