"""Word problems of one or two steps, as a child meets them in the third year: told in many ways, some with a number that does not matter.

The stories are in stories.yaml. The answer is written as the calculation, one step a line, and the result after ####.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

INSTRUCTION = "Show the calculation, then write #### and the answer."
DISTRACTED = 0.25  # share of the problems with a number that does not matter
NAMES = (
    *(
        "Tom",
        "Ana",
        "Ben",
        "Mia",
        "Leo",
        "Eva",
        "Sam",
        "Zoe",
        "Omar",
        "Lily",
        "Noah",
        "Ruth",
        "Kofi",
        "Jane",
        "Ivan",
        "Mei",
        "Paul",
        "Nina",
    ),
    *("Carl", "Dana", "Hugo", "Iris", "Juan", "Kate", "Luis", "Maya", "Nick", "Olga", "Pete", "Rosa", "Tina", "Vera", "Will", "Yara"),
)
ITEMS = (
    *("apples", "pens", "coins", "cards", "books", "shells", "marbles", "stickers", "cookies", "stamps", "pencils", "oranges", "balloons"),
    *("flowers", "candies", "ribbons", "bottles", "buttons", "eggs", "toys", "stones", "tickets", "plates", "cups", "muffins", "photos"),
)
BOXES = ("boxes", "bags", "baskets", "packs", "jars", "crates", "shelves", "drawers")
PLACES = ("school", "farm", "bakery", "library", "museum", "shop", "garden", "club", "zoo", "camp", "market", "factory")


@dataclass(frozen=True)
class Story:
    """`steps` are the calculation: the first over a, b, c, the second over those and x. `most` bounds the numbers."""

    told: str
    asked: str
    steps: tuple[str, ...]
    most: int = 99


STORIES = tuple(
    Story(**{**row, "steps": tuple(row["steps"])}) for row in yaml.safe_load(Path(__file__).with_name("stories.yaml").read_text())
)
DISTRACTIONS = (
    "{third} has {d} {things}.",
    "{name} also has {d} {things}.",
    "It is {d} days until the holidays.",
    "{third} is {d} years old.",
    "There are {d} {things} on the table.",
)


def draw(rng: random.Random) -> dict[str, str]:
    """One problem: `prompt`, `response`, `answer`, and the question as its `key`."""
    story = rng.choice(STORIES)
    numbers = _numbers(story, rng)
    told, asked = _worded(story.told, rng), _worded(story.asked, rng)
    sentences = [told, asked]
    if rng.random() < DISTRACTED:
        sentences.insert(rng.choice((0, 1)), rng.choice(DISTRACTIONS))
    name, other, third = rng.sample(NAMES, 3)
    items, things = rng.sample(ITEMS, 2)
    slots = {"name": name, "other": other, "third": third, "items": items, "things": things, "d": str(rng.randint(2, 60))}
    slots |= {"boxes": rng.choice(BOXES), "place": rng.choice(PLACES), "pages": rng.choice(("pages", "miles", "trees", "fences"))}
    question = " ".join(sentences).format(**slots, **numbers)
    lines, answer = worked(story.steps, numbers)
    return {
        "prompt": f"{question}\n{INSTRUCTION}",
        "response": "\n".join([*lines, f"#### {answer}"]),
        "answer": str(answer),
        "key": question,
    }


def worked(steps: tuple[str, ...], numbers: dict[str, int]) -> tuple[list[str], int]:
    """The calculation as text, one line a step, and the result. Raises ValueError where a step gives no natural number above 0."""
    known, lines, result = dict(numbers), [], 0
    for step in steps:
        left, sign, right = step.split()
        a, b = known[left], known[right]
        if sign == "/" and (b < 2 or a % b):
            raise ValueError(f"{a} / {b}")
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[sign]
        if result < 1:
            raise ValueError(f"{a} {sign} {b}")
        lines.append(f"{a} {sign} {b} = {result}")
        known["x"] = result
    return lines, result


def _numbers(story: Story, rng: random.Random) -> dict[str, int]:
    """Values with which every step gives a natural number; division goes by small numbers."""
    divides = {step.split()[2] for step in story.steps if "/" in step}
    while True:
        numbers = {letter: rng.randint(2, 12 if letter in divides else story.most) for letter in "abc"}
        if story.most == 12:
            numbers["c"] = rng.randint(2, 99)
        try:
            worked(story.steps, numbers)
        except ValueError:
            continue
        return numbers


def _worded(text: str, rng: random.Random) -> str:
    return re.sub(r"\[([^]]*)\]", lambda match: rng.choice(match[1].split("|")), text)
