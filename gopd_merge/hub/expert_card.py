"""The README.md beside an expert that was trained here: what it is, what it scored, how it was made. No torch."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from gopd_merge.hub.card import environment
from gopd_merge.hub.licence import strictest
from gopd_merge.hub.public import public_name

HOW = {
    "rlvr": "trained by reinforcement learning with a verifiable reward (GRPO)",
    "sft": "trained by supervised fine-tuning on given responses",
    "dpo": "trained by direct preference optimisation (DPO)",
    "seqkd": "trained on the answers of another adapter (sequence-level distillation)",
}
MEANING = {
    "accuracy": "the share of right answers, in per cent",
    "preferred": "the share of pairs of which the chosen response gained on the rejected one, in per cent",
    "reward": "the mean reward",
    "loss": "the loss in nats a token, lower is better",
}
NF4 = (("quant_method", "bitsandbytes"), ("load_in_4bit", "True"), ("bnb_4bit_quant_type", "nf4"))  # as PEFT writes it into cards
FULL = (("quant_method", "none"),)


def expert_card(manifest: Mapping[str, Any], name: str) -> str:
    """Markdown with a YAML header, from the training's manifest. Names no path of this machine."""
    base = manifest["base"]
    best = manifest["best"]
    return (
        environment()
        .get_template("expert.md.jinja")
        .render(
            header=_header(manifest),
            name=name,
            rank=manifest["student"]["rank"],
            domain=manifest["domain"],
            base=public_name(base["name"], base["commit"]),
            commit=base["commit"],
            how=HOW[manifest["recipe"]],
            start=_name(manifest["start"]),
            scores=[score | {"text": _text(score)} for score in manifest["scores"]],
            written=best["step"] if best else manifest["steps"],
            meaning=MEANING[manifest["scores"][0]["metric"]] if manifest["scores"] else "",
            recipe=list(_recipe(manifest)),
            quantization=NF4 if base["quantization"] == "nf4" else FULL,
        )
    )


def _header(manifest: Mapping[str, Any]) -> str:
    """The YAML that the Hub reads, without its dashes."""
    from huggingface_hub import ModelCardData

    base = manifest["base"]
    on_hub = public_name(base["name"], base["commit"]) if base["commit"] else None
    return ModelCardData(
        base_model=on_hub,
        base_model_relation="adapter" if on_hub else None,
        license=strictest(_licences(manifest)),
        datasets=sorted({name.partition("@")[0] for name in manifest["datasets"]}) or None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["gopd-merge", "lora", manifest["recipe"]],
    ).to_yaml()


def _licences(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """Of what went into it, as far as cards say."""
    return {**manifest["data_licences"], **{name: manifest[name]["licence"] for name in ("base", "start", "teacher") if manifest[name]}}


def _recipe(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was done, as name and value."""
    config, made = manifest["config"], manifest["environment"]
    answers = f", {config['generations']} answers each" if manifest["recipe"] == "rlvr" else ""
    yield "recipe", f"{manifest['recipe']}, {manifest['steps']} steps of {config['batch_size']} prompts{answers}, seed {config['seed']}"
    yield "learning rate", f"{manifest['learning_rate']:.2g}"
    if teacher := _name(manifest["teacher"]):
        yield "teacher", teacher
    if config["reward"]:
        yield "reward", f"a function of its own, {PurePath(config['reward']).name}"
    if config["reward_regex"]:
        yield "reward", f"the regular expression {config['reward_regex']}"
    sizes = ", ".join(f"{count:,} {name}" for name, count in manifest["examples"].items())
    yield "data", f"{', '.join(PurePath(path).name for path in config['data'])}: {sizes}; sha256 {manifest['data_sha256'][:16]}"
    yield "adapted", ", ".join(manifest["student"]["targets"])
    if manifest["stopped"]:
        yield "ended early", manifest["stopped"]
    yield "machine", f"{made['device']}, {manifest['seconds']['total']:,.0f} s"
    yield "software", ", ".join(f"{name} {made[name]}" for name in ("gopd-merge", "torch", "transformers", "peft", "trl", "bitsandbytes"))


def _name(one: Mapping[str, Any] | None) -> str | None:
    return public_name(one["name"], one["commit"]) if one else None


def _text(score: Mapping[str, Any]) -> str:
    scale, digits = (100, 1) if score["metric"] in ("accuracy", "preferred") else (1, 4)
    value, low, high = (f"{scale * score[key]:.{digits}f}" for key in ("score", "low", "high"))
    return f"{value} ({low}–{high})"
