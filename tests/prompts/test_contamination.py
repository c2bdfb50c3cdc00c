"""Prompts that an evaluation suite's questions are in are found; those that only share its wording are not."""

import pytest

from gopd_merge.prompts.contamination import Suspects
from gopd_merge.prompts.likeness import copies

WORDING = "Work it out step by step. Then write the final answer, a number alone, on a last line that begins with ####."
NAMES = ("Ana", "Ben", "Cleo", "Dov", "Eva", "Finn", "Gus", "Hal", "Ivo", "Jan", "Kim", "Lou", "Max")
QUESTIONS = [
    f"{name} buys {3 * i + 2} pears and gives {i + 1} of them to a neighbour who has {i + 4} already; how many are kept?\n\n{WORDING}"
    for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def suspects():
    return Suspects("sums", QUESTIONS)


def test_a_question_is_found_whatever_its_case_its_punctuation_and_what_stands_around_it(suspects):
    bare = QUESTIONS[4].partition("\n")[0]
    for text in (QUESTIONS[4], bare, bare.upper(), f"Please answer: {bare.replace(';', ' -')} Thank you!"):
        assert suspects.holds(text)


def test_the_wording_that_many_questions_share_is_no_sign(suspects):
    assert not suspects.holds(f"A farmer has 12 cows and sells 5. How many are left?\n\n{WORDING}")
    assert suspects.n == 13
    few = Suspects("sums", QUESTIONS[:1])  # the control: of one question nothing can be known to be wording
    assert few.holds(WORDING)


def test_twelve_words_in_a_row_are_not_enough_and_thirteen_are(suspects):
    words = QUESTIONS[4].split()
    assert not suspects.holds("So " + " ".join(words[:12]) + " and then more happens to all of them")
    assert suspects.holds("So " + " ".join(words[:13]) + " and then more happens to all of them")


def test_the_run_is_as_long_as_the_suites_short_questions_but_never_below_eight():
    assert Suspects("short", ["Write f: drop the last two and return the sum"] * 3).n == 10
    assert Suspects("tiny", ["Add two numbers"]).n == 8


def test_a_short_text_is_meant_only_as_a_whole():
    tiny = Suspects("tiny", ["Add two numbers"])
    assert tiny.holds("add two numbers!")
    assert not tiny.holds("Add two numbers and print them.")
    long = Suspects("sums", QUESTIONS)
    assert not long.holds("gives 5 of them to a")  # seven words of a question
    assert long.holds("gives 5 of them to a neighbour who has 8 already")  # ten


def test_a_copy_is_a_text_that_shares_four_fifths_of_its_runs_with_an_earlier_one():
    text = "Ana has twelve red pears and a long list of other things that nobody would ever want to count for her again today"
    near, far = text.replace("Ana", "Ben"), text.replace("twelve", "seven").replace("pears", "nuts").replace("nobody", "you")
    assert copies([text, text, near, far, "Something else"]) == [False, True, True, False, False]


def test_copies_are_those_that_comparing_all_pairs_would_find():
    import random

    draw = random.Random(0)
    base = [[draw.choice("abcdefghijkl") for _ in range(draw.randint(3, 25))] for _ in range(60)]
    texts = [" ".join(words) for words in base]
    for words in base:  # each again with a word or two changed
        changed = list(words)
        for _ in range(draw.randint(0, 2)):
            changed[draw.randrange(len(changed))] = draw.choice("xyz")
        texts.append(" ".join(changed))

    def runs(text):
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    expected, kept = [], []
    for text in texts:
        own = runs(text)
        is_copy = any(len(own & other) / len(own | other) >= 0.8 for other in kept)
        expected.append(is_copy)
        kept += [] if is_copy else [own]
    assert copies(texts) == expected
    assert 5 < sum(expected) < 60
