"""What the sandbox calls right and wrong, how values travel into it and out of it, and what happens where there is none."""

import json
import math
import os
import stat
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gopd_merge.config import make_config
from gopd_merge.errors import InputError
from gopd_merge.evaluate import isolation
from gopd_merge.evaluate.graders import grade, program_of
from gopd_merge.evaluate.sandbox import Limits, Program, run_programs
from gopd_merge.evaluate.wire import DEEPEST, GarbledError, UnsupportedError, decode, encode
from gopd_merge.plan import read_inputs
from gopd_merge.prompts.sources import Prompt

SAMPLE = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "code_sample.jsonl").read_text().split("\n") if line]
hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner) | st.sets(hashable, max_size=4) | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=20,
)
QUESTION = Prompt(prompt="Square x.", entry_point="f", tests=["assert f(2) == 4", "assert f(3) == 9"])


def typed(value):
    """Equal only for values that are equal with all their types: 1, 1.0 and True are three."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(typed(item)) for item in value)
    return type(value), repr(value)


@given(values)
def test_a_value_arrives_as_it_left(value):
    assert typed(decode(encode(value))) == typed(value)


@given(st.binary(max_size=200) | values.map(encode).flatmap(lambda data: st.integers(0, len(data)).map(lambda n: data[:n] + data[n + 1 :])))
def test_any_bytes_are_a_value_or_refused(data):
    try:
        value = decode(data)
    except GarbledError:
        return
    assert typed(decode(encode(value))) == typed(value)


def test_special_numbers_and_half_characters_arrive():
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode([math.inf, -math.inf, "\ud800", 1 << 100000])) == [math.inf, -math.inf, "\ud800", 1 << 100000]
    assert math.copysign(1, decode(encode(-0.0))) == -1


def test_a_subclass_arrives_as_its_plain_type_without_methods():
    class Text(str):
        __slots__ = ()

        def __eq__(self, other):
            return True

        __hash__ = str.__hash__

    assert typed(decode(encode([Text("a"), OrderedDict(a=1), Counter("a")]))) == typed(["a", {"a": 1}, {"a": 1}])


@pytest.mark.parametrize("value", [object(), len, (x for x in ()), range(3), int, b"".join, NotImplemented], ids=lambda v: type(v).__name__)
def test_anything_else_is_refused(value):
    with pytest.raises(UnsupportedError):
        encode([value])


def test_nesting_has_an_end_on_both_sides():
    deepest = []
    for _ in range(DEEPEST):
        deepest = [deepest]
    assert decode(encode(deepest)) == deepest
    with pytest.raises(UnsupportedError):
        encode([deepest])
    with pytest.raises(GarbledError):
        decode(b"l\1\0\0\0" + encode(deepest))


@pytest.mark.parametrize("row", SAMPLE, ids=[row["id"] for row in SAMPLE])
def test_a_sample_of_canonical_solutions_passes_and_stubs_do_not(row):
    right = program_of(Prompt.model_validate(row), row["canonical_solution"])
    stubs = [f"def {right.entry_point}(*a):\n    return {value}" for value in ("object()", "None", "a")]
    wrong = [Program(stub, right.entry_point, right.tests, right.prelude) for stub in stubs]
    verdicts = run_programs([right, *wrong])
    assert [v.passed for v in verdicts] == [True, False, False, False], verdicts


def test_helpers_of_the_prompt_are_the_benchmarks_own_and_not_the_models():
    """HumanEval/32: with a `poly` of its own that is always 0, every answer would be a root."""
    row = next(row for row in SAMPLE if row["id"] == "humaneval/32")
    question, forged = Prompt.model_validate(row), "def poly(xs, x):\n    return 0\n\ndef find_zero(xs):\n    return 1.5\n"
    shared = {}
    exec(f"{question.prompt}\n    pass\n{forged}\n{question.tests}", shared)  # the control: it passes where they share a process
    assert not grade(question, forged)
    assert grade(question, row["canonical_solution"])


@pytest.mark.parametrize(
    "response",
    [
        "def f(x):\n    return x * x",
        "Here:\n```python\ndef f(x):\n    return x * x\n```\nDone.",
        "```py\nimport math\n```\nthen\n```\ndef g(x):\n    return x * x\n\ndef f(x): return g(x)\n```",
        "```python\ndef f(x):\n    return x * x\n",
    ],
)
def test_the_function_is_found_in_an_answer(response):
    assert grade(QUESTION, response)


@pytest.mark.parametrize(
    "response", ["", "4", "def g(x):\n    return x * x", "def f(x):\n    return 4", "```\nreturn x * x\n```", "def f(x:"]
)
def test_an_answer_without_a_right_function_is_wrong(response):
    assert not grade(QUESTION, response)


def test_a_body_goes_on_where_the_prompt_ends_and_ends_where_the_model_turns_to_something_else():
    question = Prompt(prompt='def f(x):\n    """Square x."""\n', entry_point="f", tests="assert f(2) == 4")
    for response in ("    return x * x\n", "    return x * x\n\ndef broken(:\n", "    y = x\n\n    return y * x\nprint(("):
        assert grade(question, response)
    assert not grade(question, "    return x + 3\n")


def test_tests_may_expect_an_exception_and_have_numpy():
    source = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return [x, x]"
    expects = "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'negative'\nelse:\n    assert False"
    arrays = "import numpy as np\nassert np.allclose(f(2), np.array([2, 2]))"
    assert [v.reason for v in run_programs([Program(source, "f", tests) for tests in (expects, arrays)])] == ["passed", "passed"]
    assert not run_programs([Program("def f(x): return x", "f", expects)])[0].passed


def test_the_reason_says_what_went_wrong():
    sources = {
        "def f(x): return 5": "wrong",
        "def f(x): return x.y": "error",
        "def f(x": "error",
        "def g(x): return 4": "error",
        "def f(x): return iter([4])": "unsupported",
        "def f(x):\n    while True: pass": "timeout",
        "import ctypes\ndef f(x): ctypes.string_at(0)": "crashed",
    }
    verdicts = run_programs([Program(source, "f", "assert f(2) == 4") for source in sources], Limits(seconds=3))
    assert [v.reason for v in verdicts] == list(sources.values())
    assert "AttributeError: 'int' object has no attribute 'y'" in verdicts[1].message
    assert "defines no function f" in verdicts[3].message
    assert "list_iterator" in verdicts[4].message


def test_the_order_of_the_verdicts_is_that_of_the_programs():
    programs = [Program(f"import time\ndef f():\n    time.sleep({0.3 - i / 20})\n    return {i % 2}", "f", "assert f()") for i in range(6)]
    assert [v.passed for v in run_programs(programs, workers=6)] == [False, True] * 3
    assert run_programs([]) == []


@pytest.fixture
def without_bubblewrap(monkeypatch, tmp_path):
    """Puts a `bwrap` of one's own first on the path, or none: without_bubblewrap(script)."""

    def replace(script=None):
        if script:
            (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "bwrap").chmod(0o700 | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path))
        isolation.check_isolation.cache_clear()

    yield replace
    isolation.check_isolation.cache_clear()


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (None, "was not found"),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions to create new namespace"),
    ],
)
def test_without_a_sandbox_programs_are_refused_in_one_line_unless_that_is_asked_for(without_bubblewrap, script, found):
    without_bubblewrap(script)
    program = Program("def f(x): return x * x", "f", "assert f(2) == 4")
    with pytest.raises(InputError) as refused:
        run_programs([program])
    assert found in str(refused.value)
    assert "apt-get install bubblewrap" in str(refused.value)
    assert "--unsafe-exec" in str(refused.value)
    assert len(refused.value.lines) == 1
    assert run_programs([program], unsafe=True)[0].passed


def test_a_merge_that_needs_the_sandbox_is_refused_before_anything_loads(without_bubblewrap, math_copy):
    test_prompts = math_copy / "prompts" / "test.jsonl"
    config = make_config({"experts": [str(math_copy)]})
    without_bubblewrap()
    read_inputs(config)  # the embedded prompts need none
    test_prompts.write_text(json.dumps({"prompt": "p", "tests": "assert f(2) == 4", "entry_point": "f"}) + "\n")
    with pytest.raises(InputError, match="bubblewrap"):
        read_inputs(config)
    read_inputs(config.model_copy(update={"unsafe_exec": True}))
    read_inputs(config.model_copy(update={"eval": False}))


def test_the_filter_of_system_calls_is_one_that_every_known_processor_accepts():
    for machine in isolation.DENIED:
        code = isolation.seccomp_filter(machine)
        assert len(code) % 8 == 0
        assert code[-8:] == b"\x06\0\0\0\0\0\xff\x7f"  # what is not refused is allowed
    assert isolation.seccomp_filter("pdp11") is None
    assert os.uname().machine in isolation.DENIED, "add this processor's system calls to DENIED"
