"""Canonical answers of public benchmarks must be graded right, and wrong ones wrong. Writes eval/results/check_graders.json.

python eval/check_graders.py FOLDER [--only math]

The folder holds humaneval_test.jsonl.gz, gsm8k_test.jsonl.gz and so on, at any depth. Code has id, prompt, entry_point, tests and
canonical_solution, and runs in the sandbox. Mathematics has id, answer and solution, and is graded by the metric math_answer.
"""

import argparse
import gzip
import json
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch

from gopd_merge.artefacts import environment
from gopd_merge.evaluate.final_answer import plain_number
from gopd_merge.evaluate.graders import program_of
from gopd_merge.evaluate.metrics import grade_samples, load_metric
from gopd_merge.evaluate.sandbox import Limits, run_programs
from gopd_merge.prompts.sources import Prompt

CODE = ("humaneval_test", "humanevalplus_test", "mbpp_sanitized", "mbpp_full", "mbppplus")
MATHEMATICS = ("gsm8k_test", "svamp_test", "math500_test")
STUBS = {"object()": "return object()", "None": "return None", "its arguments": "return a", "raise": "raise ValueError"}


def read(folder: Path, name: str) -> list[dict]:
    (path,) = folder.rglob(f"{name}.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf8") as lines:
        return [json.loads(line) for line in lines]


def check_programs(rows: list[dict], limits: Limits, workers: int, unsafe: bool) -> dict:
    programs = [program_of(Prompt.model_validate(row), row["canonical_solution"]) for row in rows]
    started = time.perf_counter()
    verdicts = run_programs(programs, limits, workers, unsafe)
    wall = time.perf_counter() - started
    failed = {row["id"]: f"{v.reason}: {v.message}" for row, v in zip(rows, verdicts, strict=True) if not v.passed}
    stubs = {}
    for stub, body in STUBS.items():
        wrong = [replace(p, source=f"def {p.entry_point}(*a, **k):\n    {body}\n") for p in programs]
        passed = [row["id"] for row, v in zip(rows, run_programs(wrong, limits, workers, unsafe), strict=True) if v.passed]
        stubs[stub] = passed
    return {
        "problems": len(rows),
        "pass": len(rows) - len(failed),
        "reasons": dict(Counter(v.reason for v in verdicts)),
        "fail_in_plain_python_too": [row["id"] for row in rows if not row["meta"].get("reference_passes", True)],
        "seconds": round(wall, 1),
        "failed": failed,
        "stubs_that_pass": stubs,
    }


def right_texts(row: dict) -> dict[str, str]:
    """Texts that give the canonical answer, by the way in which they do."""
    answer = row["answer"]
    texts = {
        "in a box": f"So the answer is $\\boxed{{{answer}}}$.",
        "after ####": f"That is all.\n#### {answer}",
        "in a sentence": f"The final answer is ${answer}$.",
    }
    if row["solution"]:
        texts["its own solution"] = row["solution"] if "\\boxed" in row["solution"] else f"{row['solution']}\n#### {answer}"
    rewritten = re.sub(r"\\left(?![a-z])|\\right(?![a-z])", "", answer).replace("\\frac", "\\dfrac").replace("+", " + ")
    if (number := plain_number(answer)) is not None:
        rewritten = f"\\frac{{{3 * number.numerator}}}{{{3 * number.denominator}}}"
    elif fraction := re.fullmatch(r"\\d?frac\{(\d+)\}\{(\d+)\}", answer):
        rewritten = f"{fraction[1]}/{fraction[2]}"
    return texts | {"written otherwise": f"Thus $\\boxed{{{rewritten}}}$"}


