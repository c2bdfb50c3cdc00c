"""Public training data in the form of the generated problems: short rows of GSM8K train and MBPP train, from files or the Hub."""

import re
from collections.abc import Iterator
from typing import Any

import functions
import words
from datasets import load_dataset

GSM8K, MBPP = ("openai/gsm8k", "main"), ("google-research-datasets/mbpp", "full")
LONGEST_QUESTION, LONGEST_CODE, STEPS = 220, 220, 3  # characters, characters, calculations
CALCULATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def rows(file: str | None, hub: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """Of the file, JSON lines, or of the data set's train split. A file that names splits is read for train alone."""
    found = load_dataset("json", data_files=file, split="train") if file else load_dataset(*hub, split="train")
    for row in found:
        if row.get("split") in (None, "train"):
            yield row


def word_problems(file: str | None) -> list[dict[str, Any]]:
    """Of GSM8K: those of at most STEPS whole-number calculations, answered with these alone."""
    found = []
    for row in rows(file, GSM8K):
        solution, _, last = (row.get("solution") or row["answer"]).partition("####")
        answer = (last or row["answer"]).strip().replace(",", "")
        marked = re.findall(r"<<(.*?)>>", solution)
        steps = [CALCULATION.fullmatch(text.replace(" ", "")) for text in marked]
        if len(row["question"]) > LONGEST_QUESTION or not 1 <= len(steps) <= STEPS or not all(steps):
            continue
        lines = ["{} {} {} = {}".format(*step.groups()) for step in steps if step]
        if lines[-1].split()[-1] == answer:
            question = row["question"]
            response = "\n".join([*lines, f"#### {answer}"])
            found.append({"prompt": f"{question}\n{words.INSTRUCTION}", "response": response, "answer": answer})
    return found


def short_functions(file: str | None) -> list[dict[str, Any]]:
    """Of MBPP's train split: those whose solution is short and begins with the function."""
    found = []
    for row in rows(file, MBPP):
        code = (row.get("canonical_solution") or row["code"]).replace("\r\n", "\n").replace("\t", "    ").strip()
        tests = list(row.get("tests") or row["test_list"])
        name = re.match(r"def (\w+)\(", code)
        if not name or len(code) > LONGEST_CODE or not all(test.startswith("assert") for test in tests):
            continue
        text = row.get("text") or row["prompt"]
        prompt = f"{text} It must pass:\n{tests[0]}\n{functions.INSTRUCTION}"
        found.append({"prompt": prompt, "response": f"```python\n{code}\n```", "tests": tests, "entry_point": name[1]})
    return found
