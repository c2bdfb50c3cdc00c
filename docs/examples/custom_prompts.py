"""Merge on prompts of your own, made from a table, and measure on rows that the merge did not see.

    python docs/examples/custom_prompts.py

Run it from the root of the repository. It takes the two embedded experts, but for the math expert the prompts come from ORDERS, as
they might from a CSV file of yours. Training needs no answers: the expert scores what the student writes. The rows that are kept for
the test have answers, which the table holds.
"""

import csv
import io
import json
from pathlib import Path

from gopd_merge import MergeConfig, merge
from gopd_merge.comparison.run import compare
from gopd_merge.eval_config import EvalConfig

EXPERTS = {"math": "adapters/math.lora", "code": "adapters/code.lora"}
ORDERS = "buyer,item,first,second\n" + "".join(
    f"{buyer},{item},{first},{second}\n"
    for buyer in ("Tom", "Ana", "Leo")
    for item in ("pens", "books")
    for first in (6, 11, 14, 17)
    for second in (3, 8, 12)
)


def rows() -> list[dict[str, str]]:
    """One question for each line of the table. A real one would be `csv.DictReader(open("orders.csv"))`."""
    found = []
    for order in csv.DictReader(io.StringIO(ORDERS)):
        buyer, item, first, second = order["buyer"], order["item"], int(order["first"]), int(order["second"])
        prompt = f"{buyer} has {first} {item}. {buyer} buys {second} more. How many {item} does {buyer} have?"
        found.append({"prompt": prompt, "answer": str(first + second)})
    return found


def write(path: Path, lines: list[dict[str, str]]) -> str:
    """A file of JSON lines, which is what `--prompts` and `--suite DOMAIN=FILE` read."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def main(folder: Path = Path(), limit: int = 1000, **options: object) -> None:
    every = rows()
    kept, trained = every[::4], [row for number, row in enumerate(every) if number % 4]  # what is measured must not be trained on
    prompts = write(folder / "orders-train.jsonl", [{"prompt": row["prompt"]} for row in trained])
    questions = write(folder / "orders-test.jsonl", [row | {"split": "test"} for row in kept])

    config = MergeConfig(experts=EXPERTS, prompts={"math": prompts}, output=folder / "orders.lora", eval=False, **options)
    merged = merge(config)  # code has no entry in `prompts`: it takes those that come with its adapter

    found = compare(
        EvalConfig(
            adapters=(str(merged.output), *EXPERTS.values()),
            suite=(f"math={questions}",),
            max_new_tokens=96,
            limit=limit,
            output=folder / "orders-measured",
        ),
        "custom_prompts.py",
    )
    print(found.table)


if __name__ == "__main__":
    main()
