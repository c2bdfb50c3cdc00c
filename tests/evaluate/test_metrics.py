"""Every metric is one that `evaluate` loads, from this package alone, and grades as its references say."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import pytest

from gopd_merge.errors import InputError
from gopd_merge.evaluate.bundled import bundled
from gopd_merge.evaluate.metrics import grade_samples, load_metric, pass_at_k, reference
from gopd_merge.prompts.sources import Prompt

DATA = Path(__file__).parent.parent / "data"
CASES = [{"args": [[3, 1, 2]], "expected": 6}, {"args": [[4]], "expected": 4}]
RIGHT_AND_WRONG = {
    "math_answer": ({"answer": r"\frac{1}{2}"}, r"It is $\boxed{0.5}$.", r"It is $\boxed{2}$."),
    "function_cases": ({"cases": CASES}, "def f(xs):\n    return sum(xs)", "def f(xs):\n    return max(xs)"),
    "code_tests": (
        {"tests": ["assert f(2) == 4"], "entry_point": "f", "prompt": "Square x."},
        "```python\ndef f(x):\n    return x * x\n```",
        "def f(x):\n    return x",
    ),
}
# Counts what looks for the network, and lets none of it through.
WITHOUT_NETWORK = """
import socket, sys
attempts = []
def refuse(*arguments, **options):
    attempts.append(arguments[:2])
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import json, evaluate
from gopd_merge.evaluate.metrics import load_metric
references = json.loads(sys.argv[1])
"""
LOAD_ALL = """
for name, (fields, right, wrong) in references.items():
    metric = load_metric(name)
    options = {"unsafe": True} if name == "code_tests" else {}
    print(metric.compute(predictions=[[right, wrong]], references=[json.dumps(fields)], **options)["correct"])
