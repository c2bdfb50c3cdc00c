"""The method's options on the embedded default: what each costs and gives, in several seeds, on the same test questions.

    python eval/methods.py --study alpha sampled --seeds 0 1 2 3 4
    python eval/methods.py --summary

Every run is the default command with the options of its row, trained on one loaded base. Runs and answers are kept in eval/work/methods,
so that the command can be stopped and given again, and several may work side by side on different studies or seeds. `--summary` writes one
document of all that is there to eval/results/methods.json: for each row and domain the score over seeds with its 95 % interval over
questions, and the paired difference from the row that it is compared with, tests corrected by Holm over the document.

Times are those of the machine while it ran, which may have been busy with other runs: eval/many_experts.py and eval/estimator_cost.py
measure time.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock

from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.contenders import read_entry
from gopd_merge.comparison.measuring import Measured, Setup, key_of, measure, result, scores
from gopd_merge.comparison.training import train_on
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.evaluate.statistics import paired, with_holm
from gopd_merge.plan import MANIFEST, own_questions, read_inputs
from gopd_merge.report.progress import Silent
from gopd_merge.settings import identity

EXPERTS = {"math": "adapters/math.lora", "code": "adapters/code.lora"}
OUTPUT = Path("eval/results/methods.json")
QUESTIONS = 2500


@dataclass(frozen=True)
class Row:
    """One way to merge. `against` names the row that it is compared with, by its name."""

    study: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    against: str | None = "alpha 1.25"


def rows() -> Iterator[Row]:
    """All of them, the ones that others are compared with first."""
    for alpha in (1.25, 1.0, 1.5, 2.0, 0.5, 3.0):
        yield Row("alpha", f"alpha {alpha:g}", {"alpha": alpha})
    for alpha in (1.25, 1.0, 1.5, 2.0, 0.5, 3.0):
        yield Row("sampled", f"sampled alpha {alpha:g}", {"alpha": alpha, "estimator": "sampled"}, f"alpha {alpha:g}")
    for name, options in (  # half the tokens, three ways
        ("25 steps", {"steps": 25}),
        ("25 steps at twice the rate", {"steps": 25, "learning_rate": 0.004}),
        ("32 prompts a step", {"batch_size": 32}),
    ):
        yield Row("steps", name, options, "sampled alpha 1.25")
        yield Row("steps", f"sampled, {name}", {"estimator": "sampled", **options}, "sampled alpha 1.25")
    yield Row("steps", "sampled at twice the rate", {"estimator": "sampled", "learning_rate": 0.004}, "sampled alpha 1.25")
    yield Row("steps", "12 steps", {"steps": 12})
    for name, options in (
        ("topk 8", {"estimator": "topk", "top_k": 8}),
        ("topk 2", {"estimator": "topk", "top_k": 2}),
        ("forward", {"estimator": "forward"}),
        ("hidden", {"estimator": "hidden"}),
    ):
        yield Row("estimators", name, options)
    for name, options in (
        ("by token, alpha 2", {"adaptive": "token", "alpha": 2.0}),
        ("by token, alpha 3", {"adaptive": "token", "alpha": 3.0}),
        ("by token, alpha 5", {"adaptive": "token", "alpha": 5.0}),
        ("by run", {"adaptive": "run"}),
        ("line from 1 to 2", {"alpha_from": 1.0, "alpha": 2.0}),
        ("auto", {"alpha": "auto"}),
    ):
        yield Row("adaptive", name, options, "alpha 1.5")
    for start in ("average", "ties"):
        yield Row("start", f"start {start}", {"start": start})
        for steps in (25, 12):
            yield Row("start", f"start {start}, {steps} steps", {"start": start, "steps": steps})
    for name, options in (
        ("rotate step", {"rotate": "step"}),
        ("rotate all", {"rotate": "all"}),
        ("rotate all, weights 1/2", {"rotate": "all", "weights": {"math": 0.5, "code": 0.5}}),
        ("balance", {"balance": True}),
    ):
        yield Row("rotate", name, options)
    for name, options in (
        ("seqkd", {"method": "seqkd"}),
        ("rkl", {"method": "rkl"}),
        ("alternate", {"method": "alternate"}),
        ("bound 2", {"bound": 2.0}),
        ("deterministic 0.99", {"deterministic": 0.99}),
    ):
        yield Row("methods", name, options)


def folder_of(work: Path, row: Row, seed: int) -> Path:
    """Of a run; those of eval/embedded_seeds.py count."""
    if row.study == "alpha":
        there = work.parent / f"alpha-{row.options['alpha']:g}-seed-{seed}.lora"
        if (there / MANIFEST).is_file():
            return there
    return work / f"{row.name.replace(' ', '-').replace(',', '').replace('/', '-of-')}-seed-{seed}.lora"


def run(work: Path, wanted: list[Row], seeds: list[int], count: int = QUESTIONS) -> None:
    """Train and measure whatever is missing."""
    backbone = None
    for seed in seeds:
        for row in wanted:
            output = folder_of(work, row, seed)
            config = make_config({"experts": EXPERTS, "seed": seed, "output": output, "eval": False, **row.options})
            inputs = read_inputs(config)
            if backbone is None:
                backbone = load_backbone(config, inputs)
            with FileLock(work / f"{output.name}.lock"):
                if not (output / MANIFEST).is_file():
                    train_on(backbone, config, inputs, Silent())
                manifest = json.loads((output / MANIFEST).read_text())
                found = answers_of(work, output, backbone, config, count)
            print(f"seed {seed}, {row.name}:", {k[1]: round(fmean(a.score for a in v), 4) for k, v in found.answers.items()}, flush=True)
            print("   ", dict(manifest["seconds"].items()), manifest["tokens"], "tokens", flush=True)


def questions_of(config: MergeConfig, count: int = QUESTIONS) -> list:
    """The experts' test questions, so many of each."""
    return own_questions(read_inputs(config).experts, config.model_copy(update={"eval_prompts": count}))


