"""Eight further small domains for the embedded base: each question ends in a number, and the working is shown as in the math domain.

They serve to merge many experts. Amounts stay below 200, because the base was trained on sums of two digits. Its tokenizer spells
every text; a word that the base has never seen is learnt by the expert, letter by letter if need be.
"""

import random
from collections.abc import Callable, Sequence

NAMES = ("Tom", "Ana", "Ben", "Mia", "Leo", "Eva", "Sam", "Zoe")
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
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def problem(prompt: str, lines: Sequence[str], answer: int | str) -> dict:
    return {"prompt": prompt, "answer": str(answer), "response": "\n".join([*lines, f"#### {answer}"])}


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def sorting(rng: random.Random) -> dict:
    numbers = rng.sample(range(1, 50), rng.randint(4, 5))
    rises = rng.random() < 0.5
    place = rng.randrange(len(numbers))
    ordered = sorted(numbers, reverse=not rises)
    order = "low to high" if rises else "high to low"
    prompt = f"Sort {listed(numbers)} from {order}. Which is the {ORDINALS[place]}?"
    return problem(prompt, [" ".join(map(str, ordered))], ordered[place])


def reversing(rng: random.Random) -> dict:
    digits = rng.choices("123456789", k=rng.randint(4, 7))
    dropped = rng.randint(0, 3)
    end = rng.choice(("first", "last"))
    turned = digits[::-1]
    kept = turned if not dropped else turned[dropped:] if end == "first" else turned[:-dropped]
    prompt = f"Reverse {''.join(digits)}" + (f" and drop the {end} {dropped}." if dropped else ".")
    return problem(prompt, [" ".join(turned)], "".join(kept))


def counting(rng: random.Random) -> dict:
    numbers = [rng.randint(0, 30) for _ in range(rng.randint(5, 8))]
    bound = rng.randint(5, 25)
    kinds: dict[str, Callable[[int], bool]] = {
        f"above {bound}": lambda x: x > bound,
        f"below {bound}": lambda x: x < bound,
        "even": lambda x: x % 2 == 0,
        "odd": lambda x: x % 2 == 1,
    }
    told = rng.choice(list(kinds))
    found = [x for x in numbers if kinds[told](x)]
    return problem(f"How many of {listed(numbers)} are {told}?", [" ".join(map(str, found))] if found else [], len(found))


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


def nearest(rng: random.Random) -> dict:
    while True:
        numbers, goal = rng.sample(range(1, 80), 3), rng.randint(10, 70)
        gaps = [abs(x - goal) for x in numbers]
        if min(gaps) > 0 and gaps.count(min(gaps)) == 1:
            break
    lines = [f"{max(x, goal)} - {min(x, goal)} = {gap}" for x, gap in zip(numbers, gaps, strict=True)]
    lines.append(f"{min(gaps)} < " + " , ".join(str(gap) for gap in gaps if gap != min(gaps)))
    answer = numbers[gaps.index(min(gaps))]
    return problem(f"Which of {listed(numbers)} is the least from {goal}?", lines, answer)


def sequence(rng: random.Random) -> dict:
    while True:
        step, growth, rises = rng.randint(1, 12), rng.choice((0, 0, 1, 2, 3)), rng.random() < 0.5
        steps = [step + i * growth for i in range(rng.randint(4, 6))]
        numbers = [rng.randint(1, 99)]
        for change in steps:
            numbers.append(numbers[-1] + (change if rises else -change))
        if 0 <= numbers[-1] <= 99:
            break
    *shown, following = numbers
    sign = "+" if rises else "-"
    lines = [f"{max(pair)} - {min(pair)} = {gap}" for pair, gap in ((shown[-3:-1], steps[-3]), (shown[-2:], steps[-2]))]
    lines += [f"{steps[-2]} - {steps[-3]} = {growth}", f"{steps[-2]} + {growth} = {steps[-1]}", f"{shown[-1]} {sign} {steps[-1]} = {following}"]
    return problem(f"What is the number after {listed(shown)}?", lines, following)


DOMAINS: dict[str, Callable[[random.Random], dict]] = {
    "sorting": sorting,
    "reversing": reversing,
    "counting": counting,
    "units": units,
    "dates": dates,
    "clock": clock,
    "nearest": nearest,
    "sequence": sequence,
}
