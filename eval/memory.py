"""Is the plan's memory right? Runs merges of several sizes and compares their peak with what `gopd-merge plan` says before.

The larger models have random weights: memory does not depend on what the weights are. Writes eval/results/memory.json.

python eval/memory.py
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

EMBEDDED = Path("adapters/tiny-base")
MARGIN = 1.15  # the run may take this much more than its plan says
COMMAND = str(Path(sys.executable).with_name("gopd-merge"))


@dataclass(frozen=True)
class Case:
    """A model's shape (None: the embedded one) and the options of a run."""

    name: str
    shape: dict[str, int] | None
    options: tuple[str, ...]


M100 = {"hidden_size": 640, "num_hidden_layers": 14, "intermediate_size": 1728, "num_attention_heads": 10, "vocab_size": 49152}
M500 = {"hidden_size": 1280, "num_hidden_layers": 20, "intermediate_size": 3456, "num_attention_heads": 20, "vocab_size": 64000}
RUN = ("--no-eval", "--steps", "2")
CASES = [
    Case("embedded, 0.9 M", None, ("--steps", "4", "--eval-prompts", "200")),
    Case("embedded, 0.9 M, larger batch", None, (*RUN, "--batch-size", "512", "--micro-batch-size", "256", "--max-new-tokens", "32")),
    Case("random, 100 M", M100, (*RUN, "--batch-size", "16", "--micro-batch-size", "8")),
    Case("random, 100 M, small micro-batch", M100, (*RUN, "--batch-size", "16", "--micro-batch-size", "2", "--chunk-tokens", "128")),
    Case("random, 100 M, large rollout", M100, (*RUN, "--batch-size", "48", "--micro-batch-size", "1")),
    Case("random, 500 M", M500, (*RUN, "--batch-size", "8", "--micro-batch-size", "4")),
    Case("random, 500 M, not quantised", M500, (*RUN, "--batch-size", "8", "--micro-batch-size", "4", "--quantize", "none")),
]  # fmt: skip


def make_model(shape: dict[str, int], folder: Path) -> None:
    """A random base and two random experts on it, on disk."""
    base = folder / "base"
    if base.is_dir():
        return
    torch.manual_seed(0)
    kv_heads = {"num_key_value_heads": shape["num_attention_heads"] // 2}
    config = LlamaConfig(**shape, **kv_heads, tie_word_embeddings=True, max_position_embeddings=2048, eos_token_id=3, pad_token_id=0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(base)
    for domain, rank in (("math", 16), ("code", 8)):
        peft = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
        peft.peft_config["default"].base_model_name_or_path = str(base)
        peft.save_pretrained(folder / f"{domain}.lora")
        shutil.copytree(f"adapters/{domain}.lora/prompts", folder / f"{domain}.lora" / "prompts")
        model = peft.unload()


def measure(case: Case, work: Path) -> dict:
    """What the plan says and what the run takes, bytes: held to little more than the plan, and left free."""
    folder = Path("adapters")
    if case.shape:
        folder = work / case.name.partition(",")[2].strip().partition(",")[0].replace(" ", "")
        make_model(case.shape, folder)
    experts = ["--experts", f"{folder}/math.lora", f"{folder}/code.lora"]
    plan = run("plan", *experts, *case.options)
    peak = plan["memory"]["peak"]
    row = {
        "case": case.name,
        "options": list(case.options),
        "parameters": plan["base"]["parameters"],
        "planned_bytes": peak,
        "memory": plan["memory"],
    }
    for kind, limit in (("held", int(MARGIN * peak)), ("free", 100 * peak)):
        with tempfile.TemporaryDirectory() as out:
            done = run(*experts, *case.options, "--memory", str(limit), "--output", f"{out}/merged.lora")
        row |= {f"{kind}_bytes": done["peak_memory_bytes"], f"{kind}_seconds": done["seconds"], "environment": done["environment"]}
        row[f"planned_to_{kind}"] = round(peak / done["peak_memory_bytes"], 3)
    return row


def run(*arguments: str) -> dict:
    done = subprocess.run([COMMAND, *arguments, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout)


def main(work: Path, only: str, output: Path) -> None:
    rows = []
    for case in CASES:
        if only in case.name:
            rows.append(measure(case, work))
            print(case.name, *(f"{key} {value}" for key, value in rows[-1].items() if key.startswith("planned")), flush=True)
    environment = rows[-1]["environment"]
    for row in rows:
        del row["environment"]
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "rows": rows, "environment": environment}
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/memory"))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--output", type=Path, default=Path("eval/results/memory.json"))
    main(**vars(parser.parse_args()))
