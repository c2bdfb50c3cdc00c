"""Right answers pass, wrong ones fail, and a hostile one can do nothing."""

import json
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import math_verify
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gopd_merge.errors import GopdError
from gopd_merge.evaluate import formulas
from gopd_merge.evaluate.final_answer import final_answer, plain_number
from gopd_merge.evaluate.graders import answers_equal, grade, passes_cases
from gopd_merge.prompts.sources import Case, Prompt

SAMPLE = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "math_sample.jsonl").read_text().split("\n") if line]
FOR_EVER = "9^{9^{9^{9}}}"
EQUAL = [  # (answer, given)
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac{1}{3}", "0.333333"),
    (r"\dfrac{3}{2}", r"1\frac{1}{2}"),
    (r"-\frac{2}{3}", r"\frac{-2}{3}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("1000", "10^3"),
    ("12,345", r"12{,}345"),
    (r"[0, \frac{1}{2})", "[0, 0.5)"),
    (r"(-\infty, 3)", "x < 3"),
    (r"(-1, 0) \cup (2, 5)", r"(2,5)\cup(-1,0)"),
    (r"\{1, 2, 3\}", r"\{3, 1, 2\}"),
    ("1, -2", "-2, 1"),
    (r"\left( 4, \frac{\pi}{3} \right)", r"(4, \pi/3)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&\frac{8}{2}\end{bmatrix}"),
    (r"2 \pm \sqrt{5}", r"2+\sqrt5, 2-\sqrt5"),
    (r"35\%", r"0.35"),
    (r"35\%", "35"),
    (r"45^\circ", "45"),
    (r"7 \text{ cm}", "7"),
    ("7", r"7 \text{ pens}"),
    ("7", "7 pens."),
    (r"\$18", "18"),
    (r"\text{Thursday}", "Thursday"),
    (r"\text{(B)}", "B"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("y = 3x - 2", "y=-2+3x"),
    ("3 - 4i", "-4i+3"),
    ("x = 5", "5"),
    ("1011_2", "1011_{2}"),
]
DIFFERENT = [
    (r"\frac{1}{2}", "2"),
    (r"\frac{1}{3}", "0.33"),
    (r"\frac{1}{2}", "0.05"),
    (r"[0, 1)", "(0, 1)"),
    (r"[0, 1)", "[0, 1]"),
    (r"(-\infty, 3)", r"x \le 3"),
    (r"\{1, 2, 3\}", r"\{1, 2\}"),
    ("1, -2", "1, 2"),
    ("(1, 2)", "(2, 1)"),
    (r"\left( \frac{2}{5}, \frac{1}{2} \right)", r"\left( \frac{2}{5}, \frac{1}{2} \right) + 1"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
    (r"2 \pm \sqrt{5}", r"2+\sqrt5"),
    (r"35\%", "3.5"),
    (r"\text{Thursday}", r"\text{Friday}"),
    (r"\text{(B)}", r"\text{(C)}"),
    ("x^2 + 2x + 1", "(x-1)^2"),
    ("3 - 4i", "3 + 4i"),
    ("10", "10 or 11"),
    ("5", "x^5"),
    ("", ""),
    (r"\frac{", r"\frac{1}{2}"),
]

CASES = [Case(args=[[3, 1, 2]], expected=6), Case(args=[[4]], expected=4)]


@pytest.mark.parametrize("text", ["1 + 2 = 3\n#### 3", "#### 3\nso", "#### 3.0", "#### 7\nno: #### 3", "####3", "#### 6/2"])
def test_the_last_marked_number_is_the_answer(text):
    assert answers_equal([text], ["3"], "####") == [True]


@pytest.mark.parametrize("text", ["3", "#### 4", "#### 3\n#### 4", "#### ", "#### 3 or 4", "", "#### 3/0"])
def test_anything_else_is_wrong(text):
    assert answers_equal([text], ["3"], "####") == [False]


def test_thousands_are_compared_as_numbers():
    assert answers_equal(["#### 1,234"], ["1234"]) == [True]


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


@pytest.mark.parametrize(
    ("text", "final", "expected"),
    [
        (r"\boxed{3}, no, \boxed{4}", "boxed", "4"),
        (r"\boxed{\frac{1}{2}}.", "boxed", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", "boxed", r"\{1, 2\}"),
        (r"\fbox {7} and so on", "boxed", "7"),
        (r"\boxed{3}, no, \boxed{4", "boxed", None),
        (r"\boxed 3", "boxed", None),
        ("#### 3", "boxed", None),
        ("Answer: 3 m\nSo long", "Answer:", "3 m"),
        (r"\boxed{3}", "Answer:", None),
        ("#### 1. Add\n" + r"\boxed{3}", "any", "3"),
        (r"\boxed{3} #### 4", "any", "4"),
        ("3", "any", None),
        ("", "any", None),
    ],
)
def test_the_final_answer_is_found_where_the_benchmark_says(text, final, expected):
    assert final_answer(text, final) == expected


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_a_plain_number_is_read_exactly(digits, places):
    text = f"{digits / 10**places:,.{places}f}" if places == 0 else f"{digits // 10**places:,}.{digits % 10**places:0{places}}"
    whole = Fraction(digits // 10**places)  # what stands before the point has its own sign
    part = Fraction(digits % 10**places, 10**places)
    assert plain_number(text) == (whole - part if text.startswith("-") else whole + part)


@pytest.mark.parametrize("text", ["", "-", ".", "1,23", "1 2", "3/0", "1e9", "1e9999999999", "9" * 100, "٣", "nan", "x"])
def test_what_is_no_plain_number_is_left_to_the_formulas(text):
    assert plain_number(text) is None


def test_equal_formulas_are_right_and_others_wrong():
    for expected, pairs in ((True, EQUAL), (False, DIFFERENT)):
        answers = [answer for answer, _ in pairs]
        for way in (r"So it is $\boxed{%s}$.", "#### %s"):
            found = answers_equal([way % given for _, given in pairs], answers)
            assert [pair for pair, verdict in zip(pairs, found, strict=True) if verdict != expected] == []


def test_every_answer_of_the_sample_is_right_in_its_own_words_and_no_other_answer_is():
    answers = [row["answer"] for row in SAMPLE]
    for way in ("{solution}\n#### {answer}", r"Thus $\boxed{{{answer}}}$", "The answer is {answer}.", r"\boxed{{{answer}.0}}"):
        assert all(answers_equal([way.format_map({"solution": ""} | row) for row in SAMPLE], answers))
    others = [next(a for a in answers[i:] + answers if a != answer) for i, answer in enumerate(answers)]
    for way in ("#### {}", r"\boxed{{{}}}", "The answer is {}."):
        assert not any(answers_equal([way.format(other) for other in others], answers))
        assert not any(answers_equal([way.format(f"{answer}+1") for answer in answers], answers))


def test_a_marker_that_must_be_there_is_insisted_on():
    texts = ["The answer is 3.", r"\boxed{3}", "#### 3"]
    assert answers_equal(texts, ["3"] * 3, "####") == [False, False, True]
    assert answers_equal(texts, ["3"] * 3, "boxed") == [False, True, False]
    assert answers_equal(texts, ["3"] * 3) == [True] * 3


@pytest.mark.parametrize(
    "formula",
    [
        "9**9**9**9",
        FOR_EVER,
        r"10^{10^{10}}!",
        r"(10^{10})!",
        r"\sum_{n=1}^{10^{12}} n",
        r"(x+y)^{10000}",
        "1e9999999999",
        r"\frac{" * 5000 + "1" + "}{2}" * 5000,
        r"\frac{" * 30 + "1" + "}{2}" * 30,
        "(" * 190 + "1" + ")" * 190,
        r"\boxed{" * 100_000,
        "9" * 100_000,
        "$" * 100_000,
        "x" * 10_000_000,
        "\ud800",
        "\x00",
    ],
)
def test_a_hostile_formula_is_wrong_in_time_and_spoils_no_other(formula):
    texts = [r"\boxed{\frac{2}{14}}", rf"\boxed{{{formula}}}", f"#### {formula}", formula, r"\boxed{\frac{3}{21}}"]
    started = time.monotonic()
    assert answers_equal(texts, [r"\frac{1}{7}"] * 5, seconds=1.0) == [True, False, False, False, True]
    assert time.monotonic() - started < 12  # three comparisons of a second, and four starts


def test_without_the_timer_the_comparison_would_not_end():
    code = f"from gopd_merge.evaluate.formula_worker import equal; equal({FOR_EVER!r}, '18', False)"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=5, check=False)


def test_plain_numbers_are_compared_at_once_and_start_no_process(monkeypatch):
    monkeypatch.setattr(formulas, "WORKER", Path("missing.py"))
    started = time.monotonic()
    assert all(answers_equal([f"#### {i:,}.0" for i in range(10_000)], [str(i) for i in range(10_000)]))
    assert not any(answers_equal([rf"\boxed{{{i + 1}}}" for i in range(10_000)], [str(i) for i in range(10_000)]))
    assert time.monotonic() - started < 2
    with pytest.raises(GopdError, match="does not start"):  # a formula starts one
        answers_equal([r"\boxed{x}"], ["y"])


def test_formulas_can_be_compared_outside_the_main_thread():
    found = []

    def compare():
        found.extend(answers_equal([r"\boxed{\sqrt{4}}"], ["2"]))
        with pytest.raises(ValueError, match="threaded"):  # what math-verify does there by itself
            math_verify.parse("$x$")
        found.append("both")

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join(30)
    assert found == [True, "both"]


def test_an_interrupt_does_not_wait_for_the_other_comparisons():
    code = f"""
from gopd_merge.evaluate.formulas import Pair, equal_formulas
print("started", flush=True)
equal_formulas([Pair("{FOR_EVER} + %d" % i, "18") for i in range(200)], seconds=2, workers=2)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=90)[1]  # of the 200 seconds that it would take


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from gopd_merge.evaluate.graders import answers_equal\nprint('started')\nprint(answers_equal([r'#### \\sqrt4'], ['2']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n") == ["started", "[True]", ""]
