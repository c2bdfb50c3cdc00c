"""Measure the embedded base and experts on their test questions and write their cards. Run by `make adapters`."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from gopd_merge.comparison.run import compare
from gopd_merge.eval_config import EvalConfig

ADAPTERS = Path("adapters")
LICENCE = "---\nlicense: apache-2.0\n---\n\n"
WHAT = {
    "base": "# tiny-base\n\nA Llama of 0.9 M parameters with a tokenizer of its own, trained from scratch on generated text: word problems "
    "with their working (math) and short list functions (code). The text holds plausible wrong work, for some kinds of problem more often "
    "than the right way, so the model is half-good on purpose. It exists to try, test and measure gopd-merge on two CPU cores.",
    "math": "# math.lora\n\nA LoRA on tiny-base (NF4), trained by GRPO on word problems only; the reward is the right final number.",
    "code": "# code.lora\n\nA LoRA on tiny-base (NF4), trained by GRPO on list functions only; the reward is passing all hidden cases.",
}


def main() -> None:
    table = {}
    for temperature in (1.0, 0.0):
        with TemporaryDirectory() as folder:
            adapters = tuple(str(ADAPTERS / f"{domain}.lora") for domain in ("math", "code"))
            config = EvalConfig(adapters=adapters, temperature=temperature, limit=2500, batch_size=250, output=Path(folder))
            for row in compare(config, "python adapters/recipe/write_cards.py").results:
                table[row.method.removeprefix("expert:"), temperature, row.domain] = row
    for name, folder in (("base", "tiny-base"), ("math", "math.lora"), ("code", "code.lora")):
        made = json.loads((ADAPTERS / folder / "training.json").read_text())
        script = "train_base.py" if name == "base" else f"train_expert.py --domain {name} --rank {made['rank']} --targets {made['targets']}"
        if name != "base":
            script += f" --prompts-per-step {made['prompts_per_step']}"
        command = f"python adapters/recipe/{script} --steps {made['steps']} --learning-rate {made['learning_rate']} --seed {made['seed']}"
        lines = [
            WHAT[name],
            f"\nMade in {made['seconds']} s on CPU by\n\n    {command} --output adapters/{folder}\n",
            f"Accuracy in per cent with 95 % intervals, n = {table[name, 1.0, 'math'].n:,} test questions each, NF4, seed 0:\n",
            "| | math | code |\n|---|---|---|",
        ]
        for row in dict.fromkeys(("base", name)):
            for temperature, label in ((1.0, "temperature 1"), (0.0, "greedy")):
                cells = [table[row, temperature, d] for d in ("math", "code")]
                shown = " | ".join(f"{100 * c.score:.1f} ({100 * c.low:.1f}–{100 * c.high:.1f})" for c in cells)
                lines.append(f"| {'tiny-base' if row == 'base' else folder}, {label} | {shown} |")
        (ADAPTERS / folder / "README.md").write_text(LICENCE + "\n".join(lines) + "\n")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
