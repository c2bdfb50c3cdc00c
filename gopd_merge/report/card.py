"""The README.md beside a merged adapter: what it is, how to load it, what it scored. No torch."""

from collections.abc import Mapping
from typing import Any

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

One LoRA adapter, rank {manifest["student"]["rank"]}, that learned from {experts} by on-policy distillation with reward extrapolation
(G-OPD / ExOPD, arXiv 2602.12125), α = {shown}: {config["steps"]} steps of {config["batch_size"]} prompts, seed {config["seed"]},
on `{base["name"]}` at {base["quantization"]} precision.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base["name"]}"), "path/to/this/folder")
```

Load the base at the precision above: the adapter was trained beside it. Do not merge it into 4-bit weights; that destroys most of it.
"""
    section = f"\n## Measured\n\n{measured}" if measured else ""
    return "\n".join(header) + "\n" + body + section + "\n`merge.json` holds every option, input hash and version.\n"


def _expert(e: Mapping[str, Any]) -> str:
    return f"rank {e['rank']}, sha256 {e['sha256'][:12]}…" if e["sha256"] else f"{e['name'].partition('#')[2]}, behind a server"
