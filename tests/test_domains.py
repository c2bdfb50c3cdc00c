"""The further domains under eval/domains: what they ask is right, can be graded, is split by the prompt's text, and can be spelled."""

import datetime
import importlib
import json
import random
import re
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gopd_merge.evaluate.final_answer import FINAL, plain_number
from gopd_merge.evaluate.graders import grade
from gopd_merge.prompts.sources import Prompt

ROOT = Path(__file__).resolve().parent.parent
DRAWS = 300


@pytest.fixture(scope="module")
def problems():
    return module("problems", ROOT / "eval" / "domains")


@pytest.fixture(scope="module")
def splits(problems):
    recipe = module("splits", ROOT / "adapters" / "recipe")
    recipe.DOMAINS |= problems.DOMAINS
    return recipe


def module(name, folder):
    """Scripts import their neighbours by name, as Python does for the folder of the script that it runs."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def solve_sorting(prompt):
    numbers, order, place = re.fullmatch(r"Sort ([\d, ]+) from (low to high|high to low)\. Which is the (\w+)\?", prompt).groups()
    left = [int(x) for x in numbers.split(", ")]
    take = min if order == "low to high" else max
    for _ in range(["first", "second", "third", "fourth", "fifth", "sixth"].index(place)):
        left.remove(take(left))
    return take(left)


def solve_reversing(prompt):
    value = 0
    for place, digit in enumerate(re.fullmatch(r"Reverse ((?:\d )+\d)\.", prompt)[1].split()):
        value += 10**place * int(digit)
    return value


def solve_counting(prompt):
    numbers, told, bound = re.fullmatch(r"How many of ([\d, ]+) are (above|below|even|odd)(?: (\d+))?\?", prompt).groups()
    compare = {
        "above": lambda x: x - int(bound) > 0,
        "below": lambda x: int(bound) - x > 0,
        "even": lambda x: str(x)[-1] in "02468",
        "odd": lambda x: str(x)[-1] in "13579",
    }
    return len([x for x in numbers.split(", ") if compare[told](int(x))])


def solve_units(prompt):
    shape = r"(\w+) has (\d+) (\w+) and (\d+) (\w+)\. \1 \w+ (\d+) \3 more\. How many \5 is that\?"
    _, first, large, rest, small, more = re.fullmatch(shape, prompt).groups()
    size = {"pairs shoes": 2, "yards feet": 3, "gallons quarts": 4, "weeks days": 7}
    size |= {"feet inches": 12, "dozens eggs": 12, "pounds ounces": 16, "days hours": 24}
    return (int(first) + int(more)) * size[f"{large} {small}"] + int(rest)


def solve_dates(prompt):
    shape = r"It is (\w+)\. Which is it (\d+) (days|months) and then (\d+) \3 from there, if (Monday|Jan) is 1\?"
    name, first, span, second, _ = re.fullmatch(shape, prompt).groups()
    moves = int(first) + int(second)
    if span == "days":
        day = next(d for n in range(1, 8) if (d := datetime.date(2024, 1, n)).strftime("%A") == name)
        return (day + datetime.timedelta(moves)).isoweekday()
    month = datetime.datetime.strptime(name, "%b").month
    for _ in range(moves):
        month = 1 if month == 12 else month + 1
    return month


def solve_clock(prompt):
    start, hours, minutes = re.fullmatch(r"The clock is at (\d{4})\. Where is it (\d+) h and (\d+) min from then\?", prompt).groups()
    later = datetime.datetime.strptime(start, "%H%M") + datetime.timedelta(hours=int(hours), minutes=int(minutes))
    return int(later.strftime("%H%M"))


def solve_comparing(prompt):
    shape = r"\w+ has (\d+) (\w+)\. \w+ has (\d+) \2\. \w+ has (\d+) \2\. How many more is the largest than the smallest\?"
    a, _, b, c = re.fullmatch(shape, prompt).groups()
    a, b, c = int(a), int(b), int(c)
    assert len({a, b, c}) == 3
    return max(abs(a - b), abs(b - c), abs(c - a))


def solve_sequence(prompt):
    shape = r"(?:The first number is (\d+)|A list has (\d+) first)\. Each of them is (\d+) (above|below) the last\. Which is the (\w+)\?"
    start, other, step, way, place = re.fullmatch(shape, prompt).groups()
    times = ["first", "second", "third", "fourth", "fifth", "sixth"].index(place)
    return int(start or other) + times * int(step) * (1 if way == "above" else -1)


SOLVERS = {name.removeprefix("solve_"): solve for name, solve in globals().items() if name.startswith("solve_")}


def drawn(problems, domain):
    rng = random.Random(domain)
    return [problems.DOMAINS[domain](rng) for _ in range(DRAWS)]


def test_there_are_enough_domains_to_merge_eight_experts(problems):
    assert set(SOLVERS) == set(problems.DOMAINS)
    assert len(problems.DOMAINS) + len(["math", "code"]) >= 8


@pytest.mark.parametrize("domain", SOLVERS)
def test_the_answers_are_those_of_an_independent_solver(problems, domain):
    for row in drawn(problems, domain):
        assert int(row["answer"]) == SOLVERS[domain](row["prompt"]), row["prompt"]


@pytest.mark.parametrize("domain", SOLVERS)
def test_every_line_of_the_working_is_right(problems, domain):
    for row in drawn(problems, domain):
        for left, sign, right, result in re.findall(r"^(\d+) ([-+*]) (\d+) = (\d+)$", row["response"], re.MULTILINE):
            worked = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
            assert worked == int(result), row["response"]


@pytest.mark.parametrize("domain", SOLVERS)
def test_the_worked_response_is_graded_right_and_another_answer_wrong(problems, domain):
    for row in drawn(problems, domain):
        question = Prompt.model_validate({"prompt": row["prompt"], "answer": row["answer"]})
        assert plain_number(row["answer"]) is not None
        assert grade(question, row["response"], final=FINAL)
        working = row["response"].rpartition(FINAL)[0]
        assert not grade(question, f"{working}{FINAL} {int(row['answer']) + 1}", final=FINAL)
        assert not grade(question, working, final=FINAL)


@pytest.mark.parametrize("domain", SOLVERS)
def test_splits_are_disjoint_and_have_a_thousand_different_prompts(splits, domain):
    found = {split: [row["prompt"] for row in splits.distinct(domain, split, 0, 1000)] for split in ("train", "validation", "test")}
    assert {split: len(set(prompts)) for split, prompts in found.items()} == {"train": 1000, "validation": 1000, "test": 1000}
    assert len({prompt for prompts in found.values() for prompt in prompts}) == 3000
    assert [row["prompt"] for row in splits.distinct(domain, "test", 0, 1000)] == found["test"]  # the same again


@pytest.mark.parametrize("domain", SOLVERS)
def test_the_tokenizer_spells_every_text_and_questions_fit_the_default_length(problems, adapters, domain):
    tokenizer = AutoTokenizer.from_pretrained(adapters / "tiny-base")
    unknown = tokenizer.unk_token_id
    for row in drawn(problems, domain):
        for text in (row["prompt"], row["response"]):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert unknown is None or unknown not in ids
        assert len(ids) < 96  # --max-new-tokens, with the end


def test_prompts_of_different_domains_are_never_the_same(problems, adapters):
    owner = {}
    for domain in problems.DOMAINS:
        for row in drawn(problems, domain):
            assert owner.setdefault(row["prompt"], domain) == domain
    for domain in ("math", "code"):
        for line in (adapters / f"{domain}.lora" / "prompts" / "test.jsonl").read_text().splitlines():
            assert json.loads(line)["prompt"] not in owner
