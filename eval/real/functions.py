"""Short Python functions on lists of numbers, lists of words, texts and a few integers: a sentence, the function, and hidden tests.

A function is a composition of parts (keep some, change each, bring them together), each with several wordings, under a name that says
nothing of what it does: what is graded is whether the sentence was understood. `{k}` is a small number that both have.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

INSTRUCTION = "Answer with the function in one ```python block."
TESTS = 4
VERBS = ("solve", "process", "compute", "handle", "work_out", "evaluate", "make", "find", "get", "run", "apply", "check")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    *("apple", "tree", "river", "stone", "cloud", "bird", "night", "sun", "ocean", "fire", "wind", "leaf", "snow", "hill", "moon", "star"),
    *("Level", "Anna", "orange", "Echo", "idea", "train", "Bob", "unit", "kayak", "sky", "Green", "under"),
)


@dataclass(frozen=True)
class Part:
    """One part of a function in words, with `[a|b]` left to `said` as alternatives, and as code."""

    said: tuple[str, ...]
    code: str


EACH = (
    Part(("{items}",), "x"),
    Part(("the squares of {items}", "{items}, each squared"), "x * x"),
    Part(("the doubles of {items}", "{items}, each doubled"), "2 * x"),
    Part(("{items}, each plus {k}", "{items}, each increased by {k}"), "x + {k}"),
    Part(("{items}, each minus {k}", "{items}, each reduced by {k}"), "x - {k}"),
    Part(("{items}, each times {k}", "{items}, each multiplied by {k}"), "x * {k}"),
    Part(("the absolute values of {items}",), "abs(x)"),
    Part(("the remainders of {items} divided by {k}",), "x % {k}"),
)
KEPT = (
    Part(("the numbers",), ""),
    Part(("the even numbers", "the numbers that are even"), "x % 2 == 0"),
    Part(("the odd numbers", "the numbers that are odd"), "x % 2 == 1"),
    Part(("the positive numbers", "the numbers above zero"), "x > 0"),
    Part(("the negative numbers", "the numbers below zero"), "x < 0"),
    Part(("the numbers greater than {j}", "the numbers above {j}"), "x > {j}"),
    Part(("the numbers less than {j}", "the numbers below {j}"), "x < {j}"),
    Part(("the numbers divisible by {k}", "the multiples of {k}"), "x % {k} == 0"),
)
TOGETHER = (
    Part(("a list of {those}",), "{list}"),
    Part(("the sum of {those}", "the total of {those}"), "sum({each})"),
    Part(("the largest of {those}, or 0 if there are none",), "max({list}, default=0)"),
    Part(("the smallest of {those}, or 0 if there are none",), "min({list}, default=0)"),
    Part(("a sorted list of {those}", "{those}, sorted"), "sorted({each})"),
    Part(("a list of {those}, in reverse order",), "{list}[::-1]"),
)
WORD_EACH = (
    Part(("{items}",), "w"),
    Part(("{items} in upper case",), "w.upper()"),
    Part(("{items} in lower case",), "w.lower()"),
    Part(("{items}, each spelled backwards", "{items}, each reversed"), "w[::-1]"),
    Part(("the first letters of {items}",), "w[0]"),
    Part(("the last letters of {items}",), "w[-1]"),
    Part(("the lengths of {items}",), "len(w)"),
    Part(("the first {n} letters of {items}",), "w[:{n}]"),
)
WORD_KEPT = (
    Part(("the words",), ""),
    Part(("the words longer than {n} letters", "the words with more than {n} letters"), "len(w) > {n}"),
    Part(("the words shorter than {m} letters",), "len(w) < {m}"),
    Part(("the words that contain the letter {c}", "the words with the letter {c}"), "'{c}' in w"),
    Part(("the words that start with {c}",), "w.startswith('{c}')"),
    Part(("the words that end with {c}",), "w.endswith('{c}')"),
    Part(("the words without the letter {c}",), "'{c}' not in w"),
)
WORD_TOGETHER = (
    Part(("a list of {those}",), "{list}"),
    Part(("a sorted list of {those}", "{those}, sorted"), "sorted({each})"),
    Part(("a list of {those}, in reverse order",), "{list}[::-1]"),
)
TEXT = (
    Part(("the number of vowels in the text", "how many vowels the text has"), "sum(c in 'aeiou' for c in text.lower())"),
    Part(("how often the letter {c} occurs in the text", "the number of times {c} is in the text"), "text.count('{c}')"),
    Part(("the text reversed", "the text spelled backwards"), "text[::-1]"),
    Part(("the text in upper case",), "text.upper()"),
    Part(("the text without its spaces", "the text with all spaces removed"), "text.replace(' ', '')"),
    Part(("the number of words in the text", "how many words the text has"), "len(text.split())"),
    Part(("the longest word of the text",), "max(text.split(), key=len)"),
    Part(("the first word of the text",), "text.split()[0]"),
    Part(("the last word of the text",), "text.split()[-1]"),
    Part(("the words of the text in reverse order, joined by spaces",), "' '.join(text.split()[::-1])"),
    Part(("the text with every {c} replaced by {d}", "the text where {d} stands for each {c}"), "text.replace('{c}', '{d}')"),
    Part(("the first {n} characters of the text",), "text[:{n}]"),
    Part(("the last {n} characters of the text",), "text[-{n}:]"),
    Part(("whether the text starts with {c}", "True if the text begins with {c}, else False"), "text.startswith('{c}')"),
    Part(("the text repeated {k} times",), "text * {k}"),
)
INTEGERS = (
    Part(("the sum of a and b, times {k}", "{k} times the sum of a and b"), "(a + b) * {k}"),
    Part(("a times b, plus {k}", "{k} more than the product of a and b"), "a * b + {k}"),
    Part(("the larger of a and b", "whichever of a and b is greater"), "max(a, b)"),
    Part(("the smaller of a and b, plus {k}",), "min(a, b) + {k}"),
    Part(("the distance between a and b", "the absolute difference of a and b"), "abs(a - b)"),
    Part(("whether a is divisible by b", "True if b divides a, else False"), "a % b == 0"),
    Part(("the remainder of a divided by b, plus {k}",), "a % b + {k}"),
    Part(("the square of a minus b", "b subtracted from the square of a"), "a * a - b"),
    Part(("a if a is greater than {j}, otherwise b",), "a if a > {j} else b"),
    Part(("whether a plus b is even", "True if the sum of a and b is even, else False"), "(a + b) % 2 == 0"),
    Part(("the average of a and b",), "(a + b) / 2"),
    Part(("a list of the whole numbers from a to a plus b, both included",), "list(range(a, a + b + 1))"),
)


def draw(rng: random.Random) -> dict[str, Any]:
    """One problem: `prompt`, `response`, `tests`, `entry_point`, and as its `key` the code, which names and wordings do not change."""
    while True:
        said, arguments, code, example = rng.choice((_numbers, _numbers, _words, _words, _text, _integers))(rng)
        name = f"{rng.choice(VERBS)}_{rng.choice(('it', 'them', 'this', 'values', 'data', 'items', 'input', 'result', 'answer', 'all'))}"
        function = f"def {name}({arguments}):\n    return {code}"
        tests = _tests(function, name, example, rng)
        if tests:
            break
    opening = rng.choice(("Write a Python function {f} that returns {s}.", "Write {f}, a Python function that returns {s}."))
    prompt = f"{opening.format(f=f'{name}({arguments})', s=said)}\n{INSTRUCTION}"
    return {"prompt": prompt, "response": f"```python\n{function}\n```", "tests": tests, "entry_point": name, "key": code}


Made = tuple[str, str, str, Callable[[], tuple[Any, ...]]]  # what is said, arguments, code, a draw of arguments


def _numbers(rng: random.Random) -> Made:
    said, code = _composed(KEPT, EACH, TOGETHER, "x", "numbers", rng)
    return said, "numbers", code, lambda: ([rng.randint(-9, 20) for _ in range(rng.randint(3, 7))],)


def _words(rng: random.Random) -> Made:
    said, code = _composed(WORD_KEPT, WORD_EACH, WORD_TOGETHER, "w", "words", rng)
    return said, "words", code, lambda: (rng.sample(WORDS, rng.randint(3, 6)),)


def _text(rng: random.Random) -> Made:
    said, code = _filled(rng.choice(TEXT), rng)
    return said, "text", code, lambda: (" ".join(rng.sample(WORDS, rng.randint(1, 5))),)


def _integers(rng: random.Random) -> Made:
    said, code = _filled(rng.choice(INTEGERS), rng)
    return said, "a, b", code, lambda: (rng.randint(1, 20), rng.randint(1, 9))


def _composed(
    kept: Sequence[Part], each: Sequence[Part], together: Sequence[Part], x: str, source: str, rng: random.Random
) -> tuple[str, str]:
    """Keep, change, bring together: as words and as one expression."""
    first, second, third = rng.choice(kept), rng.choice(each), rng.choice(together)
    values = _values(rng)
    condition = first.code.format(**values)
    changed = second.code.format(**values)
    each_one = f"{changed} for {x} in {source}" + (f" if {condition}" if condition else "")
    items = rng.choice(first.said).format(**values)
    those = f"{rng.choice(second.said).format(items=items, **values)} in the list {source}"
    whole = "[" + each_one + "]"
    if changed == x and not condition:
        each_one = whole = source
    return rng.choice(third.said).format(those=those), third.code.format(list=whole, each=each_one)


def _filled(part: Part, rng: random.Random) -> tuple[str, str]:
    values = _values(rng)
    return rng.choice(part.said).format(**values), part.code.format(**values)


def _values(rng: random.Random) -> dict[str, Any]:
    c, d = rng.sample(LETTERS[:20], 2)
    return {"k": rng.randint(2, 9), "j": rng.randint(1, 12), "n": rng.randint(2, 4), "m": rng.randint(4, 6), "c": c, "d": d}


def _tests(function: str, name: str, example: Callable[[], tuple[Any, ...]], rng: random.Random) -> list[str] | None:
    """Asserts with what the function gives for drawn arguments; None where it gives nearly always the same, which tests nothing."""
    scope: dict[str, Any] = {}
    exec(function, scope)  # our own generated text, never a model's
    found = {}
    for _ in range(TESTS):
        arguments = example()
        found[repr(arguments)[1:-1].rstrip(",")] = repr(scope[name](*arguments))
    if len(set(found.values())) < (2 if set(found.values()) <= {"True", "False"} else 3):
        return None
    return [f"assert {name}({arguments}) == {expected}" for arguments, expected in found.items()]