def wrong_texts(row: dict, other: str) -> dict[str, str]:
    """Texts that give another answer, by the way in which they do. `other` is the answer of another problem."""
    answer = row["answer"]
    texts = {
        "nothing": "",
        "no answer": "I do not know.",
        "another problem's": f"$\\boxed{{{other}}}$",
        "one more": f"$\\boxed{{{answer} + 1}}$",
        "in a box that is then replaced": f"$\\boxed{{{answer}}}$, or rather $\\boxed{{{other}}}$",
    }
    fraction = re.fullmatch(r"\\d?frac\{(\d+)\}\{(\d+)\}", answer)
    number = Fraction(int(fraction[1]), int(fraction[2])) if fraction else plain_number(answer)
    if number:
        texts["negated"] = f"#### {-number}"
        if abs(number) != 1:
            texts["upside down"] = f"$\\boxed{{\\frac{{{number.denominator}}}{{{number.numerator}}}}}$"
    return texts


def check_answers(rows: list[dict]) -> dict:
    metric = load_metric("math_answer")
    values = [row["answer"].split("=")[-1] for row in rows]  # x=5 is 5
    others = [rows[next(j for j in range(i - len(rows), i) if values[j] != values[i])]["answer"] for i in range(len(rows))]
    found = {}
    questions = [Prompt(prompt="", answer=row["answer"]) for row in rows]
    started = time.perf_counter()
    for expected, texts in ((True, list(map(right_texts, rows))), (False, list(map(wrong_texts, rows, others)))):
        correct = grade_samples(metric, questions, [list(ways.values()) for ways in texts])
        asked = Counter(way for ways in texts for way in ways)
        failed = {way: {} for way in asked}
        for row, ways, verdicts in zip(rows, texts, correct, strict=True):
            for (way, text), verdict in zip(ways.items(), verdicts, strict=True):
                if verdict != expected:
                    failed[way][row["id"]] = f"{row['answer']} ← {text[-100:]}"
        found["right" if expected else "wrong"] = {
            way: {"texts": asked[way], "graded_so": asked[way] - len(failed[way]), "failed": failed[way]} for way in asked
        }
    return {"problems": len(rows), "seconds": round(time.perf_counter() - started, 1), **found}


def speed(rows: list[dict]) -> dict:
    """Answers graded in a second, in boxes: plain numbers, and formulas by math-verify with the start of its processes."""
    metric = load_metric("math_answer")
    rates = {}
    for kind, plain in (("plain numbers", True), ("formulas", False)):
        chosen = [row for row in rows if (plain_number(row["answer"]) is not None) == plain]
        if not chosen:
            continue
        questions = [Prompt(prompt="", answer=row["answer"]) for row in chosen]
        texts = [[f"$\\boxed{{{row['answer']}}}$"] for row in chosen]
        started = time.perf_counter()
        grade_samples(metric, questions, texts)
        seconds = time.perf_counter() - started
        rates[kind] = {"answers": len(chosen), "seconds": round(seconds, 3), "per_second": round(len(chosen) / seconds)}
    return rates


def main(folder: Path, output: Path, only: str | None, seconds: float, workers: int, unsafe: bool) -> None:
    document = json.loads(output.read_text()) if only else {}  # the other part stays
    if only in (None, "math"):
        document["math"] = {}
        for name in MATHEMATICS:
            document["math"][name] = checked = check_answers(read(folder, name)) | {"speed": speed(read(folder, name))}
            failed = {way: list(r["failed"].values()) for kind in ("right", "wrong") for way, r in checked[kind].items() if r["failed"]}
            print(name, checked["seconds"], checked["speed"], json.dumps(failed, indent=1, ensure_ascii=False), flush=True)
    if only in (None, "code"):
        document["files"] = {}
        for name in CODE:
            document["files"][name] = checked = check_programs(read(folder, name), Limits(seconds=seconds), workers, unsafe)
            print(name, {k: v for k, v in checked.items() if k != "failed"}, flush=True)
    command = " ".join(["python", "eval/check_graders.py", "FOLDER", *sys.argv[2:]])
    document |= {"schema": 1, "command": command, "environment": environment(torch.device("cpu"))}
    output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("eval/results/check_graders.json"))
    parser.add_argument("--only", choices=("math", "code"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--unsafe", action="store_true")
    main(**vars(parser.parse_args()))
