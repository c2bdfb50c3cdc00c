"""What the real study asks: answers that are right, splits that share nothing, and no training problem that meets a public test."""

import gzip
import importlib
import json
import random
import re
import sys
from pathlib import Path

import pytest

from gopd_merge.evaluate.graders import grade
from gopd_merge.evaluate.suites import load_benchmarks, read_suite
from gopd_merge.prompts.contamination import Suspects
from gopd_merge.prompts.sources import Prompt

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "real"
DRAWS = 400


def module(name):
    """Scripts import their neighbours by name, as Python does for the folder of the script that it runs."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def data():
    return module("data")


def drawn(name, seed=0):
    rng = random.Random(seed)
    return [module(name).draw(rng) for _ in range(DRAWS)]


def test_a_word_problem_is_answered_by_its_calculation():
    for row in drawn("words"):
        *lines, last = row["response"].splitlines()
        assert 1 <= len(lines) <= 2
        for line in lines:
            left, right = line.replace("/", "//").split(" = ")
            assert eval(left, {}) == int(right) > 0, row
        assert lines[-1].split()[-1] == row["answer"] == last.removeprefix("#### ")
        told = re.findall(r"\d+", row["prompt"].replace("####", ""))
        used = re.findall(r"\d+", lines[0].split(" = ")[0])
        assert set(used) <= set(told), row  # the first step uses numbers of the story alone
        assert "{" not in row["prompt"]
        assert "[" not in row["prompt"]
        assert grade(Prompt.model_validate(row), row["response"])
        assert not grade(Prompt.model_validate(row), row["response"].replace(last, f"#### {int(row['answer']) + 1}"))


def test_a_division_that_leaves_something_and_a_negative_result_are_no_problem():
    words = module("words")
    assert words.worked(("a / b", "x - c"), {"a": 12, "b": 3, "c": 1}) == (["12 / 3 = 4", "4 - 1 = 3"], 3)
    for steps, numbers in ((("a / b",), {"a": 7, "b": 2}), (("a - b",), {"a": 2, "b": 2}), (("a / b",), {"a": 7, "b": 1})):
        with pytest.raises(ValueError, match=r"/|-"):
            words.worked(steps, numbers)


def test_a_function_passes_its_tests_and_a_wrong_one_does_not():
    """Run here as Python: it is our own generated text. The sandbox has tests of its own."""
    for row in drawn("functions"):
        code = row["response"].removeprefix("```python\n").removesuffix("\n```")
        right, wrong = {}, {}
        exec(code, right)
        exec(re.sub(r"return .*", "return None", code), wrong)
        assert 2 <= len(row["tests"]) <= 4
        for test in row["tests"]:
            assert f"{row['entry_point']}(" in test
            exec(test, right)
            with pytest.raises(AssertionError):
                exec(test, wrong)
        assert f"{row['entry_point']}(" in row["prompt"]
        assert "{" not in row["prompt"]


@pytest.mark.parametrize("name", ["words", "functions"])
def test_problems_are_varied_and_the_same_for_the_same_seed(name):
    first = drawn(name)
    assert first == drawn(name)
    assert first != drawn(name, seed=1)
    assert len({row["prompt"] for row in first}) > 0.95 * DRAWS


def test_splits_share_no_problem_and_train_has_no_public_question(data):
    for domain, name in (("math", "words"), ("code", "functions")):
        story = next(row for row in drawn(name) if data.split_of(row["key"]) == "train")
        suspects = [Suspects("public", [story["prompt"]])]
        wanted = {"train": 120, "validation": 15, "test": 15}
        rows = data.generated(domain, wanted, suspects)
        assert {split: len(found) for split, found in rows.items()} == wanted
        keys = {split: {row["key"] for row in found} for split, found in rows.items()}
        assert not keys["train"] & keys["test"] | keys["train"] & keys["validation"] | keys["validation"] & keys["test"]
        assert not [row for row in rows["train"] if data.is_like(row, suspects)]
        assert data.is_like(story, suspects)  # the control


@pytest.fixture
def public(tmp_path):
    """Files in the forms of the public sets, and what of them can be used."""
    rows = {
        "gsm8k": [
            {"question": "A?", "answer": "He has 3+4=<<3+4=7>>7. So 7*2=<<7*2=14>>14\n#### 14"},  # as on the Hub
            {"question": "B?", "answer": "1,200", "solution": "600*2=<<600*2=1200>>1200", "split": "train"},  # as in a file
            {"question": "C?", "answer": "1/2=<<1/2=0.5>>0.5\n#### 0.5"},  # no whole number
            {"question": "D?", "answer": "So 5+5=<<5+5=10>>10, less one\n#### 9"},  # the last calculation is not the answer
            {"question": "E?", "answer": "7", "solution": "3+4=<<3+4=7>>7", "split": "test"},
            {"question": "F" * 300, "answer": "3+4=<<3+4=7>>7\n#### 7"},
        ],
        "mbpp": [
            {"text": "Add.", "code": "def add(a, b):\r\n\treturn a + b", "test_list": ["assert add(1, 2) == 3"]},
            {
                "prompt": "Twice.",
                "canonical_solution": "def twice(a):\n  return 2 * a",
                "tests": ["assert twice(1) == 2"],
                "split": "train",
            },
            {"prompt": "Set up.", "canonical_solution": "def f(a):\n  return a", "tests": ["x = 1", "assert f(x) == 1"], "split": "train"},
            {"text": "Import.", "code": "import math\ndef f(a):\n  return math.sin(a)", "test_list": ["assert f(0) == 0"]},
        ],
    }
    for name, found in rows.items():
        columns = {key for row in found for key in row}
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(dict.fromkeys(columns) | row) + "\n" for row in found)
    return {name: str(tmp_path / f"{name}.jsonl.gz") for name in rows}


def test_short_rows_of_public_sets_become_problems_of_the_same_form(public):
    sources, words, functions = module("sources"), module("words"), module("functions")
    found = sources.word_problems(public["gsm8k"])
    assert [row["prompt"][:2] for row in found] == ["A?", "B?"]
    assert found[0]["response"] == "3 + 4 = 7\n7 * 2 = 14\n#### 14"
    assert found[1]["answer"] == "1200"
    assert all(row["prompt"].endswith(f"\n{words.INSTRUCTION}") for row in found)
    programs = sources.short_functions(public["mbpp"])
    assert [row["entry_point"] for row in programs] == ["add", "twice"]
    assert programs[0]["response"] == "```python\ndef add(a, b):\n    return a + b\n```"
    assert programs[0]["prompt"] == f"Add. It must pass:\nassert add(1, 2) == 3\n{functions.INSTRUCTION}"


def test_public_test_sets_are_asked_as_the_experts_are_trained(data, tmp_path):
    """From files in the form of each set's own columns on the Hub."""
    rows = {
        "svamp-short": {"ID": "1", "Body": "Tom has 5 pens", "Question": "How many?", "Answer": "5.0"},
        "mbpp-short": {
            "task_id": 11,
            "text": "Add.",
            "code": "def add(a, b): return a + b",
            "test_list": ["assert add(1, 2) == 3", "assert 1"],
        },
        "humaneval-short": {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "def check(f): f()", "entry_point": "f"},
    }
    asked = {}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row | {"split": "test"}) + "\n")
        (benchmark,) = load_benchmarks(read_suite(str(data.SUITES[name])), "test", {}, tmp_path / f"{name}.jsonl")
        (item,) = benchmark.items
        asked[name] = item.prompt
    assert asked["svamp-short"] == f"Tom has 5 pens. How many?\n{module('words').INSTRUCTION}"
    assert asked["mbpp-short"] == f"Add. It must pass:\nassert add(1, 2) == 3\n{module('functions').INSTRUCTION}"
    assert asked["humaneval-short"].endswith(f"\n{module('functions').INSTRUCTION}")
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    (svamp,) = data.public_questions(files)["math"]
    assert svamp.holds(asked["svamp-short"])
