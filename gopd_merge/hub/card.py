"""The README.md beside a merged adapter, which is its card on the Hub: what it is, how to use it, what it scored. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from gopd_merge.config import MergeConfig
from gopd_merge.hub.public import public_name
from gopd_merge.report.document import Document
from gopd_merge.report.lines import headline_of, is_share, lines_of
from gopd_merge.report.text import escaped, markdown_text
from gopd_merge.server import lora_room

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
PAPER = "arXiv 2602.12125"
HOW = {
    "exopd": f"by on-policy distillation with reward extrapolation (G-OPD / ExOPD, {PAPER}), α = {{alpha}}",
    "opd": "by on-policy distillation (OPD)",
    "alternate": "by on-policy distillation with reward extrapolation, one after the other, α = {alpha}",
    "rkl": "by reverse KL on what they wrote themselves, α = {alpha}",
    "seqkd": "from what they wrote, learnt by heart (sequence-level distillation)",
    "sft": "by heart, from the responses in their domains' prompt files (supervised fine-tuning)",
}
TAGS = ["gopd-merge", "on-policy-distillation", "lora", "merge"]
PRECISION = {"nf4": "4-bit NF4", "none": "as it is stored"}
LONGEST_ASKED = 512  # tokens that the snippets let the model answer


@dataclass(frozen=True)
class Place:
    """Where the adapter can be had, and what is settled only when it is published."""

    name: str  # of the repository, or of the folder
    repo: str | None = None  # user/name on the Hub
    licence: str | None = None
    base: tuple[str, str] | None = None  # Hub id and commit, where they are not those of the manifest
    stated: bool = False  # whether somebody said that this is the base, and no file could be compared
    picture: str | None = None  # a file beside the card
    chats: bool = True  # whether the base has a chat template


def card_text(manifest: Mapping[str, Any], document: Document | None, place: Place) -> str:
    """Markdown with a YAML header, from the run's manifest and its results, if it was measured. Names no path of this machine."""
    config = MergeConfig.model_validate(manifest["config"])
    base, commit = place.base or (public_name(manifest["base"]["name"], manifest["base"]["commit"]), manifest["base"]["commit"])
    return (
        environment()
        .get_template("card.md.jinja")
        .render(
            header=_header(base if commit else None, document, place, _datasets(manifest)),
            place=place,
            adapter=place.repo or "path/to/this/folder",
            base=base,
            commit=commit,
            teacher_base=_name_of(manifest.get("teacher_base")),
            nf4=manifest["base"]["quantization"] == "nf4",
            precision=PRECISION[manifest["base"]["quantization"]],
            rank=manifest["student"]["rank"],
            room=lora_room(manifest["student"]["rank"]),
            how=HOW[config.method].format(alpha=_alpha(config)),
            experts=[_expert(domain, e) for domain, e in manifest["inputs"].items()],
            recipe=list(_recipe(config, manifest)),
            results=markdown_text(document).rstrip() if document else None,
            limits=list(_limits(config, manifest, document)),
            longest=min(LONGEST_ASKED, 4 * config.max_new_tokens),
            paper=PAPER,
        )
    )


def environment() -> "Environment":
    """For the templates of cards: `md` escapes what comes from elsewhere, `py` makes a Python text of it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(  # noqa: S701 - Markdown; what comes from elsewhere goes through `escaped` or `repr`
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    found.filters |= {"md": lambda value: escaped(str(value)), "py": lambda text: dumps(text, ensure_ascii=False)}
    return found


def _datasets(manifest: Mapping[str, Any]) -> list[str]:
    """The data sets on the Hub that prompts came from."""
    found = (one.get("prompt_source", {}).get("dataset") for one in manifest["inputs"].values())
    return sorted({dataset.partition("@")[0] for dataset in found if dataset})


def _header(base: str | None, document: Document | None, place: Place, datasets: list[str]) -> str:
    """The YAML that the Hub reads, without its dashes."""
    from huggingface_hub import ModelCardData

    results = list(_eval_results(document)) if document else []
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        license=place.licence,
        library_name="peft",
        pipeline_tag="text-generation",
        datasets=datasets or None,
        tags=TAGS,
        model_name=place.name if results else None,
        eval_results=results or None,
    ).to_yaml()


def _eval_results(document: Document) -> Iterator[Any]:
    """The merge's own scores for the Hub's model-index; those of others are in the table."""
    from huggingface_hub import EvalResult

    headline = headline_of(lines_of(document))
    for key, row in headline.rows.items() if headline else ():
        share = is_share(document, key)
        scale = 100 if share else 1
        low, high = (round(scale * end, 3) for end in (row.low, row.high))
        yield EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=row.suite,
            dataset_name=document.title(key),
            dataset_config=row.domain,  # without it the Hub's form puts all domains of a suite into one
            dataset_split=row.split,
            metric_type="accuracy" if share else row.metric,
            metric_name=f"{'accuracy in per cent' if share else row.metric}, 95 % interval {low:g} to {high:g}",
            metric_value=round(scale * row.score, 3),
            metric_args={"metric": row.metric, "n": row.n, "k": row.k, "temperature": row.temperature, "seed": row.seed},
        )


def _expert(domain: str, e: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of experts."""
    return {
        "domain": domain,
        "name": public_name(e["name"], e["commit"]),
        "on_hub": bool(e["commit"]),
        "commit": e["commit"],
        "sha256": e["sha256"],
        "rank": e["rank"],
        "prompts": e["prompts"],
        "licence": e.get("licence"),
    }


