"""A benchmark of your own: a data file as it is, and a suite of a few lines that says how its rows are asked and graded.

    python docs/examples/custom_benchmark.py

Run it from the root of the repository. The data have columns of their own; the suite's templates (Jinja) make prompt and answer of them,
so nothing is converted. The suite is then a name like `gsm8k`: `gopd-merge compare merged.lora --suite ages.yaml`.
"""

from pathlib import Path

from gopd_merge.comparison.run import compare
from gopd_merge.eval_config import EvalConfig

DATA = "owner,pets,given,split\n" + "".join(
    f"{owner},{pets},{given},{'validation' if (pets + given) % 5 == 0 else 'test'}\n"
    for owner in ("Sam", "Mia", "Zoe")
    for pets in (8, 12, 15, 19)
    for given in (2, 5, 7)
)
SUITE = """\
name: leftovers
about: Differences of two numbers, from a table.
licence: CC0-1.0
domain: math
data:
  file: leftovers.csv # beside this file; `hub: user/name` takes a data set of the Hub, with `splits`
item:
  prompt: "{{ owner }} has {{ pets }} cards. {{ owner }} loses {{ given }}. How many cards are left?"
  answer: "{{ pets | int - given | int }}"
keep: "{{ pets != given }}" # a condition on a row
metric: math_answer # or function_cases and code_tests, for programs
samples: 2 # answers to each question, of which the mean counts
temperature: 1.0
max_new_tokens: 64
"""


def main(folder: Path = Path(), limit: int = 1000) -> None:
    (folder / "leftovers.csv").write_text(DATA, encoding="utf-8")
    suite = folder / "leftovers.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    config = EvalConfig(
        adapters=("adapters/math.lora", "adapters/code.lora"), suite=(str(suite),), limit=limit, output=folder / "leftovers-measured"
    )
    found = compare(config, "custom_benchmark.py")
    print(found.table)
    for result in found.results:  # the same as numbers
        print(f"{result.method:12} {result.score:.2f} ({result.low:.2f} to {result.high:.2f}) of {result.n} questions")


if __name__ == "__main__":
    main()
