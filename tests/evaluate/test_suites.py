"""Suites and their data: what comes with the program, what a user brings, the Hub, and everything that can be wrong with a file."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from gopd_merge.errors import InputError
from gopd_merge.evaluate.bundled import bundled
from gopd_merge.evaluate.graders import grade, program_of
from gopd_merge.evaluate.items import called_function
from gopd_merge.evaluate.suites import load_benchmarks, read_suite, suite_names, tuning_suite
from gopd_merge.prompts.sources import Prompt

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests" / "data"
NAMES = ["gsm8k", "humaneval", "humanevalplus", "math500", "mbpp", "mbppplus", "open", "own", "svamp"]
GOOD = {"prompt": "1 + 1?", "answer": "2"}


def lines(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").split("\n") if line]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def code_rows(benchmark):
    return [row for row in lines("code_sample.jsonl") if row["id"].startswith(f"{benchmark}/")]


def question_rows(rows):
    """Maths in the form question, answer."""
    return [{"question": row["question"], "answer": row["answer"].split("#### ")[1].replace(",", "")} for row in rows]


def humaneval_on_the_hub(row):
    check = f"\ncheck({row['entry_point']})\n"
    assert row["tests"].endswith(check)
    return {
        "task_id": f"HumanEval/{row['id'].split('/')[1]}",
        "prompt": row["prompt"],
        "canonical_solution": row["canonical_solution"],
        "test": row["tests"].removesuffix(check),
        "entry_point": row["entry_point"],
    }


def mbpp_on_the_hub(row):
    return {
        "task_id": int(row["id"].split("/")[1]),
        "text": row["prompt"],
        "code": row["canonical_solution"].replace("\n", "\r\n"),
        "test_list": row["tests"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def mbppplus_on_the_hub(row):
    return {
        "task_id": int(row["id"].split("/")[1]),
        "prompt": row["prompt"],
        "code": row["canonical_solution"],
        "test_imports": [],
        "test_list": row["tests"],
        "test": "\n".join(row["tests"]) + "\n",
    }


def svamp_in_one_column(row):
    return {"id": f"svamp/{row['ID']}", "question": f"{row['Body']}. {row['Question']}", "answer": row["Answer"].removesuffix(".0")}


MATH500 = [{"problem": "What is $1/2 + 1/3$?", "answer": "\\frac{5}{6}", "unique_id": "test/algebra/1.json", "solution": "…", "level": 1}]
GSM8K, SVAMP, HUMANEVAL, MBPP = lines("gsm8k_sample.jsonl"), lines("svamp_sample.jsonl"), code_rows("humaneval"), code_rows("mbpp")
# suite -> rows in the Hub's columns, and the same questions as a file of ours has them
BOTH = {
    "gsm8k": (GSM8K, question_rows(GSM8K)),
    "svamp": (SVAMP, list(map(svamp_in_one_column, SVAMP))),
    "math500": (MATH500, [{"question": r["problem"], "answer": r["answer"], "id": "math500/test/algebra/1"} for r in MATH500]),
    "humaneval": (list(map(humaneval_on_the_hub, HUMANEVAL)), HUMANEVAL),
    "humanevalplus": (list(map(humaneval_on_the_hub, HUMANEVAL)), HUMANEVAL),
    "mbpp": (list(map(mbpp_on_the_hub, MBPP)), MBPP),
    "mbppplus": (
        list(map(mbppplus_on_the_hub, MBPP)),
        [row | {"tests": "\n".join(row["tests"]) + "\n", "meta": {"base_tests": row["tests"]}} for row in MBPP],
    ),
}


@pytest.fixture
def one(tmp_path):
    """one(suite, rows, split): the benchmark of a suite on rows of a file."""

    def load(suite, rows, split="test", **options):
        suite = read_suite(suite) if isinstance(suite, str) else suite
        (benchmark,) = load_benchmarks(suite, split, {}, write(tmp_path / "rows.jsonl", rows), **options)
        return benchmark

    return load


def test_the_suites_that_come_with_the_program_are_those_of_the_checkout():
    assert suite_names() == NAMES == sorted(path.stem for path in (ROOT / "eval" / "suites").glob("*.yaml"))
    for path in (ROOT / "eval" / "suites").glob("*.yaml"):  # of an installed package, the wheel's
        assert (bundled("suites") / path.name).read_bytes() == path.read_bytes()
    ours = {path.relative_to(ROOT / "eval" / "metrics") for path in (ROOT / "eval" / "metrics").rglob("*") if path.suffix in (".py", ".md")}
    assert ours
    assert all((bundled("metrics") / path).is_file() for path in ours)


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_is_read_and_says_what_it_is(name):
    suite = read_suite(name)
    assert suite.name == name
    assert suite.about.endswith(".")
    assert suite.licence
    assert (suite.domain is None) == (name in ("own", "open"))
    tune = tuning_suite(suite)
    assert tune is not None
    assert "validation" in tune.splits or tune.data.expert
    assert tune.domain == suite.domain


@pytest.mark.parametrize("name", BOTH)
def test_a_suite_takes_the_columns_of_the_hub_and_ours_and_makes_the_same_items_of_them(name, one):
    hub, ours = (one(name, rows) for rows in BOTH[name])
    assert len(hub.items) == len(ours.items) > 0
    assert hub.items == ours.items
    assert hub.version == ours.version
    assert all(item.prompt == item.prompt.strip() for item in hub.items)
    assert all(item.graded_by is not None for item in hub.items)


def test_items_ask_and_grade_what_the_data_set_says(one):
    gsm8k = one("gsm8k", GSM8K).items[0]
    assert gsm8k.answer == "18"
    assert gsm8k.prompt.startswith("Janet’s ducks lay 16 eggs per day.")
    assert "####" in gsm8k.prompt.split("\n")[-1]
    assert "9 * 2" not in gsm8k.prompt  # the solution
    svamp = one("svamp", SVAMP).items[0]
    assert (svamp.id, svamp.answer) == ("svamp/chal-1", "51")
    assert "25 dollars on each pack. How much do you have to pay" in svamp.prompt
    math500 = one("math500", MATH500).items[0]
    assert (math500.id, math500.answer) == ("math500/test/algebra/1", "\\frac{5}{6}")
    assert math500.prompt.endswith("\\boxed{}.")


def test_a_reference_solution_passes_what_a_suite_made_of_its_question_and_another_does_not(one):
    for name, rows in (("humaneval", HUMANEVAL[:3]), ("mbpp", MBPP[:3])):
        for hub_row, row in zip(BOTH[name][0], rows, strict=False):
            (item,) = one(name, [hub_row]).items
            question = Prompt(prompt=item.stub or item.prompt, tests=item.tests, entry_point=item.entry_point)
            assert grade(question, row["canonical_solution"], unsafe_exec=True)
            assert not grade(question, f"def {item.entry_point}(*_):\n    return object()\n", unsafe_exec=True)


def test_a_helper_in_the_code_of_a_prompt_is_there_when_a_whole_function_is_graded(one):
    """HumanEval/38: the tests call encode_cyclic, which is in the prompt only."""
    (item,) = (item for item in one("humaneval", HUMANEVAL).items if item.id == "humaneval/38")
    assert "```python" in item.prompt
    program = program_of(Prompt(prompt=item.stub, tests=item.tests, entry_point=item.entry_point), f"def {item.entry_point}(s):\n    pass")
    assert "def encode_cyclic" in program.source
    program = program_of(
        Prompt(prompt=item.prompt, tests=item.tests, entry_point=item.entry_point), f"def {item.entry_point}(s):\n    pass"
    )
    assert "def encode_cyclic" not in program.source  # the control


def test_without_a_chat_humaneval_is_the_bare_code(one):
    bare = read_suite("humaneval").model_copy(update={"chat": False})
    assert [item.prompt for item in one(bare, HUMANEVAL).items] == [row["prompt"] for row in HUMANEVAL]


def test_mbpp_shows_its_asserts_and_not_what_sets_them_up(one):
    row = mbpp_on_the_hub(MBPP[0]) | {"test_setup_code": "secret = 1\r\n"}
    (item,) = one("mbpp", [row]).items
    assert all(test in item.prompt for test in row["test_list"])
    assert "secret" not in item.prompt
    assert item.tests.startswith("secret = 1\n")
    assert "\r" not in item.tests


@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        ("def f(x): return x", ["assert f(1) == 1"], "f"),
        ("def g(x): return x\ndef f(x): return g(x)", "assert set(f(g(1))) == {1}", "f"),  # in the order of the text
        ("def f(x): return x\ndef g(x): return x", "assert g(1) == 1\nassert f(1) == 1", "g"),
        ("class Pair: pass\ndef f(p): return 1", "assert 1 == f(Pair())", "f"),
        ("def outer():\n    def f(): pass", "assert f() == outer()", "outer"),  # f is not at the top level
    ],
)
def test_the_function_that_tests_call_is_found(code, tests, expected):
    assert called_function(code, tests) == expected


def test_every_entry_point_of_the_mbpp_sample_is_found():
    found = {row["id"]: called_function(row["canonical_solution"], row["tests"]) for row in MBPP}
    assert found == {row["id"]: row["entry_point"] for row in MBPP}


def test_problems_that_no_answer_can_pass_are_left_out(one):
    assert "humaneval/32" in {item.id for item in one("humaneval", HUMANEVAL).items}  # the control
    assert "humanevalplus/32" not in {item.id for item in one("humanevalplus", HUMANEVAL).items}
    plus = {item.id for item in one("mbppplus", BOTH["mbppplus"][0]).items}
    ids = {int(row["id"].split("/")[1]) for row in MBPP}
    assert plus == {f"mbppplus/{number}" for number in ids if 11 <= number <= 510}
    assert len(plus) < len(ids)


def test_no_suite_is_tuned_on_a_question_that_it_tests(one):
    numbers = [row | {"id": f"mbpp/{n}", "split": s} for row in MBPP[:1] for s, a, b in PARTS for n in range(a, b)]
    tuned, tested = ({item.id for item in one("mbpp", numbers, split).items} for split in ("validation", "test"))
    plus = [row | {"meta": {"base_tests": row["tests"]}} for row in numbers]
    plus_tested = {item.id.replace("mbppplus", "mbpp") for item in one("mbppplus", [r | {"split": "test"} for r in plus]).items}
    assert (len(tuned), len(tested)) == (198, 499)  # two and one are skipped
    assert not tuned & (tested | plus_tested)
    assert tested ^ plus_tested == {"mbpp/367", "mbpp/255"}  # each suite skips one of its own


PARTS = (("prompt", 1, 11), ("test", 11, 511), ("validation", 511, 601), ("train", 601, 975))  # MBPP's own


def test_own_prompts_make_a_benchmark_for_each_domain(adapters):
    experts = {name: adapters / f"{name}.lora" for name in ("math", "code")}
    found = {b.domain: b for b in load_benchmarks(read_suite("own"), "test", experts)}
    assert {domain: (b.metric, len(b.items)) for domain, b in found.items()} == {
        "math": ("math_answer", 2500),
        "code": ("function_cases", 2500),
    }
    first = json.loads((adapters / "math.lora" / "prompts" / "test.jsonl").open().readline())
    assert (found["math"].items[0].prompt, found["math"].items[0].answer) == (first["prompt"], first["answer"])
    validation = load_benchmarks(read_suite("own"), "validation", experts)
    assert [len(b.items) for b in validation] == [2000, 2000]
    assert not {item.prompt for item in validation[1].items} & {item.prompt for item in found["math"].items}
    assert {b.metric for b in load_benchmarks(read_suite("open"), "test", experts)} == {"expert_reward"}


def test_an_open_ended_domain_needs_nothing_to_grade_by_and_own_prompts_do(tmp_path):
    write(tmp_path / "prompts.jsonl", [{"prompt": "Write a haiku."}])
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts.jsonl").rename(tmp_path / "prompts" / "test.jsonl")
    (benchmark,) = load_benchmarks(read_suite("open"), "test", {"style": tmp_path})
    assert [(item.id, item.prompt) for item in benchmark.items] == [("open/style/test/0", "Write a haiku.")]
    with pytest.raises(InputError, match=r"test\.jsonl: line 1: has no answer, cases or tests to grade by; "):
        load_benchmarks(read_suite("own"), "test", {"style": tmp_path})
    with pytest.raises(InputError, match=r"validation\.jsonl is missing, .*; name a file of questions with style=FILE\.jsonl"):
        load_benchmarks(read_suite("open"), "validation", {"style": tmp_path})


def test_a_file_of_ones_own_is_divided_by_its_prompts_and_a_fifth_is_for_validation(tmp_path):
    rows = [GOOD | {"prompt": f"{i} + 1?"} for i in range(500)]
    suite = read_suite(f"sums={write(tmp_path / 'mine.jsonl', rows)}")
    assert (suite.domain, suite.name) == ("sums", "mine.jsonl")
    parts = [{item.prompt for b in load_benchmarks(suite, split, {}) for item in b.items} for split in ("test", "validation")]
    assert parts[0] | parts[1] == {row["prompt"] for row in rows}
    assert not parts[0] & parts[1]
    assert 70 < len(parts[1]) < 130
    write(tmp_path / "mine.jsonl", rows[::-1][:250])  # another order, other neighbours: no question changes sides
    again = {item.prompt for b in load_benchmarks(suite, "validation", {}) for item in b.items}
    assert again == parts[1] & {row["prompt"] for row in rows[250:]}


def test_a_file_of_ones_own_may_name_its_splits(tmp_path):
    rows = [GOOD | {"id": i, "split": split} for i, split in enumerate(["test", "validation", "train", "test"])]
    suite = read_suite(f"sums={write(tmp_path / 'mine.jsonl', rows)}")
    ids = {split: [item.id for b in load_benchmarks(suite, split, {}) for item in b.items] for split in ("test", "validation")}
    assert ids == {"test": ["0", "3"], "validation": ["1"]}


def test_a_file_for_a_suite_gives_the_rows_of_the_split_that_the_suite_names(one):
    rows = [row | {"split": "train" if i < 6 else "test"} for i, row in enumerate(GSM8K)]
    assert [item.answer for item in one("gsm8k", rows).items] == [r["answer"].split("#### ")[1] for r in GSM8K[6:]]
    few = read_suite("gsm8k").model_copy(update={"splits": {"test": "test", "validation": "train[1:3]+test[:1]"}})
    expected = [r["answer"].split("#### ")[1] for r in (*GSM8K[1:3], GSM8K[6])]
    assert [item.answer for item in one(few, rows, "validation").items] == expected
    with pytest.raises(InputError, match=r"no rows of the split validation, which is train\[:500\] .*2 of test\); add some"):
        one("gsm8k", rows[6:], "validation")
    with pytest.raises(InputError, match=r"no rows of the split validation, .*8 of none"):
        one("gsm8k", GSM8K, "validation")


def test_every_form_of_file_holds_the_same_items(tmp_path):
    rows = [GOOD | {"id": str(i), "split": "test"} for i in range(3)]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(json.dumps(row).encode() + b"\n") for row in rows))  # joined files
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("id,prompt,answer,tests,split\n" + "".join(f"{i},1 + 1?,2,,test\n" for i in range(3)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes().replace(b"\n", b"\r\n"))
    suites = [read_suite(f"sums={path}") for path in sorted(tmp_path.iterdir())]
    items = {load_benchmarks(suite, "test", {})[0].items for suite in suites}
    assert len(suites) == 6
    assert len(items) == 1
    assert [item.answer for item in items.pop()] == ["2", "2", "2"]


def test_a_limit_takes_the_same_questions_whatever_the_order_of_the_file(one):
    rows = [{"id": f"r{i}", "question": f"{i}?", "answer": str(i)} for i in range(100)]
    suite = read_suite("math500")
    whole, few, fewer = (one(suite, rows, limit=limit) for limit in (None, 10, 5))
    assert [item.id for item in few.items] == [item.id for item in one(suite, rows[::-1], limit=10).items]
    assert few.items[:5] == fewer.items
    assert {item.id for item in few.items} != {item.id for item in whole.items[:10]}
    assert [item.id for item in whole.items] == [f"math500/r{i}" for i in range(100)]
    assert (whole.limit, few.limit) == (None, 10)
    assert whole.version == few.version
    order = sorted((f"math500/r{i}" for i in range(100)), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [item.id for item in few.items] == order[:10]


def test_the_version_is_that_of_what_a_score_depends_on(one):
    suite = read_suite("gsm8k")
    version = one(suite, GSM8K).version
    assert version == one(suite, GSM8K).version
    assert len(version) == 64
    changes = [
        {"about": "other"},
        {"licence": "other"},
        {"splits": {"test": "test[:100%]"}},
        {"tune_on": "mbpp", "splits": {"test": "test"}},
    ]
    for change in changes:
        assert one(suite.model_copy(update=change), GSM8K).version == version, change
    changes = [
        {"temperature": 0.5},
        {"samples": 7},
        {"max_new_tokens": 9},
        {"stop": ("x",)},
        {"chat": False},
        {"system": "Be brief."},
        {"metric_options": {"final": "boxed"}},
        {"name": "other"},
        {"domain": "other"},
        {"item": suite.item.model_copy(update={"prompt": "{{ question }}"})},
    ]
    versions = [one(suite.model_copy(update=change), GSM8K).version for change in changes]
    data = [GSM8K[:-1], GSM8K[::-1], [*GSM8K[:-1], GSM8K[-1] | {"answer": "#### 1"}]]
    versions += [one(suite, rows).version for rows in data]
    assert len({version, *versions}) == 1 + len(changes) + len(data)


def refused(call):
    with pytest.raises(InputError) as caught:
        call()
    (line,) = caught.value.lines
    assert "; " in line
    return line


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b'{"prompt": "1?", "answer": "1"}\n{"prompt": "2?"}\n', "line 2: has no answer to grade by"),
        (b'{"prompt": "1?"}', "line 1: has no answer, cases or tests to grade by"),
        (b'{"prompt": "1?", "answer": null}', "line 1: has no answer, cases or tests to grade by"),
        (b'{"prompt": "1?", "answer": " "}', "line 1: its answer is empty"),
        (b'{"prompt": "1?", "cases": []}', "line 1: its cases is empty"),
        (b'{"prompt": "1?", "tests": "assert f()"}', "line 1: has tests but no entry_point"),
        (b'{"prompt": "1?", "tests": [], "entry_point": "f"}', "line 1: its tests is empty"),
        (b'{"prompt": "1?", "cases": [{"args": 1}]}', "line 1: cases.0.args: Input should be a valid list"),
        (
            b'{"prompt": "1?", "answer": "1"}\n{"prompt": "f?", "cases": [{"args": [1], "expected": 1}]}',
            "line 2: has no answer to grade by",
        ),
        (b'{"answer": "1"}', "line 1: prompt: Field required"),
        (b'{"prompt": " ", "answer": "1"}', "line 1: the prompt is empty"),
        (b'{"prompt": "\\ud800?", "answer": "1"}', "line 1: not text"),
        (
            b'{"prompt": "1?", "answer": "1", "id": "a"}\n\n{"prompt": "2?", "answer": "1", "id": "a"}',
            "line 3: the id a is that of an earlier row",
        ),
        (b'{"prompt": "1?", "answer": "1"}\n{"prompt": "\xff"}', "line 2 is not UTF-8 (byte 0xff)"),
        (b'{"prompt": "1?", "answer": "1"}\n[1]', "line 2: expected an object, found list"),
        (b'{"prompt": "1?"', "line 1 is not JSON"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'{"prompt": "1?", "answer": "1", "split": "tset"}', 'line 1: its "split" is tset'),
        (
            b'{"prompt": "1?", "answer": "1", "split": "test"}\n{"prompt": "1?", "answer": "1"}',
            'line 2 has no "split", other rows have one',
        ),
        (
            b'{"prompt": "1?", "answer": "1", "split": "validation"}',
            'has no rows of the split test (its rows by their "split": 1 of validation)',
        ),
    ],
)
def test_a_bad_line_of_a_file_of_ones_own_is_refused_by_its_number(tmp_path, content, named):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    line = refused(lambda: load_benchmarks(read_suite(f"math={path}"), "test", {}))
    assert line.startswith(f"{path}: ")
    assert named in line


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("none.jsonl", None, "cannot be read (No such file or directory)"),
        ("a.txt", b"1", "its name ends in none of .jsonl"),
        ("a.json", b'{"rows": []}', "expected a list of objects, found dict"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b'[{"prompt": "1?"}, 3]', "row 2: expected an object, found int"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:-20], "not a whole gzip file"),
        ("a.jsonl.gz", b"{}", "not a whole gzip file"),
        ("a.csv", b"prompt,answer\n1?,2\n3?,4,5\n", "line 3 has more fields than the first line has names"),
        ("a.csv", b'prompt,answer\n1?,"2\n', "is not CSV"),
        ("a.csv", b"prompt,answer\n1?,\n", "line 2: has no answer, cases or tests"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, content, named):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = refused(lambda: load_benchmarks(read_suite(f"math={tmp_path / name}"), "test", {}))
    assert line.startswith(f"{tmp_path / name}: ")
    assert named in line


def test_a_row_without_a_column_that_the_suite_needs_is_refused_by_its_number(one):
    line = refused(lambda: one("gsm8k", [GSM8K[0], {"question": "1?", "other": 1}]))
    assert "rows.jsonl: line 2: the column answer is missing or null, its answer needs it; the row has question, other" in line
    line = refused(lambda: one("mbpp", [mbpp_on_the_hub(MBPP[0]) | {"test_list": ["assert other(1)"]}]))
    assert "line 1: its entry_point cannot be made (the tests call no function that the code defines)" in line


SUITE = {
    "name": "mine",
    "about": "Mine.",
    "licence": "mine",
    "domain": "math",
    "data": {"file": "rows.jsonl"},
    "splits": {"test": "test"},
    "item": {"prompt": "{{ q }}", "answer": "{{ a }}"},
}


def test_a_suite_of_ones_own_reads_the_file_beside_it(tmp_path):
    write(tmp_path / "rows.jsonl", [{"q": "1?", "a": 1}])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SUITE))
    (benchmark,) = load_benchmarks(read_suite(str(tmp_path / "mine.yaml")), "test", {})
    assert [(item.id, item.prompt, item.answer) for item in benchmark.items] == [("mine/test/0", "1?", "1")]
    line = refused(lambda: load_benchmarks(benchmark.suite, "validation", {}))
    assert line == "mine: has no validation split; it has test"
    assert tuning_suite(benchmark.suite) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": None}, "name: Field required"),
        ({"data": None}, "data: Field required"),
        ({"tempreature": 1}, "tempreature: Extra inputs are not permitted"),
        ({"samples": 0}, "samples: Input should be greater than or equal to 1"),
        ({"temperature": float("nan")}, "temperature: "),
        ({"metric": "bleu"}, "metric: Input should be 'math_answer'"),
        ({"data": {"hub": "a/b", "file": "c"}}, "data: give one of hub, file and expert"),
        ({"data": {"file": "c", "revision": "main"}}, "data: config and revision belong to hub"),
        ({"data": {"expert": "prompts.jsonl"}}, "data: expert is a path with {split} in it"),
        ({"domain": None}, "the suite: a suite has a domain, or the experts' own data"),
        ({"data": {"hub": "a/b"}, "splits": {}}, "the suite: data from the Hub needs splits"),
        ({"splits": {"train": "train"}}, "splits.train."),
        ({"item": {"prompt": "{{ q", "answer": "1"}}, "item.prompt: not a Jinja template"),
        ({"item": {"prompt": "q", "answer": "1", "cases": "2"}}, "item: give at most one of answer, cases and tests"),
        ({"item": {"prompt": "q", "tests": "2"}}, "item: tests and entry_point belong together"),
        ({"metric_options": {"final": "any"}}, "the suite: metric_options need a metric by name"),
        ({"stop": [""]}, "the suite: an empty stop text"),
        ({"chat": False, "system": "x"}, "the suite: a system text needs chat: true"),
        (
            {"tune_on": "gsm8k", "splits": {"test": "a", "validation": "b"}},
            "the suite: tune_on is for a suite that has no validation split",
        ),
    ],
)
def test_a_suite_with_a_missing_or_wrong_field_is_refused_by_its_name(tmp_path, change, named):
    fields = {name: value for name, value in (SUITE | change).items() if value is not None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    line = refused(lambda: read_suite(str(tmp_path / "mine.yaml")))
    assert line.startswith(f"{tmp_path / 'mine.yaml'}: {named}")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read"),
        (b"a: [", "not valid YAML (line 1)"),
        (b"\xff\xfe\xfa", "not valid YAML"),
        (b"- a", "expected the fields of a suite, found list"),
    ],
)
def test_a_suite_that_is_no_suite_is_refused(tmp_path, content, named):
    path = tmp_path / "mine.yml"
    if content is not None:
        path.write_bytes(content)
    assert named in refused(lambda: read_suite(str(path)))


def test_an_unknown_suite_is_answered_with_the_known_ones():
    for name in ("gsm9k", "=a.jsonl", "math=", "9=a.jsonl", "../own"):
        line = refused(lambda name=name: read_suite(name))
        assert line.startswith(f"{name}: no such suite; use gsm8k, humaneval, ")


def test_a_template_reaches_nothing_but_the_row(one):
    for attack in ("{{ question.__class__.__mro__ }}", "{{ called_function.__globals__ }}", "{{ tags.append(1) }}"):
        suite = read_suite("gsm8k")
        suite = suite.model_copy(update={"item": suite.item.model_copy(update={"prompt": attack})})
        refused(lambda suite=suite: one(suite, [GSM8K[0] | {"tags": []}]))


def test_loading_suites_is_quick_because_libraries_wait_until_they_are_needed():
    program = "import sys, gopd_merge.evaluate.suites; print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


PROGRAM = """
import json, sys
from gopd_merge.errors import InputError
from gopd_merge.evaluate.suites import load_benchmarks, read_suite
name, split, revision = sys.argv[1:]
suite = read_suite(name)
suite = suite.model_copy(update={"data": suite.data.model_copy(update={"revision": revision or None})})
try:
    (benchmark,) = load_benchmarks(suite, split, {})
    print(json.dumps([[item.id, item.answer or item.entry_point] for item in benchmark.items]))
