"""The README.md beside a merged adapter: what it is, how to load it, what it scored. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gopd_merge.config import MergeConfig

HOW = {
    "exopd": "by on-policy distillation with reward extrapolation (G-OPD / ExOPD, arXiv 2602.12125), α = {alpha}",
    "opd": "by on-policy distillation (OPD)",
    "alternate": "by on-policy distillation with reward extrapolation, one after the other, α = {alpha}",
    "rkl": "by reverse KL on what they wrote themselves, α = {alpha}",
    "seqkd": "from what they wrote, learnt by heart (sequence-level distillation)",
    "sft": "by heart, from the responses in their domains' prompt files (supervised fine-tuning)",
}
TAGS = ("gopd-merge", "on-policy-distillation", "lora", "merge")


def card_text(manifest: Mapping[str, Any], measured: str | None) -> str:
    """Markdown with a YAML header, from the run's manifest and the report's Markdown, if it was measured.

    Names no local path but the base's name as the experts give it.
    """
    config, base = manifest["config"], manifest["base"]
    header = ["---", *([f"base_model: {base['name']}", "base_model_relation: adapter"] if base["commit"] else [])]
    header += ["library_name: peft", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in TAGS), "---"]
    experts = ", ".join(f"{domain} ({_expert(e)})" for domain, e in manifest["inputs"].items())
    alpha = config["alpha"]
    shown = ", ".join(f"{d} {a:g}" for d, a in alpha.items()) if isinstance(alpha, Mapping) else f"{alpha:g}"
    body = f"""
# A merge of {len(manifest["inputs"])} LoRA experts

One LoRA adapter, rank {manifest["student"]["rank"]}, that learned from {experts}
{HOW[config["method"]].format(alpha=shown)}: {config["steps"]} steps of {config["batch_size"]} prompts, seed {config["seed"]},
on `{base["name"]}` at {base["quantization"]} precision.{_other_options(config)}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base["name"]}"), "path/to/this/folder")
```

Load the base at the precision above: the adapter was trained beside it. Do not merge it into 4-bit weights; that destroys most of it.
"""
    section = f"\n## Measured\n\n{measured}" if measured else ""
    return "\n".join(header) + "\n" + body + section + "\n`merge.json` holds every option, input hash and version.\n"


def _other_options(config: Mapping[str, Any]) -> str:
    """The options of the method that are not the defaults; of a folder only its name."""
    changes = {name: value for name, value in MergeConfig.model_validate(config).changes.items() if name != "method"}
    shown = [f"{name.replace('_', ' ')} {Path(v).name if isinstance(v, str) and Path(v).is_dir() else v}" for name, v in changes.items()]
    return f"\nNot as by default: {', '.join(shown)}." if shown else ""


def _expert(e: Mapping[str, Any]) -> str:
    return f"rank {e['rank']}, sha256 {e['sha256'][:12]}…" if e["sha256"] else f"{e['name'].partition('#')[2]}, behind a server"
