"""Are prompts that the experts write themselves (--prompts synth) as good to merge with as real ones?

    python eval/synthetic_prompts.py --seconds 200

Merges of the embedded default on 500 prompts a domain: its own; those that the experts wrote and that passed every test; and as many that
they wrote and that only have the right form, whatever their domain. Everything else is the default merge, each with three seeds and
measured on the same test questions. Runs are kept in eval/work, so that the command can be stopped (--seconds) and given again. Writes
eval/results/synthetic_prompts.json.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from methods import EXPERTS, answers_of, questions_of

from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.measuring import result, scores
from gopd_merge.comparison.training import train_on
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.disk import partial_of, read_json_lines, write_json_lines
from gopd_merge.evaluate.statistics import paired, with_holm
from gopd_merge.plan import MANIFEST, read_inputs
from gopd_merge.prompts.synthesis import FAINTLY, OTHERS
from gopd_merge.report.progress import Silent

OUTPUT = Path("eval/results/synthetic_prompts.json")
PROMPTS, QUESTIONS = 500, 1000  # of each domain
REAL, WRITTEN, UNSIFTED = "own prompts", "written by the experts", "written, of any domain"


def folder_of(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(',', '').replace(' ', '-')}-seed-{seed}.lora"


def is_of(domain: str, prompt: str) -> bool:
    """The forms that the embedded domains' questions have."""
    return prompt.startswith("Write f(") if domain == "code" else "How many" in prompt


def written(folder: Path, domain: str) -> tuple[list[dict], list[dict]]:
    """What the expert wrote: kept, and left out. Nothing where it has not written yet."""
    place = (folder if folder.is_dir() else partial_of(folder)) / "prompts" / "synth"
    return read_json_lines(place / f"{domain}.jsonl"), read_json_lines(place / f"{domain}.left_out.jsonl")


def config_of(work: Path, name: str, seed: int) -> MergeConfig:
    """One merge. The prompts of any domain are those that its seed's experts wrote; their order does not matter, each run shuffles them."""
    sources = {"*": "own"} if name == REAL else {"*": "synth"}
    if name == UNSIFTED:
        sources = {}
        for domain in EXPERTS:
            kept, left_out = written(folder_of(work, WRITTEN, seed), domain)
            of_form = [row for row in left_out if row["left_out"] in (OTHERS, FAINTLY)]
            share = round(PROMPTS * len(kept) / (len(kept) + len(of_form)))  # as they were in what was written
            path = work / f"unsifted-{domain}-{seed}.jsonl"
            write_json_lines(path, [{"prompt": row["prompt"]} for row in [*kept[:share], *of_form[: PROMPTS - share]]])
            sources[domain] = str(path)
    options = {"prompts": sources, "max_prompts": PROMPTS, "synth_prompts": PROMPTS, "seed": seed, "eval": False}
    return make_config({"experts": EXPERTS, "output": folder_of(work, name, seed), **options})


def run(work: Path, seeds: list[int], seconds: float) -> None:
    """Train and measure whatever is missing, until the time is over."""
    backbone, until = None, time.monotonic() + seconds
    for names in ((REAL, WRITTEN), (UNSIFTED,)):
        for seed, name in ((seed, name) for seed in seeds for name in names):
            if time.monotonic() > until:
                sys.exit("not all is measured yet; give the command again")
            config = config_of(work, name, seed)
            if is_done(work, name, seed):
                continue
            inputs = read_inputs(config)
            backbone = backbone or load_backbone(config, inputs)
            started = time.monotonic()
            if not (config.output / MANIFEST).is_file():
                train_on(backbone, config, inputs, Silent())
            found = answers_of(work, config.output, backbone, config, QUESTIONS)
            means = {key[1]: sum(a.score for a in v) / len(v) for key, v in found.answers.items()}
            print(f"seed {seed}, {name}, {time.monotonic() - started:.0f} s:", means, flush=True)


def purity(work: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """What share of the prompts is of the expert's domain: as written, by their own log-ratio, and as kept; of what is written so far."""
    rows = []
    for domain in EXPERTS:
        both = [written(folder_of(work, WRITTEN, seed), domain) for seed in seeds]
        kept, left_out = ([row for one in both for row in one[side]] for side in (0, 1))
        if not kept:
            continue
        measured = [row for row in [*kept, *left_out] if "kl" in row]
        likelier = [row for row in measured if row["log_ratio"] > 0]
        shares = {
            name: sum(is_of(domain, row["prompt"]) for row in part) / len(part)
            for name, part in (("written", measured), ("likelier", likelier), ("kept", kept))
        }
        reasons = dict(Counter(row["left_out"] for row in left_out))
        rows.append({"domain": domain, "written": len(kept) + len(left_out), "kept": len(kept), "left_out": reasons, "shares": shares})
    return rows


def is_done(work: Path, name: str, seed: int) -> bool:
    return len(list((work / "evaluation" / folder_of(work, name, seed).name / "answers").glob("*.jsonl"))) == len(EXPERTS)


def summarise(work: Path, wanted: list[int]) -> dict[str, Any]:
    """Over the seeds of which real and written prompts were both measured."""
    seeds = [seed for seed in wanted if is_done(work, REAL, seed) and is_done(work, WRITTEN, seed)]
    if not seeds:
        return {"seeds": [], "rows": [], "comparisons": [], "purity": purity(work, wanted)}
    names = [REAL, WRITTEN, *([UNSIFTED] if all(is_done(work, UNSIFTED, seed) for seed in seeds) else [])]
    config = make_config({"experts": EXPERTS, "eval": False})
    questions = questions_of(config, QUESTIONS)
    found = {n: [answers_of(work, folder_of(work, n, s), None, config, QUESTIONS) for s in seeds] for n in names}
    compared = [
        paired(
            scores(found[name], benchmark),
            scores(found[REAL], benchmark),
            suite=benchmark.suite.name,
            domain=benchmark.domain,
            method=name,
            rival=REAL,
            rival_is="real prompts",
        )
        for name in names[1:]
        for benchmark in questions
    ]
    rows = [{"name": name, "results": [asdict(result(found[name], b, 0)) for b in questions]} for name in names]
    return {"seeds": seeds, "rows": rows, "comparisons": [asdict(c) for c in with_holm(compared)], "purity": purity(work, wanted)}


def main(work: Path, seeds: list[int], seconds: float, summary: bool) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not summary:
        run(work, seeds, seconds)
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "prompts": PROMPTS, **summarise(work, seeds)}
    OUTPUT.write_text(json.dumps(document | {"environment": environment(torch.device("cpu"))}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/synthetic"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further merge after so many")
    parser.add_argument("--summary", action="store_true", help="only write the document of what is there")
    main(**vars(parser.parse_args()))
