"""Train one expert for each domain of `problems.py`: LoRA on the NF4-quantised tiny base, by SFT on worked answers.

    python eval/domains/train.py --output eval/work/experts

Each folder DOMAIN.lora is like `adapters/math.lora`: the adapter, the prompts that come with it, and how it was made.
Folders that are complete are left as they are, so that the command can be stopped and given again.
"""

import argparse
import itertools
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import problems
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from gopd_merge.experts.base import Base, load_base

sys.path.append(str(Path(__file__).parents[2] / "adapters" / "recipe"))
import splits

splits.DOMAINS |= problems.DOMAINS
TARGETS = {
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "some": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
}
SIZES = {"train": 2000, "validation": 1000, "test": 1000}
TRAINING = "training.json"  # written last: its presence means complete


@dataclass(frozen=True)
class Recipe:
    """How an expert is trained. The experts differ in rank and targets on purpose: a merge must take both."""

    rank: int
    steps: int
    targets: str = "all"
    learning_rate: float = 5e-3
    batch_size: int = 64
    seed: int = 0


RECIPES = {
    "sorting": Recipe(rank=8, steps=200),
    "reversing": Recipe(rank=4, steps=200, batch_size=32),
    "counting": Recipe(rank=6, steps=200),
    "units": Recipe(rank=4, steps=400, targets="some"),
    "dates": Recipe(rank=8, steps=200),
    "clock": Recipe(rank=6, steps=200),
    "comparing": Recipe(rank=4, steps=300, batch_size=32),
    "sequence": Recipe(rank=2, steps=300, batch_size=32),
}


def prompts(domain: str) -> dict[str, list[dict]]:
    """The prompts that come with an expert, by split: what is asked and the answer."""
    found = {split: splits.distinct(domain, split, seed=0, n=n) for split, n in SIZES.items()}
    return {split: [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows] for split, rows in found.items()}


def conversations(domain: str, recipe: Recipe) -> Dataset:
    """One for every example that is seen, all from the train split; the loss is on the completion alone."""
    drawn = itertools.islice(splits.stream(domain, "train", recipe.seed), recipe.steps * recipe.batch_size)
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": row["prompt"]}], "completion": [{"role": "assistant", "content": row["response"]}]}
            for row in drawn
        ]
    )


def train(domain: str, recipe: Recipe, base: str, output: Path) -> None:
    """Write the folder `output` of one expert."""
    torch.manual_seed(recipe.seed)
    model, tokenizer = load_base(Base(base, base), "nf4", "cpu")
    lora = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=TARGETS[recipe.targets], task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=conversations(domain, recipe),
        peft_config=lora,
        args=SFTConfig(
            output_dir="/tmp/sft",
            max_steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            per_device_train_batch_size=recipe.batch_size,
            completion_only_loss=True,
            max_length=None,
            seed=recipe.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=50,
            disable_tqdm=True,
        ),
    )
    started = time.time()
    trainer.train()
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    trainer.model.peft_config["default"].base_model_name_or_path = base
    trainer.model.save_pretrained(output)
    (output / "prompts").mkdir(exist_ok=True)
    for split, rows in prompts(domain).items():
        (output / "prompts" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {"domain": domain, **asdict(recipe), "seconds": round(time.time() - started), "loss_every_50_steps": losses}
    (output / TRAINING).write_text(json.dumps(made, indent=2) + "\n")


def main(domains: list[str], base: str, output: Path, overwrite: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for domain in domains:
        folder = output / f"{domain}.lora"
        if (folder / TRAINING).is_file() and not overwrite:
            print(f"{folder} is there", flush=True)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        train(domain, RECIPES[domain], base, folder)
        print(f"{folder} trained in {json.loads((folder / TRAINING).read_text())['seconds']} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--base", default="adapters/tiny-base", help="as the adapters' configs will name it")
    parser.add_argument("--output", type=Path, default=Path("eval/work/experts"))
    parser.add_argument("--overwrite", action="store_true", help="train again what is there")
    main(**vars(parser.parse_args()))
