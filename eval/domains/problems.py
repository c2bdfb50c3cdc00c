"""Eight further small domains for the embedded base: each question ends in a number, and the working is shown as in the math domain.

They serve to merge many experts. Amounts stay below 200, because the base was trained on sums of two digits. Its tokenizer spells
every text; a word that the base has never seen is learnt by the expert, letter by letter if need be.
"""

import itertools
import random
from collections.abc import Callable, Sequence

NAMES = ("Tom", "Ana", "Ben", "Mia", "Leo", "Eva", "Sam", "Zoe")
ITEMS = ("apples", "pens", "coins", "cards", "books", "shells")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
UNITS = (  # small, large, how many of the small make a large, and the most of the large in a question
    ("shoes", "pairs", 2, 20),
    ("feet", "yards", 3, 12),
    ("quarts", "gallons", 4, 12),
    ("days", "weeks", 7, 7),
    ("inches", "feet", 12, 4),
    ("eggs", "dozens", 12, 4),
    ("ounces", "pounds", 16, 3),
    ("hours", "days", 24, 2),
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def problem(prompt: str, lines: Sequence[str], answer: int | str) -> dict:
    return {"prompt": prompt, "answer": str(answer), "response": "\n".join([*lines, f"#### {answer}"])}


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def sorting(rng: random.Random) -> dict:
    digits = rng.sample(range(1, 10), rng.randint(4, 6))
    rises = rng.random() < 0.5
    place = rng.randrange(len(digits))
    ordered = sorted(digits, reverse=not rises)
    order = "low to high" if rises else "high to low"
    prompt = f"Sort {listed(digits)} from {order}. Which is the {ORDINALS[place]}?"
    return problem(prompt, [" ".join(map(str, ordered))], ordered[place])


def reversing(rng: random.Random) -> dict:
    digits = rng.choices("123456789", k=rng.randint(3, 7))
    return problem(f"Reverse {' '.join(digits)}.", [], "".join(reversed(digits)))


def counting(rng: random.Random) -> dict:
    numbers = [rng.randint(0, 30) for _ in range(rng.randint(4, 6))]
    bound = rng.randint(5, 25)
    kinds: dict[str, Callable[[int], bool]] = {
        f"above {bound}": lambda x: x > bound,
        f"below {bound}": lambda x: x < bound,
        "even": lambda x: x % 2 == 0,
        "odd": lambda x: x % 2 == 1,
    }
    told = rng.choice(list(kinds))
    lines = [f"{x} = {sum(map(kinds[told], numbers[: i + 1]))}" for i, x in enumerate(numbers)]
    return problem(f"How many of {listed(numbers)} are {told}?", lines, sum(map(kinds[told], numbers)))


def units(rng: random.Random) -> dict:
    small, large, factor, most = rng.choice(UNITS)
    name, first, more, rest = rng.choice(NAMES), rng.randint(2, most), rng.randint(2, most), rng.randint(1, 20)
    verb = rng.choice(("finds", "gets", "buys"))
    total = (first * factor, first * factor + rest, more * factor)
    lines = [
        f"{first} * {factor} = {total[0]}",
        f"{total[0]} + {rest} = {total[1]}",
        f"{more} * {factor} = {total[2]}",
        f"{total[1]} + {total[2]} = {total[1] + total[2]}",
    ]
    prompt = f"{name} has {first} {large} and {rest} {small}. {name} {verb} {more} {large} more. How many {small} is that?"
    return problem(prompt, lines, total[1] + total[2])


def dates(rng: random.Random) -> dict:
    names, span = rng.choice(((WEEKDAYS, "days"), (MONTHS, "months")))
    start, first, second = rng.randrange(len(names)) + 1, rng.randint(2, 30), rng.randint(2, 30)
    total = start + first + second
    past = (total - 1) // len(names) * len(names)  # whole weeks or years
    lines = [
        f"{names[start - 1]} is {start}",
        f"{start} + {first} = {start + first}",
        f"{start + first} + {second} = {total}",
        f"{total} - {past} = {total - past}",
    ]
    prompt = f"It is {names[start - 1]}. Which is it {first} {span} and then {second} {span} from there, if {names[0]} is 1?"
    return problem(prompt, lines, total - past)


def clock(rng: random.Random) -> dict:
    hour, minute, hours, minutes = rng.randrange(24), rng.randrange(60), rng.randint(1, 12), rng.randint(2, 59)
    lines = [f"{minute} + {minutes} = {minute + minutes}"]
    carried, end_minute = divmod(minute + minutes, 60)
    if carried:
        lines += [f"{minute + minutes} - 60 = {end_minute}", f"{hour} + 1 = {hour + 1}"]
    end_hour = hour + carried + hours
    lines.append(f"{hour + carried} + {hours} = {end_hour}")
    if end_hour >= 24:
        lines.append(f"{end_hour} - 24 = {end_hour - 24}")
    prompt = f"The clock is at {hour:02}{minute:02}. Where is it {hours} h and {minutes} min from then?"
    return problem(prompt, lines, f"{end_hour % 24:02}{end_minute:02}")


def comparing(rng: random.Random) -> dict:
    names, amounts, item = rng.sample(NAMES, 3), rng.sample(range(1, 80), 3), rng.choice(ITEMS)
    most, least = max(amounts), min(amounts)
    told = " ".join(f"{name} has {amount} {item}." for name, amount in zip(names, amounts, strict=True))
    lines = [f"{most} > {least}", f"{most} - {least} = {most - least}"]
    return problem(f"{told} How many more is the largest than the smallest?", lines, most - least)


def sequence(rng: random.Random) -> dict:
    while True:
        start, step, length, rises = rng.randint(1, 99), rng.randint(2, 15), rng.randint(3, 6), rng.random() < 0.5
        numbers = [start + i * (step if rises else -step) for i in range(length)]
        if 0 <= numbers[-1] <= 99:
            break
    sign, way = ("+", "above") if rises else ("-", "below")
    lines = [f"{before} {sign} {step} = {after}" for before, after in itertools.pairwise(numbers)]
    first = rng.choice((f"The first number is {start}.", f"A list has {start} first."))
    prompt = f"{first} Each of them is {step} {way} the last. Which is the {ORDINALS[length - 1]}?"
    return problem(prompt, lines, numbers[-1])


DOMAINS: dict[str, Callable[[random.Random], dict]] = {
    "sorting": sorting,
    "reversing": reversing,
    "counting": counting,
    "units": units,
    "dates": dates,
    "clock": clock,
    "comparing": comparing,
    "sequence": sequence,
}