def _name_of(base: Mapping[str, Any] | None) -> str | None:
    return public_name(base["name"], base["commit"]) if base else None


def _alpha(config: MergeConfig) -> str:
    alpha = config.alpha
    return ", ".join(f"{d} {a:g}" for d, a in alpha.items()) if isinstance(alpha, dict) else f"{alpha:g}"


def _recipe(config: MergeConfig, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was done, as name and value."""
    yield "method", f"{config.method}, α = {_alpha(config)}"
    yield "student", f"a fresh LoRA, rank {manifest['student']['rank']}, on {', '.join(manifest['student']['targets'])}"
    rate = f", learning rate {config.learning_rate:g}" if config.learning_rate else ""
    yield "training", f"{config.steps} step(s) of {config.prompts_per_step} prompts, seed {config.seed}{rate}"
    for domain, one in manifest["inputs"].items():
        if (said := one.get("prompt_source")) and said["source"] != "own":
            yield f"prompts of {domain}", f"{one['prompts']:,} of {_origin(said)}"
    yield "responses", f"at most {config.trained_tokens:,} tokens, sampled at temperature 1"
    if changes := {name: value for name, value in config.changes.items() if name != "method"}:
        yield "not as by default", ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in changes.items())
    yield "tokens", f"{manifest['tokens']:,}"
    environment = manifest["environment"]
    seconds = f", {manifest['seconds']['total']:,.0f} s" if "total" in manifest["seconds"] else ""
    yield "machine", f"{environment['device']}{seconds}"
    versions = ("gopd-merge", "torch", "transformers", "peft", "bitsandbytes")
    yield "software", ", ".join(f"{name} {environment[name]}" for name in versions)


def _origin(said: Mapping[str, Any]) -> str:
    """Where prompts came from; of a file only its name."""
    if said["source"] == "synth":
        return "those that the expert wrote itself"
    source = said["dataset"] or PurePath(said["source"]).name
    return f"{source}, licence {said['licence']}" if said["licence"] else source


def _shown(value: Any) -> str:
    """An option's value; of a folder only its name."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    return PurePath(value).name if isinstance(value, str) and Path(value).exists() else str(value)


def _limits(config: MergeConfig, manifest: Mapping[str, Any], document: Document | None) -> Iterator[str]:
    """What a user should not take for granted."""
    precision = PRECISION[manifest["base"]["quantization"]]
    yield (
        f"It was trained beside the base at one precision ({precision}) and is meant to run beside it. Do not merge it into 4-bit weights: "
        "rounding takes most of it away."
    )
    measured = {s.domain for s in document.suites} if document else set()
    if not measured:
        yield "It was not measured. Whether it is better than its experts, or than their average, is not known."
    elif silent := [domain for domain in config.domains if domain not in measured]:
        yield f"Not measured on {', '.join(silent)}."
    if measured:
        yield (
            "The intervals are over questions. They say nothing of other questions than those, of other merges with another seed, "
            "or of domains that none of the experts was for."
        )
    if any(config.alpha_of(domain) > 1 for domain in config.domains) or config.adaptive == "run":
        yield "α above 1 goes beyond what the experts show: it amplifies how they differ from the base, their faults as well."
    yield f"It was trained on responses of at most {config.trained_tokens:,} tokens; longer ones were not looked at."
    yield "It has the faults of its base and of its experts. Nobody has tested it for safety."
