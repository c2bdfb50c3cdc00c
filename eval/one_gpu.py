"""What `gopd-merge plan` says of a base of 8 billion parameters on a GPU of 24 GB. Writes eval/results/one_gpu.json.

python eval/one_gpu.py

The base has the shape of Llama 3.1 8B and no weights: a plan reads configs and headers only. Its tokenizer and prompts are those of the
embedded default. Nothing of this is measured on a GPU.
"""

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from gopd_merge.artefacts import environment

HIDDEN, LAYERS, INTERMEDIATE, VOCABULARY, KV, RANK = 4096, 32, 14336, 128256, 1024, 16
SHAPES = {  # (in, out) of the linear layers
    "self_attn": {"q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, KV), "v_proj": (HIDDEN, KV), "o_proj": (HIDDEN, HIDDEN)},
    "mlp": {"gate_proj": (HIDDEN, INTERMEDIATE), "up_proj": (HIDDEN, INTERMEDIATE), "down_proj": (INTERMEDIATE, HIDDEN)},
}
TRIED = (
    "--max-new-tokens 1024",
    "--max-new-tokens 1024 --micro-batch-size 1",
    "--max-new-tokens 1024 --micro-batch-size 8 --activation-checkpointing",
    "--max-new-tokens 4096 --micro-batch-size 1 --activation-checkpointing --batch-size 16",
)


def write_base(folder: Path) -> None:
    """Config, tokenizer, and a file of weights that is a header and a hole."""
    shutil.copytree("adapters/tiny-base", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | {
        **{"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        **{"tie_word_embeddings": False, "max_position_embeddings": 8192},
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}_layernorm": (HIDDEN,) for name in ("input", "post_attention")}
        shapes |= {
            f"model.layers.{layer}.{block}.{name}": (outputs, inputs)
            for block, named in SHAPES.items()
            for name, (inputs, outputs) in named.items()
        }
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_expert(folder: Path, base: Path, domain: str, value: float) -> None:
    """A LoRA on all linear layers, with the embedded expert's prompts."""
    shutil.copytree(f"adapters/{domain}.lora/prompts", folder / "prompts")
    tensors = {}
    for layer in range(LAYERS):
        for block, named in SHAPES.items():
            for name, (inputs, outputs) in named.items():
                prefix = f"base_model.model.model.layers.{layer}.{block}.{name}.lora_"
                tensors[f"{prefix}A.weight"] = torch.full((RANK, inputs), value, dtype=torch.bfloat16)
                tensors[f"{prefix}B.weight"] = torch.full((outputs, RANK), value, dtype=torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = [name for named in SHAPES.values() for name in named]
    LoraConfig(r=RANK, target_modules=modules, base_model_name_or_path=str(base)).save_pretrained(folder)


def main(output: Path) -> None:
    plans = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(folder / "base")
        for number, domain in enumerate(("math", "code"), start=1):
            write_expert(folder / f"{domain}.lora", folder / "base", domain, number / 100)
        for options in TRIED:
            command = [Path(sys.executable).with_name("gopd-merge"), "plan", "--experts", folder / "math.lora", folder / "code.lora"]
            command += ["--device", "cuda", "--memory", "24GB", "--no-eval", "--json", *options.split()]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            plan = json.loads(done.stdout)
            said = done.stderr.strip().splitlines()[-1] if done.returncode else None
            plans.append({"options": options, "exit_code": done.returncode, "memory": plan["memory"], "said": said})
            print(plans[-1], flush=True)
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "plans": plans, "environment": environment(torch.device("cpu"))}
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("eval/results/one_gpu.json"))
    main(**vars(parser.parse_args()))