def answers_of(work: Path, output: Path, backbone: Any, config: MergeConfig, count: int = QUESTIONS) -> Measured:
    """A run's answers; they are asked if there is a backbone, else read."""
    inputs = read_inputs(config)
    setup = Setup(work / "evaluation" / output.name, identity(inputs.base, inputs.experts, config.quantize), 0, 250)
    contender = read_entry(str(output)).contender(among_experts=True)
    return Measured(contender, {key_of(b): measure(backbone, contender, b, setup) for b in questions_of(config, count)})


def summarise(work: Path, wanted: list[Row], seeds: list[int], count: int = QUESTIONS) -> dict[str, Any]:
    """Every row that has at least one seed complete, over the seeds that it has."""
    config = make_config({"experts": EXPERTS, "eval": False})
    questions = questions_of(config, count)
    found: dict[str, list[Measured]] = {}
    documents = []
    for row in wanted:
        complete = [s for s in seeds if len(list((work / "evaluation" / folder_of(work, row, s).name / "answers").glob("*.jsonl"))) == 2]
        if not complete:
            continue
        folders = [folder_of(work, row, seed) for seed in complete]
        found[row.name] = [answers_of(work, folder, None, config, count) for folder in folders]
        manifests = [json.loads((folder / MANIFEST).read_text()) for folder in folders]
        documents.append(
            {
                "study": row.study,
                "name": row.name,
                "options": dict(row.options.items()),
                "against": row.against if row.against != row.name else None,
                "seeds": complete,
                "steps": manifests[0]["config"]["steps"],
                "tokens": round(fmean(m["tokens"] for m in manifests)),
                "kl_to_target": {d: last_kl(manifests, d) for d in EXPERTS},
                "alpha_used": {d: last(manifests, d, "alpha") for d in EXPERTS},
                "results": [asdict(result(found[row.name], benchmark, 0)) for benchmark in questions],
            }
        )
    compared = [
        paired(
            scores(found[d["name"]], benchmark),
            scores(found[d["against"]], benchmark),
            suite=benchmark.suite.name,
            domain=benchmark.domain,
            method=d["name"],
            rival=d["against"],
            rival_is="baseline",
        )
        for d in documents
        if d["against"] in found
        for benchmark in questions
    ]
    return {"rows": documents, "comparisons": [asdict(c) for c in with_holm(compared)]}


def last(manifests: list[dict], domain: str, name: str) -> float | None:
    """A metric of the last step that had the domain, the mean over seeds."""
    values = [m["final_metrics"]["domains"].get(domain, {}).get(name) for m in manifests]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def last_kl(manifests: list[dict], domain: str) -> float | None:
    """KL to the target at the end."""
    return last(manifests, domain, "kl_to_target")


def main(work: Path, study: list[str], row: list[str], seeds: list[int], summary: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not summary:
        run(work, [one for one in rows() if one.study in study and (not row or one.name in row)], seeds)
        return
    import torch

    found = summarise(work, list(rows()), seeds)
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), **found, "environment": environment(torch.device("cpu"))}
    OUTPUT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for one in document["rows"]:
        print(one["name"], one["seeds"], {r["domain"]: f"{100 * r['score']:.1f}" for r in one["results"]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/methods"))
    parser.add_argument("--study", nargs="*", default=sorted({row.study for row in rows()}))
    parser.add_argument("--row", nargs="*", default=[], help="only these of the studies, by their names (default: all)")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--summary", action="store_true", help="only write the document of what is there")
    main(**vars(parser.parse_args()))
