"""Small data sets, and experts that trl's own trainers made of them on the embedded base in a few steps each."""

import json
import random
from pathlib import Path

import pytest

from gopd_merge.disk import read_json_lines
from gopd_merge.options import checked
from gopd_merge.train_config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = "adapters/tiny-base"
QUICK = {"base": BASE, "steps": 2, "batch_size": 4, "generations": 4, "max_new_tokens": 24, "eval_prompts": 8, "final": "####"}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # so that adapters name their base as the embedded ones do


@pytest.fixture(scope="session")
def write():
    """write(path, rows): a JSON-lines file."""

    def to(path: Path, rows: list[dict]) -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return to


def additions(count: int) -> list[dict]:
    """Sums with an answer and a whole response."""
    rng = random.Random(0)
    pairs = sorted({(rng.randint(1, 40), rng.randint(1, 40)) for _ in range(4 * count)})[:count]
    rng.shuffle(pairs)
    return [
        {
            "prompt": f"Ben has {a} pens. Ben buys {b} more. How many pens does Ben have?",
            "answer": str(a + b),
            "response": f"{a} + {b} = {a + b}\n#### {a + b}",
        }
        for a, b in pairs
    ]


@pytest.fixture(scope="session")
def sums(tmp_path_factory, write):
    """60 sums with answers and responses."""
    return write(tmp_path_factory.mktemp("sums") / "sums.jsonl", additions(60))


@pytest.fixture(scope="session")
def sums_pairs(tmp_path_factory, write):
    """The same as pairs: a right response, chosen, and a wrong one."""
    rows = [{"prompt": row["prompt"], "chosen": row["response"], "rejected": row["response"] + "1"} for row in additions(40)]
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def config():
    """config(output, data, …): a checked config of a training of two steps."""
    return lambda output, *data, **options: checked(TrainConfig, QUICK | {"output": output, "data": data} | options)


@pytest.fixture(scope="session")
def train(config):
    """The same, trained; returns the output folder."""

    def run(output, *data, resume=False, listener=None, **options) -> Path:
        from gopd_merge.training.run import train_expert

        return train_expert(config(output, *data, **options), listener, resume=resume).output

    return run


@pytest.fixture(scope="session")
def metrics():
    """The lines that a training wrote, one a step."""
    return lambda output: read_json_lines(output / "metrics.jsonl")


@pytest.fixture(scope="session")
def manifest():
    return lambda output: json.loads((output / "training.json").read_text())
