"""What a result depends on, as one flat mapping: two runs of which it is equal are the same run. No torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gopd_merge.config import MergeConfig
from gopd_merge.experts.base import Base
from gopd_merge.experts.intake import CONFIG, Expert
from gopd_merge.experts.tensor_file import file_sha256
from gopd_merge.plan import Inputs, pin
from gopd_merge.prompts.sources import PromptSet

# Options that change no adapter: where things go and when they are saved, what comes after, how much memory and time are taken.
ASIDE = {
    *("experts", "base", "prompts", "allow_noop"),  # by what was found there
    *("output", "overwrite", "track", "eval", "eval_prompts", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"),
    *("micro_batch_size", "chunk_tokens", "memory", "remote_patience", "unsafe_exec", "device", "shard_base", "stop_on_divergence"),
    *("activation_checkpointing", "max_prompts", "decontaminate", "synth_prompts", "synth_tokens"),
}
SAMPLES, SAMPLE_BYTES = 256, 4096  # of each file of weights


def settings_of(config: MergeConfig, inputs: Inputs) -> dict[str, Any]:
    """All that the student of a run depends on but the machine."""
    settings = pin(config, inputs).model_dump(mode="json", exclude=ASIDE)
    settings["base"] = base_digest(inputs.base)
    settings |= {f"expert {e.domain}": e.sha256 for e in inputs.experts}
    settings |= {f"settings of expert {e.domain}": file_sha256(e.path / CONFIG) for e in inputs.experts}
    settings |= {f"expert {domain}": location for domain, location in inputs.remote.items()}
    settings |= {f"prompts of {source.domain}": prompts_digest(source, config) for source in inputs.prompts}
    settings |= {f"validation questions of {benchmark.domain}": benchmark.version for benchmark in inputs.validation}
    for name, one in inputs.references.items():
        settings[f"reference {name}"] = one.sha256 if isinstance(one, Expert) else base_digest(one)
    if inputs.teacher_base:
        settings["teacher base"] = base_digest(inputs.teacher_base)
    if inputs.start:
        settings["start adapter"] = inputs.start.sha256
    return settings


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, each as `name before (now after)`; none for the same run."""
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    return [f"{name} {_short(there.get(name))} (now {_short(now.get(name))})" for name in names]


def identity(base: Base, experts: Sequence[Expert], quantize: str) -> dict[str, Any]:
    """What all answers on this base depend on: it, and the experts."""
    made_of = {expert.domain: expert.sha256 for expert in experts}
    return {"base": base.name, "base_digest": base_digest(base), "quantize": quantize, "experts": made_of}


def base_digest(base: Base) -> str:
    """A base by its config, tokenizer, chat template, and samples of its weights: no training leaves all of these as they were."""
    digest = hashlib.sha256()
    for path in sorted(Path(base.location).iterdir()):
        if path.name.endswith((".json", ".jinja", ".txt", ".model")):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(path.name.encode() + sampled(path))
    return digest.hexdigest()


def sampled(path: Path) -> bytes:
    """A file's size, and SAMPLES pieces of it, evenly spread."""
    size = path.stat().st_size
    pieces = [str(size).encode()]
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(number * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
            pieces.append(file.read(SAMPLE_BYTES))
    return b"".join(pieces)


def prompts_digest(source: PromptSet, config: MergeConfig) -> str:
    """The prompts of a domain and the responses that come with them, in their order; of those that experts write, what bounds them."""
    if source.is_synthetic:
        without = f" without {','.join(config.decontaminate)}" if config.decontaminate else ""
        return f"{source.origin.source}, {config.synth_prompts} of {config.synth_tokens} tokens{without}"
    texts = json.dumps([[prompt.prompt, prompt.response] for prompt in source.prompts])
    return hashlib.sha256(texts.encode()).hexdigest()


def _short(value: Any) -> str:
    """A hash by its first characters."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else f"{value}"
