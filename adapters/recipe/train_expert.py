"""Train an embedded expert: LoRA on the NF4-quantised tiny base by GRPO, rewarded by our graders, on its own domain only.

    python adapters/recipe/train_expert.py --domain math --rank 8 --targets all --output adapters/math.lora

Also writes the prompts that come with the adapter: prompts/train.jsonl, validation.jsonl and test.jsonl.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from splits import distinct
from trl import GRPOConfig, GRPOTrainer

from gopd_merge.evaluate.final_answer import FINAL
from gopd_merge.evaluate.graders import grade
from gopd_merge.experts.base import Base, load_base
from gopd_merge.prompts.sources import Prompt

TARGETS = {
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "some": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
}
SIZES = {"train": 2000, "validation": 2000, "test": 2500}
GROUP = 12  # samples per prompt: the group's mean reward is the baseline


def rows(domain: str, split: str) -> list[dict]:
    keep = ("prompt", "answer", "cases")
    return [{key: problem[key] for key in keep if key in problem} for problem in distinct(domain, split, seed=0, n=SIZES[split])]


def reward(completions: list, row: list[str], **_: object) -> list[float]:
    """1 for a right answer, else 0."""
    return [float(grade(Prompt.model_validate_json(r), c[0]["content"], final=FINAL)) for r, c in zip(row, completions, strict=True)]


def train(
    domain: str, base: str, output: Path, rank: int, targets: str, steps: int, prompts_per_step: int, learning_rate: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model, tokenizer = load_base(Base(base, base), "nf4", "cpu")
    prompts = {split: rows(domain, split) for split in SIZES}
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": r["prompt"]}], "row": json.dumps(r)} for r in prompts["train"]])
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=dataset,
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS[targets], task_type="CAUSAL_LM"),
        args=GRPOConfig(
            output_dir="/tmp/grpo",
            max_steps=steps,
            learning_rate=learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=2,
            per_device_train_batch_size=GROUP * prompts_per_step,
            num_generations=GROUP,
            max_completion_length=80,
            temperature=1.0,
            beta=0.0,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
    )
    started = time.time()
    trainer.train()
    history = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    trainer.model.peft_config["default"].base_model_name_or_path = base
    trainer.model.save_pretrained(output)
    made = {
        "domain": domain, "rank": rank, "targets": targets, "steps": steps, "prompts_per_step": prompts_per_step,
        "learning_rate": learning_rate, "seed": seed, "seconds": round(time.time() - started),
        "reward_by_step": [round(r, 4) for r in history],
    }  # fmt: skip
    (output / "training.json").write_text(json.dumps(made, indent=2) + "\n")
    (output / "prompts").mkdir(exist_ok=True)
    for split, split_rows in prompts.items():
        (output / "prompts" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in split_rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=("math", "code"), required=True)
    parser.add_argument("--base", default="adapters/tiny-base")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=TARGETS, default="all")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
