"""The experts: supervised fine-tuning on worked answers, then reinforcement learning with the verifier as its reward."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data import GENERATORS
from pieces import Piece
from sizes import FORWARD, LOADING, PROMPT, RESPONSE, SAMPLING, UPDATE, Size

from gopd_merge.disk import write_json, write_json_lines

MANIFEST = "training.json"  # of an expert, written last
FURTHER = ("sorting", "clock")  # the third and the fourth of a merge of four, out of eval/domains
FURTHER_INSTRUCTION = "Show the working, then write #### and the answer."


@dataclass(frozen=True)
class Experts:
    """Where they are and how they are made."""

    work: Path
    size: Size
    base: str

    def path(self, domain: str, recipe: str) -> Path:
        """The finished expert of a domain has its name alone."""
        return self.work / "experts" / (f"{domain}.lora" if recipe == self.last(domain) else f"{domain}-{recipe}.lora")

    def last(self, domain: str) -> str:
        """The recipe that it ends with: the further ones are not reinforced."""
        return "rlvr" if domain in GENERATORS and self.size.rlvr_steps else "sft"

    def options(self, domain: str, recipe: str) -> dict[str, Any]:
        """Of `gopd-merge train-expert`."""
        size, folder = self.size, self.work / "data" / domain
        files = {"data": (str(folder / "train.jsonl"),), "validation": str(folder / "validation.jsonl"), "test": str(folder / "test.jsonl")}
        common = files | {
            "domain": domain, "recipe": recipe, "output": self.path(domain, recipe), "max_new_tokens": size.max_new_tokens, "seed": 0,
            "quantize": "none", "micro_batch_size": 8, "patience": 0, "checkpoint_every": 5, "checkpoint_minutes": 3,
        }  # fmt: skip
        if recipe == "sft":
            steps = {"steps": size.sft_steps, "batch_size": size.sft_batch, "learning_rate": 1e-3, "lora_rank": size.lora_rank}
            return common | steps | {"base": self.base, "eval_every": size.sft_steps, "eval_prompts": min(100, size.questions)}
        return common | {
            "start": str(self.path(domain, "sft")), "steps": size.rlvr_steps, "batch_size": size.rlvr_prompts,
            "generations": size.generations, "learning_rate": 2e-4, "eval_every": size.rlvr_steps, "eval_prompts": min(100, size.questions),
        }  # fmt: skip

    def train(self, domain: str, recipe: str) -> None:
        """Train, or go on."""
        from gopd_merge.train_config import TrainConfig
        from gopd_merge.training.run import train_expert

        train_expert(TrainConfig(**self.options(domain, recipe)), resume=True)

    def pieces(self) -> list[Piece]:
        """Of the study's own domains."""
        recipes = ("sft", "rlvr") if self.size.rlvr_steps else ("sft",)
        return [self.piece(domain, recipe) for recipe in recipes for domain in GENERATORS]

    def piece(self, domain: str, recipe: str, stage: str = "experts") -> Piece:
        """Training as a piece of the study."""
        size = self.size
        rows = size.sft_steps * size.sft_batch if recipe == "sft" else size.rlvr_steps * size.rlvr_prompts * size.generations
        seconds = LOADING + rows * (PROMPT + RESPONSE) / UPDATE + (rows * RESPONSE / SAMPLING if recipe == "rlvr" else 0)
        seconds += 2 * min(100, size.questions) * (RESPONSE / SAMPLING + PROMPT / FORWARD)  # before and after
        return Piece(
            stage, f"{domain} {recipe}", f"{recipe}", seconds,
            done=(self.path(domain, recipe) / MANIFEST).is_file,
            run=partial(self.train, domain, recipe),
            needs=("data" if domain in GENERATORS else "further data", *((f"{domain} sft",) if recipe == "rlvr" else ())),
        )  # fmt: skip


def make_further_data(folder: Path, size: Size) -> None:
    """The problems of the third and fourth domain, as eval/domains draws them."""
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root / "eval" / "domains"), str(root / "adapters" / "recipe")]
    import problems
    import splits

    splits.DOMAINS |= problems.DOMAINS
    counts: dict[str, Mapping[str, int]] = {}
    for domain in FURTHER:
        (folder / domain).mkdir(parents=True, exist_ok=True)
        wanted = {"train": size.generated, "validation": size.questions, "test": size.questions}
        for split, count in wanted.items():
            rows = [
                {"prompt": f"{row['prompt']}\n{FURTHER_INSTRUCTION}", "response": row["response"], "answer": row["answer"]}
                for row in splits.distinct(domain, split, seed=0, n=count)
            ]
            write_json_lines(folder / domain / f"{split}.jsonl", rows)
        counts[domain] = wanted
    write_json(folder / "further.json", {"schema": 1, "domains": counts})


def described(path: Path) -> dict[str, Any]:
    """What its manifest says of an expert's making, for the results."""
    made = json.loads((path / MANIFEST).read_text())
    return {name: made.get(name) for name in ("recipe", "steps", "scores", "best", "learning_rate", "examples", "seconds")}
