"""Rewards are what an independent count says they are; whatever a user's own function does, it is 0, counted and named."""

import re
import time

import pytest

from gopd_merge.errors import GopdError, InputError
from gopd_merge.training.isolated import Isolated
from gopd_merge.training.reading import Example
from gopd_merge.training.rewards import Rewards, constant, graded

OWN = """
import os, sys, time
print("printed when it is imported")

def reward(prompt, response, weight=1):
    print("printed")
    if response == "raise":
        raise ValueError("no such\\nword")
    if response == "hang":
        while True:
            pass
    if response == "crash":
        os._exit(7)
    if response == "exit":
        sys.exit()
    return {"nan": float("nan"), "none": None, "text": "3", "true": True}.get(response, weight * len(response))
"""


@pytest.fixture
def own(tmp_path, config):
    """The rewards of a function of the user's."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    rewards = Rewards(config(tmp_path / "a.lora", "data.jsonl", reward=f"{file}:reward", reward_seconds=0.5))
    yield rewards
    rewards.close()


def test_a_failure_gives_nothing_is_counted_by_kind_and_does_not_touch_the_others(own):
    texts = ["abc", "raise", "hang", "ab", "crash", "exit", "nan", "none", "text", "true", "abcd", "raise"]
    found = own.of([Example(prompt="p", weight=2)] * len(texts), texts)
    assert found == [6, 0, 0, 4, 0, 0, 0, 0, 0, 1, 8, 0]
    assert own.failures == {
        "raised ValueError in line 8: no such word": 2,
        "took longer than 0.5 s": 1,
        "ended its process with exit code 7": 1,
        "raised SystemExit in line 15": 1,
        "returned nan, not a finite number": 1,
        "returned NoneType, not a number": 1,
        "returned str, not a number": 1,
    }
    assert own.calls == 12


def test_a_batch_of_which_every_call_fails_ends_the_run_and_a_function_that_hangs_does_so_early(own):
    with pytest.raises(GopdError, match=r"all of 2 calls in a row failed: raised ValueError.*correct it"):
        own.of([Example(prompt="p")] * 2, ["raise"] * 2)
    began = time.monotonic()
    with pytest.raises(GopdError, match=r"took longer than 0\.5 s \(8 times\)"):
        own.of([Example(prompt="p")] * 200, ["hang"] * 200)
    assert time.monotonic() - began < 20
    assert own.of([Example(prompt="p")] * 2, ["raise", "ok"]) == [0, 2]  # the control: one that does not fail is enough


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("def other(response): return 1", "reward", "has no function reward"),
        ("import nothing_of_this_name", "reward", "ModuleNotFoundError in line 1"),
        ("def reward(response)", "reward", "SyntaxError"),
        ("import os; os._exit(3)", "reward", "ended its process"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_refused_before_anything_runs(tmp_path, config, source, name, said):
    file = tmp_path / "bad.py"
    file.write_text(source)
    with pytest.raises(InputError, match=re.escape(said)):
        Rewards(config(tmp_path / "a.lora", "data.jsonl", reward=f"{file}:{name}"))
    with pytest.raises(InputError, match="missing"):
        Rewards(config(tmp_path / "a.lora", "data.jsonl", reward=f"{tmp_path / 'none.py'}:reward"))


def test_a_pattern_that_takes_for_ever_on_one_text_is_zero_there_and_works_on_the_next():
    worker = Isolated("regex", r"^(a+)+$|42", "", 0.5)
    try:
        found = [worker.call({"response": text}) for text in ("aaa", "a" * 40 + "b", "it is 42", "it is 41")]
    finally:
        worker.close()
    assert [outcome.reward for outcome in found] == [1, 0, 1, 0]
    assert [outcome.failure for outcome in found] == [None, "took longer than 0.5 s", None, None]


def test_verdicts_are_those_of_an_independent_reading():
    texts = ["1 + 1 = 2\n#### 2", "#### 3", "2", "#### 2.0", "def f(x):\n    return x + 1", "def f(x):\n    return x"]
    cases = [{"args": [1], "expected": 2}, {"args": [5], "expected": 6}]
    examples = [Example(prompt="p", answer="2")] * 4 + [Example(prompt="p", cases=cases)] * 2

    def independent(example, text):
        if example.answer is not None:
            marked = re.search(r"####\s*(\S+)", text)
            return float(marked is not None and float(marked[1]) == float(example.answer))
        names = {}
        exec(text, names)
        return float(all(names["f"](*case.args) == case.expected for case in example.cases))

    expected = [independent(e, t) for e, t in zip(examples, texts, strict=True)]
    assert graded(examples, texts, "####", False) == expected == [1, 0, 0, 1, 1, 0]


def test_code_with_tests_is_run_in_the_sandbox():
    question = Example(prompt="Write f.", tests="assert f(2) == 4", entry_point="f")
    assert graded([question] * 2, ["def f(x):\n    return 2 * x", "def f(x):\n    return x"], "any", False) == [1, 0]


def test_rewards_are_constant_only_if_all_are_alike():
    assert constant([0.0, 0.0]) == 0
    assert constant([0.1 + 0.2, 0.3]) == pytest.approx(0.3)
    assert constant([0.0, 0.0, 1.0]) is None
    assert constant([]) is None
