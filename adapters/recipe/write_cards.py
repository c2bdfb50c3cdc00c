"""Measure the embedded base and experts on their test questions and write their cards. Run by `make adapters`."""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from train_expert import TARGETS

from gopd_merge.comparison.run import compare
from gopd_merge.eval_config import EvalConfig

ADAPTERS = Path("adapters")
LICENCE = "---\nlicense: apache-2.0\n---\n\n"
BASES = {  # what each base is, and its experts by domain with what they are
    "tiny-base": (
        "A Llama of 0.9 M parameters with a tokenizer of its own, trained from scratch on generated text: word problems with their working "
        "(math) and short list functions (code). The text holds plausible wrong work, for some kinds of problem more often than the right "
        "way, so the model is half-good on purpose. It exists to try, test and measure gopd-merge on two CPU cores.",
        {
            "math": ("math.lora", "trained by GRPO on word problems only; the reward is the right final number."),
            "code": ("code.lora", "trained by GRPO on list functions only; the reward is passing all hidden cases."),
        },
    ),
    "big-base": (
        "A Llama of 3.1 M parameters with the tokenizer of tiny-base, trained on the same text. It exists to try, test and measure merges "
        "from strong to weak: its expert teaches a student on tiny-base.",
        {"math": ("big-math.lora", "trained by GRPO on word problems only; the reward is the right final number.")},
    ),
}
SPLITS = ((1.0, "temperature 1"), (0.0, "greedy"))


def measured(adapters: tuple[str, ...]) -> dict:
    """Results of a base and its experts on the experts' test questions, by method, temperature and domain."""
    table = {}
    for temperature, _ in SPLITS:
        with TemporaryDirectory() as folder:
            config = EvalConfig(adapters=adapters, temperature=temperature, limit=2500, batch_size=250, output=Path(folder))
            for row in compare(config, "python adapters/recipe/write_cards.py").results:
                table[row.method.removeprefix("expert:"), temperature, row.domain] = row
    return table


def command_of(folder: str, base: str, domain: str | None) -> str:
    """What made it."""
    made = json.loads((ADAPTERS / folder / "training.json").read_text())
    parts = [f"python adapters/recipe/{'train_expert' if domain else 'train_base'}.py"]
    parts += [f"--domain {domain} --base adapters/{base}"] if domain else []
    options, seconds = options_of(made)
    parts += [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    return f"\nMade in {seconds} s on CPU by\n\n    {' '.join(parts)} --output adapters/{folder}\n"


def options_of(made: dict) -> tuple[dict, int]:
    """The options of the script that made it, and its seconds: of a manifest of train-expert, or of what a script of ours wrote itself."""
    if "config" not in made:
        return {name: value for name, value in made.items() if name not in ("domain", "seconds", "reward_by_step", "loss", "torch")}, made[
            "seconds"
        ]
    config, student = made["config"], made["student"]
    targets = next(name for name, kinds in TARGETS.items() if sorted(kinds.split(",")) == student["targets"])
    options = {"rank": student["rank"], "targets": targets, "steps": config["steps"], "prompts_per_step": config["batch_size"]}
    return options | {"learning_rate": config["learning_rate"], "seed": config["seed"]}, round(made["seconds"]["total"])


def write_card(folder: str, about: str, base: str, domain: str | None, rows: list[str], table: dict) -> None:
    """`rows` are methods of the table."""
    domains = sorted({key[2] for key in table}, reverse=True)
    n = next(iter(table.values())).n
    lines = [
        f"# {folder}\n\n{about}",
        command_of(folder, base, domain),
        f"Accuracy in per cent with 95 % intervals, n = {n:,} test questions each, NF4, seed 0:\n",
        f"| | {' | '.join(domains)} |\n|---{'|---' * len(domains)}|",
    ]
    for row in rows:
        for temperature, label in SPLITS:
            cells = [table[row, temperature, d] for d in domains]
            shown = " | ".join(f"{100 * c.score:.1f} ({100 * c.low:.1f}–{100 * c.high:.1f})" for c in cells)
            lines.append(f"| {base if row == 'base' else folder}, {label} | {shown} |")
    (ADAPTERS / folder / "README.md").write_text(LICENCE + "\n".join(lines) + "\n")
    print("\n".join(lines))


def main(bases: list[str]) -> None:
    for base in bases:
        about, experts = BASES[base]
        table = measured(tuple(f"{domain}=adapters/{folder}" for domain, (folder, _) in experts.items()))
        write_card(base, about, base, None, ["base"], table)
        for domain, (folder, what) in experts.items():
            write_card(folder, f"A LoRA on {base} (NF4), {what}", base, domain, ["base", domain], table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bases", nargs="*", default=list(BASES), help="only these and their experts")
    main(parser.parse_args().bases)
