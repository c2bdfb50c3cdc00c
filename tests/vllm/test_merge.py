"""Short merges of the embedded default whose student answers on vLLM, by the command line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

OPTIONS = ["--steps", "3", "--warmup-steps", "0", "--batch-size", "16", "--max-new-tokens", "48", "--learning-rate", "0.01"]


@pytest.fixture
def merge(run_cli, adapters, tmp_path):
    """merge(*arguments): the command's process, and the rows of metrics.jsonl."""

    def run(*arguments):
        experts = ["--experts", adapters / "math.lora", adapters / "code.lora", "--base", adapters / "tiny-base"]
        done = run_cli(*experts, *OPTIONS, *arguments)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / "merged.lora" / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 3
        tensors = load_file(tmp_path / "merged.lora" / "adapter_model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
        assert {path.name for path in tmp_path.iterdir()} == {"merged.lora"}
        return done, rows

    return run


def check_importance(rows, tolerance):
    assert [abs(row["importance_mean"] - 1) < tolerance for row in rows] == [True] * len(rows), rows
    assert all(row["importance_clipped"] <= 0.01 for row in rows)


def test_a_merge_with_vllm_beside_it(merge):
    done, rows = merge("--rollout", "vllm", "--quantize", "none", "--eval-prompts", "4", "--json")
    assert json.loads(done.stdout)["results"]  # nothing but the document on stdout
    assert "--rollout vllm: its log-probs are " in done.stderr
    assert "INFO" not in done.stderr
    check_importance(rows, 1e-3)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "VLLM::" not in left


def test_a_merge_in_4_bits_with_vllm_that_holds_the_base_whole(merge):
    done, rows = merge("--rollout", "vllm", "--no-eval")
    assert "on a CPU vLLM holds the base unquantised" in done.stderr
    check_importance(rows, 0.3)
    assert any(abs(row["importance_mean"] - 1) > 1e-4 for row in rows)


def test_a_merge_with_a_running_vllm_serve(merge, server_url):
    _, rows = merge("--rollout", server_url, "--quantize", "none", "--no-eval")
    check_importance(rows, 1e-3)


def test_it_learns_as_it_does_from_its_own_answers(merge, server_url, tmp_path):
    options = ["--quantize", "none", "--no-eval", "--overwrite"]
    _, there = merge("--rollout", server_url, *options)
    _, here = merge(*options)
    for one, other in zip(there, here, strict=True):  # other answers, the same distribution
        assert one["kl_to_target"] == pytest.approx(other["kl_to_target"], rel=0.5)
    assert there[-1]["kl_to_target"] < there[0]["kl_to_target"]
    assert torch.tensor([row["importance_mean"] for row in there]).std() < 1e-2


def test_the_snippet_of_the_card_answers(merge, adapters, tmp_path):
    """As it stands in the card, with the places that a reader fills in."""
    merge("--quantize", "none", "--no-eval")
    card = (tmp_path / "merged.lora" / "README.md").read_text()
    (snippet,) = [block.partition("```")[0] for block in card.split("```python\n")[1:] if "from vllm import" in block]
    program = snippet.replace('"path/to/this/folder"', repr(str(tmp_path / "merged.lora")))
    program = program.replace('"tiny-base"', repr(str(adapters / "tiny-base")))
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