"""
LOAD_FROM_FOLDERS = LOAD_ALL.replace("load_metric(name)", "evaluate.load(sys.argv[2] + '/' + name)")


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", code, json.dumps(RIGHT_AND_WRONG), str(bundled("metrics"))]
    return subprocess.run(command, env=inherited | env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", sorted(path.name for path in bundled("metrics").iterdir() if path.is_dir() and path.name[0] not in "_."))
def test_a_metric_loads_from_its_folder_and_tells_right_from_wrong(name):
    fields, right, wrong = RIGHT_AND_WRONG[name]
    metric = evaluate.load(str(bundled("metrics") / name), keep_in_memory=True)
    found = metric.compute(predictions=[[right, wrong, right, ""], [wrong, wrong]], references=[json.dumps(fields)] * 2, k=(1, 2))
    assert found.pop("correct") == [[True, False, True, False], [False, False]]
    # Of the six pairs of the first question one has no right answer; the second question has none at all.
    assert found == pytest.approx({"pass@1": (2 / 4 + 0) / 2, "pass@2": (5 / 6 + 0) / 2})


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["0", "1"])
def test_no_metric_looks_for_the_network(offline, tmp_path):
    code = WITHOUT_NETWORK + LOAD_ALL + LOAD_FROM_FOLDERS + "print(attempts)"
    done = run_python(code, HF_HUB_OFFLINE=offline, HF_HOME=str(tmp_path))
    assert done.stdout.splitlines() == ["[[True, False]]"] * 6 + ["[]"], done.stderr
    assert list(tmp_path.rglob("*.arrow")) == []  # nor does it leave the answers behind


@pytest.mark.slow
def test_a_metric_of_the_hub_would_have_been_noticed(tmp_path):
    code = "try:\n    evaluate.load('accuracy')\nexcept Exception as error:\n    print(type(error).__name__)\nprint(len(attempts) > 0)"
    assert run_python(WITHOUT_NETWORK + code, HF_HOME=str(tmp_path)).stdout.splitlines()[-1] == "True"


@pytest.mark.slow
def test_metrics_load_where_the_home_folder_cannot_be_written():
    nowhere = {"HF_HOME": "/dev/null/home", "HOME": "/dev/null"}
    done = run_python(WITHOUT_NETWORK + LOAD_ALL, **nowhere)
    assert done.stdout.splitlines() == ["[[True, False]]"] * 3, done.stderr
    assert "Not a directory" in run_python(WITHOUT_NETWORK + LOAD_FROM_FOLDERS, **nowhere).stderr  # evaluate alone cannot


@pytest.mark.slow
def test_two_processes_can_load_a_metric_for_the_first_time_at_once(tmp_path):
    code = WITHOUT_NETWORK + LOAD_ALL
    env = os.environ | {"HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, json.dumps(RIGHT_AND_WRONG)]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].splitlines() for process in both] == [["[[True, False]]"] * 3] * 2


def test_torch_waits_until_a_metric_is_loaded():
    code = "import sys, gopd_merge.evaluate.metrics as m; print('torch' in sys.modules, 'sympy' in sys.modules)"
    assert run_python(code).stdout.split() == ["False", "False"]
    assert "torch" in sys.modules  # evaluate has been imported here


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 1), (4, 3), (5, 5), (6, 2)])
def test_pass_at_k_is_the_share_of_choices_of_k_that_hold_a_right_one(n, k):
    for c in range(n + 1):
        answers = [True] * c + [False] * (n - c)
        choices = list(itertools.combinations(answers, k))
        assert pass_at_k([c, 0, n], [n, n, n], k) == pytest.approx([sum(map(any, choices)) / len(choices), 0, 1])


@pytest.mark.parametrize("k", [0, 4])
def test_more_samples_than_there_are_cannot_be_asked_for(k):
    with pytest.raises(InputError, match=rf"pass@{k}: the fewest samples of a question are 3"):
        pass_at_k([1, 1], [5, 3], k)
    assert pass_at_k([1, 1], [5, 3], 3) == pytest.approx([0.6, 1.0])


def test_questions_are_asked_for_where_there_are_none():
    with pytest.raises(InputError, match="0 questions"):
        load_metric("math_answer").compute(predictions=[], references=[])


def test_embedded_programs_are_right_where_python_says_so(adapters):
    rows = (adapters / "code.lora" / "prompts" / "test.jsonl").read_text().splitlines()[:50]
    questions = [Prompt.model_validate_json(row) for row in rows]
    texts = [["def f(xs):\n    return sorted(xs)", "def f(xs):\n    return [x for x in xs if x % 2 == 0]"] for _ in questions]
    expected = [
        [_expected(case_list, f) for f in (sorted, lambda xs: [x for x in xs if x % 2 == 0])] for case_list in map(_cases, questions)
    ]
    assert grade_samples(load_metric("function_cases"), questions, texts) == expected
    assert any(map(any, expected))


def _cases(question):
    return [(case.args, case.expected) for case in question.cases]


def _expected(cases, function):
    return all(function(*arguments) == expected for arguments, expected in cases)


def test_programs_of_public_benchmarks_pass_through_their_metric_and_stubs_do_not():
    rows = [json.loads(line) for line in (DATA / "code_sample.jsonl").read_text().split("\n") if line]
    texts = [[row["canonical_solution"], f"def {row['entry_point']}(*a):\n    return object()"] for row in rows]
    found = grade_samples(load_metric("code_tests"), [Prompt.model_validate(row) for row in rows], texts, seconds=20.0)
    assert found == [[True, False]] * len(rows)


def test_whatever_a_model_writes_is_graded_and_quickly():
    texts = ["", "\ud800 #### 3", "\udcff", "\x00", "#### 3" + "0" * 100_000, "a" * 10_000_000 + "\n#### 3", "\\boxed{" * 100_000]
    started = time.monotonic()
    found = grade_samples(load_metric("math_answer"), [Prompt(prompt="", answer="3")], [texts])
    assert found == [[False, True, False, False, False, True, False]]
    assert time.monotonic() - started < 10
    with pytest.raises(UnicodeEncodeError):  # what evaluate does with the second by itself
        load_metric("math_answer").compute(predictions=[texts], references=['{"answer": "3"}'])


def test_a_reference_holds_what_its_metric_grades_by_and_nothing_else():
    assert json.loads(reference(Prompt(prompt="1 + 2?", answer="3"))) == {"answer": "3"}
    assert json.loads(reference(Prompt(prompt="Sum.", cases=CASES))) == {"cases": CASES}
    tests = {"prompt": "Square x.", "tests": ["assert f(2) == 4"], "entry_point": "f"}
    assert json.loads(reference(Prompt.model_validate(tests))) == tests


def test_a_metric_of_ones_own_loads_from_its_folder_and_an_unknown_one_is_refused(tmp_path, monkeypatch):
    own = tmp_path / "own_metric"
    own.mkdir()
    source = (bundled("metrics") / "function_cases" / "function_cases.py").read_text()
    (own / "own_metric.py").write_text(source.replace("FunctionCases", "OwnMetric"))
    assert load_metric(str(own)).name == "own_metric"
    monkeypatch.chdir(tmp_path)
    assert load_metric("./own_metric").name == "own_metric"
    for name in ("accuracy", "own_metric", str(tmp_path)):
        with pytest.raises(InputError, match="name one of code_tests, function_cases, math_answer, or the folder of your own"):
            load_metric(name)
