"""Right answers pass, wrong ones fail, and a hostile one can do nothing."""

import json
import time

import pytest

from gopd_merge.evaluate.graders import final_answer_equals, grade, passes_cases
from gopd_merge.prompts.sources import Case, Prompt

CASES = [Case(args=[[3, 1, 2]], expected=6), Case(args=[[4]], expected=4)]


@pytest.mark.parametrize("text", ["1 + 2 = 3\n#### 3", "#### 3\nso", "#### 3.0", "#### 7\nno: #### 3", "####3", "#### 6/2"])
def test_the_last_marked_number_is_the_answer(text):
    assert final_answer_equals(text, "3")


@pytest.mark.parametrize("text", ["3", "#### 4", "#### 3\n#### 4", "#### ", "#### 3 pens", "", "#### 3/0"])
def test_anything_else_is_wrong(text):
    assert not final_answer_equals(text, "3")


def test_thousands_are_compared_as_numbers():
    assert final_answer_equals("#### 1,234", "1234")


@pytest.mark.parametrize(
    "program",
    [
        "def f(xs):\n    return sum(xs)",
        "def f(v):\n    v = [x for x in v if x > 0]\n    v = sorted(v)[::-1]\n    return sum(v)",
        "  def f(xs): return sum(xs)",
    ],
)
def test_a_right_program_passes(program):
    assert passes_cases(program, CASES)


@pytest.mark.parametrize(
    "program",
    [
        "def f(xs):\n    return 6",
        "def f(xs):\n    return max(xs)",
        "def f(xs):\n    xs = sum(xs)",
        "return sum(xs)",
        "sum",
        "",
        "def f(xs):\n    return sum(xs) == 6 or True",
        "def f(xs):\n    return sum(xs) * 1.0",
        "def f():\n    return 6",
    ],
)
def test_a_wrong_program_fails(program):
    assert not passes_cases(program, CASES)


def test_no_cases_prove_nothing():
    assert not passes_cases("def f(xs):\n    return sum(xs)", [])


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch pwned')",
        "().__class__.__bases__[0].__subclasses__()",
        "open('pwned', 'w')",
        "xs.__class__",
        "(lambda: 6)()",
        "9 ** 9 ** 9 ** 9",
        "xs * 10 ** 9",
        "[0 for a in [1] * 9999 for b in [1] * 9999]",
        "'x' * 10 ** 9",
        "sorted(xs, key=print)",
        "(" * 200 + "1" + ")" * 200,
    ],
)
def test_a_hostile_program_is_wrong_at_once_and_leaves_nothing(expression, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert not passes_cases(f"def f(xs):\n    return {expression}", CASES)
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_every_statement_but_assignment_and_return_is_refused():
    for statement in (
        "import os",
        "while True:\n        pass",
        "for x in xs:\n        pass",
        "del xs",
        "global xs",
        "xs += [1]",
        "a, b = xs",
        "exec('1')",
    ):
        assert not passes_cases(f"def f(xs):\n    {statement}\n    return sum(xs)", CASES)


@pytest.mark.parametrize("domain", ["math", "code"])
def test_the_embedded_prompts_can_be_graded_and_tell_right_from_wrong(adapters, domain):
    lines = (adapters / f"{domain}.lora" / "prompts" / "test.jsonl").read_text().splitlines()
    for line in lines[:300]:
        prompt = Prompt.model_validate(json.loads(line))
        assert not grade(prompt, "#### -1" if domain == "math" else "def f(xs):\n    return -1")
        if domain == "math":
            assert grade(prompt, f"#### {prompt.answer}")