except InputError as error:
    print(json.dumps("|".join(error.lines)))
"""
CARD = "---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"


def data_set(folder, config, splits):
    """A repository of Parquet files as the Hub has them."""
    (folder / config).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in splits)
    (folder / "README.md").write_text(CARD.format(config=config, files=files))
    return folder


@pytest.fixture
def from_hub(tmp_path, HubServer):
    """from_hub(suite, split, revision): what a process that has only a loopback Hub and its cache gets."""
    server = HubServer()

    def load(name, split="test", revision="", **env):
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | env
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name, split, revision],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    load.server = server
    yield load
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_suite_comes_from_the_hub_at_its_revision_and_from_the_cache_without_one(from_hub, tmp_path):
    answers = [row["answer"].split("#### ")[1] for row in GSM8K]
    old = from_hub.server.add("openai/gsm8k", data_set(tmp_path / "hub", "main", {"train": GSM8K[:3], "test": GSM8K[3:5]}))
    new = from_hub.server.add("openai/gsm8k", data_set(tmp_path / "hub", "main", {"train": GSM8K[:3], "test": GSM8K[5:]}))
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)  # a folder of that name is not the repository
    write(tmp_path / "openai" / "gsm8k" / "test.jsonl", [{"question": "?", "answer": "#### 0"}])

    def expected(split, part):
        return [[f"gsm8k/{split}/{i}", answer] for i, answer in enumerate(part)]

    assert from_hub("gsm8k", revision=old) == expected("test", answers[3:5])
    assert from_hub("gsm8k", revision=old, HF_HUB_OFFLINE="1") == expected("test", answers[3:5])
    assert "the cache has openai/gsm8k at " + old in from_hub("gsm8k", revision=new, HF_HUB_OFFLINE="1")  # not taken for the other
    assert from_hub("gsm8k") == expected("test", answers[5:])
    assert from_hub("gsm8k", "validation") == expected("validation", answers[:3])
    before = len(from_hub.server.requests)
    assert from_hub("gsm8k", HF_HUB_OFFLINE="1") == expected("test", answers[5:])
    assert len(from_hub.server.requests) == before
    requests = Counter(request.split("/")[-1] for request in from_hub.server.requests if request.startswith("GET"))
    assert requests["test-00000-of-00001.parquet"] == 2  # one for each commit


@pytest.mark.slow
def test_a_data_set_that_cannot_be_had_is_refused_with_the_way_out(from_hub, tmp_path):
    from_hub.server.add("ChilleD/SVAMP", data_set(tmp_path / "hub", "default", {"train": SVAMP[:2]}))
    line = from_hub("gsm8k", HF_HUB_OFFLINE="1")
    assert line.startswith("gsm8k: its data set openai/gsm8k could not be loaded (")
    assert line.endswith("; connect to the Hub, or name a file: --data gsm8k=FILE")
    assert "doesn't exist" in from_hub("gsm8k")
    assert 'Unknown split "test"' in from_hub("svamp")
    assert from_hub("svamp", "validation") == [["svamp/chal-1", "51"], ["svamp/chal-2", "1"]]  # the control


def test_lists_of_tests_come_through_the_hub(from_hub, tmp_path):
    rows = [row | {"challenge_test_list": ["x"]} for row in map(mbpp_on_the_hub, MBPP[:2])]
    from_hub.server.add("google-research-datasets/mbpp", data_set(tmp_path / "hub", "full", {"test": rows}))
    assert from_hub("mbpp") == [["mbpp/2", "similar_elements"], ["mbpp/3", "is_not_prime"]]
