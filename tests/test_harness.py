"""lm-evaluation-harness loads the adapter as documented and finds the answers that we find."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

pytestmark = pytest.mark.slow
QUESTIONS = 24


def test_the_harness_and_we_agree_on_every_greedy_answer(adapters, tmp_path):
    """The task of eval/lm_eval, on the first test questions of the embedded math domain, with the math expert as `peft=`."""
    shutil.copytree(adapters.parent / "eval" / "lm_eval", tmp_path / "tasks")
    lines = (adapters / "math.lora" / "prompts" / "test.jsonl").read_text().splitlines()[:QUESTIONS]
    rows = [json.loads(line) | {"id": str(number), "split": "test"} for number, line in enumerate(lines)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "tasks" / "embedded_math.yaml"
    content = yaml.safe_load(task.read_text())
    content["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "math.jsonl")
    task.write_text(yaml.safe_dump(content))
    model = f"pretrained={adapters / 'tiny-base'},peft={adapters / 'math.lora'},dtype=float32"
    harness = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model, "--include_path", tmp_path / "tasks",
        "--tasks", "embedded_math", "--apply_chat_template", "--device", "cpu", "--batch_size", "24", "--log_samples",
        "--output_path", tmp_path / "harness",
    ]  # fmt: skip
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(list(map(str, harness)), capture_output=True, text=True, env=quiet, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (tmp_path / "harness").rglob("samples_*.jsonl")
    theirs = {row["doc"]["id"]: row for row in map(json.loads, samples.read_text().splitlines())}

    from gopd_merge.comparison.run import compare
    from gopd_merge.eval_config import EvalConfig
    from gopd_merge.options import checked

    config = checked(
        EvalConfig,
        {
            "adapters": [str(adapters / "math.lora")],
            "suite": [f"math={tmp_path / 'math.jsonl'}"],
            "temperature": 0.0,
            "max_new_tokens": 96,
            "quantize": "none",
            "output": tmp_path / "ours",
        },
    )
    found = compare(config, "gopd-merge eval")
    stored = (tmp_path / "ours" / "answers" / f"math.jsonl.math.{QUESTIONS}.expert-math.jsonl").read_text().splitlines()[1:]
    ours = {row["id"]: row for row in map(json.loads, stored)}
    assert ours.keys() == theirs.keys()
    assert {id: row["text"].strip() for id, row in ours.items()} == {id: row["resps"][0][0].strip() for id, row in theirs.items()}
    assert {id: row["score"] for id, row in ours.items()} == {id: row["exact_match"] for id, row in theirs.items()}
    ours_score = next(r.score for r in found.results if r.method == "expert:math")
    assert ours_score == pytest.approx(sum(row["exact_match"] for row in theirs.values()) / QUESTIONS)
    base = next(r.score for r in found.results if r.method == "base")
    assert base < ours_score  # the control: with the adapter off there is something to disagree on
