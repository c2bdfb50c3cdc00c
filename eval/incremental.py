"""A merge that grows: one more expert is added to a merged adapter, in several ways. What is retained, and what does it cost?

    python eval/incremental.py

The first merge is made of the embedded math expert alone, with the default options; the code expert is added to it. Every way trains the
default number of steps but for one that says otherwise. All are measured on the test questions of both domains: the score, what growing
changed of the first merge on the same questions (paired), and how much of each expert's gain over the base is there. Merges and answers
are kept in --work, so that the command can be stopped and given again. Writes eval/results/incremental.json.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gopd_merge import MergeConfig, merge
from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.contenders import BASE, Contender, of_experts, read_entry
from gopd_merge.comparison.measuring import Measured, Setup, key_of, measure, result, scores
from gopd_merge.disk import write_json
from gopd_merge.evaluate.statistics import paired, with_holm
from gopd_merge.evaluate.suites import Benchmark
from gopd_merge.plan import MANIFEST, own_questions, read_inputs
from gopd_merge.settings import identity

FIRST = {"math": "adapters/math.lora"}
OLD = "old"  # the domain of the first merge, whose prompts are those of its experts
QUESTIONS = 1000
STEPS = 50


@dataclass(frozen=True)
class Way:
    """One way to add an expert. `old` is whether the first merge is among the teachers, `start` whether the student begins at it."""

    name: str
    about: str
    old: bool = False
    start: bool = False
    anew: bool = False  # from the experts themselves, without the first merge
    options: Mapping[str, Any] = field(default_factory=dict)


WAYS = (
    Way("from the experts", "both experts in one merge, without the first one: what growing is to be held against", anew=True),
    Way("merge as an expert", "the first merge teaches its own prompts at α = 1, the new expert its own at 1.25", old=True),
    Way("and begin at it", "the same, and the student begins at the first merge", old=True, start=True),
    Way("and begin at it, half the steps", "the same in half the time", old=True, start=True, options={"steps": STEPS // 2}),
    Way("new expert alone", "the student begins at the first merge and sees only the new expert's prompts", start=True),
    Way(
        "new expert alone, kept close",
        "the same with --kl-reference student-start: the new expert's gain is added to what the student is kept close to",
        start=True,
        options={"kl_reference": "student-start", "alpha": 1.0},
    ),
)


def config_of(way: Way | None, seed: int, work: Path, new: Path, **sizes: Any) -> MergeConfig:
    """The merge of a way; the first merge where there is none."""
    name = "first" if way is None else way.name.replace(",", "").replace(" ", "-")
    output = work / f"{name}-seed-{seed}.lora"
    common: dict[str, Any] = {"seed": seed, "output": output, "eval": False} | sizes
    if way is None:
        return MergeConfig(experts=FIRST, **common)
    domain, first = new.name.removesuffix(".lora"), str(config_of(None, seed, work, new).output)
    experts = (FIRST if way.anew else {OLD: first} if way.old else {}) | {domain: str(new)}
    options: dict[str, Any] = {"alpha": {OLD: 1.0, domain: 1.25}, "prompts": {OLD: str(old_prompts(work))}} if way.old else {}
    if way.start:
        options["start"] = first
    return MergeConfig(experts=experts, **{"steps": STEPS} | options | way.options | common)


def old_prompts(work: Path) -> Path:
    """The prompts of the first merge's experts in one file."""
    target = work / f"{OLD}.jsonl"
    if not target.is_file():
        lines = [line for folder in FIRST.values() for line in (Path(folder) / "prompts" / "train.jsonl").read_text().splitlines()]
        target.write_text("".join(f"{line}\n" for line in lines))
    return target


def configs(work: Path, new: Path, seeds: int, **sizes: Any) -> Iterator[tuple[Way | None, int, MergeConfig]]:
    """Every merge, those that others are made of first."""
    for seed in range(seeds):
        for way in (None, *WAYS):
            yield way, seed, config_of(way, seed, work, new, **sizes)


class Questions:
    """The test questions of all domains, and who answered what of them."""

    def __init__(self, work: Path, new: Path, count: int) -> None:
        self.config = MergeConfig(experts=FIRST | {new.name.removesuffix(".lora"): str(new)}, eval_prompts=count, eval=False)
        self.inputs = read_inputs(self.config)
        self.benchmarks: list[Benchmark] = own_questions(self.inputs.experts, self.config)
        self.backbone = load_backbone(self.config, self.inputs)
        made_of = identity(self.inputs.base, self.inputs.experts, self.config.quantize)
        self.setup = Setup(work / "evaluation", made_of, seed=0, batch_size=250)

    def asked(self, contender: Contender, name: str) -> Measured:
        """One model's answers; those on disk are not asked again."""
        setup = Setup(self.setup.folder / name, self.setup.base, self.setup.seed, self.setup.batch_size)
        return Measured(contender, {key_of(one): measure(self.backbone, contender, one, setup) for one in self.benchmarks})


def main(work: Path, new: Path, seeds: int, questions: int, output: Path, **sizes: Any) -> None:
    work.mkdir(parents=True, exist_ok=True)
    asked: Questions | None = None
    measured: dict[str, list[Measured]] = {}
    cost: dict[str, list[dict[str, Any]]] = {}
    for way, seed, config in configs(work, new, seeds, **sizes):
        if not (config.output / MANIFEST).is_file():
            merge(config, resume=True)
        asked = asked or Questions(work, new, questions)
        name = "first" if way is None else way.name
        found = asked.asked(read_entry(str(config.output)).contender(among_experts=True), config.output.name)
        measured.setdefault(name, []).append(found)
        cost.setdefault(name, []).append(json.loads((config.output / MANIFEST).read_text()))
        print(f"seed {seed}, {name}:", shares(found), flush=True)
    assert asked is not None
    for contender in (BASE, *of_experts(asked.inputs.experts)):
        measured[contender.method] = [asked.asked(contender, "given")]
    command = f"python eval/incremental.py --seeds {seeds} --questions {questions}"
    document = {"schema": 1, "command": command, **summary(measured, cost, asked.benchmarks)}
    write_json(output, document | {"environment": environment(torch.device("cpu"))})


def shares(found: Measured) -> str:
    """Right answers in per cent by domain."""
    return "  ".join(f"{key[1]} {100 * sum(a.score for a in answers) / len(answers):.1f}" for key, answers in found.answers.items())


def summary(
    measured: Mapping[str, Sequence[Measured]], cost: Mapping[str, Sequence[Mapping[str, Any]]], benchmarks: Sequence[Benchmark]
) -> dict[str, Any]:
    """Rows of every model, and every way's paired differences from the first merge and from the merge of the experts themselves."""
    about: dict[str, str] = {"first": "the merge to which an expert is added"} | {w.name: w.about for w in WAYS}
    rows = [
        {
            "name": name,
            "about": about.get(name),
            "tokens": round(sum(one["tokens"] for one in cost[name]) / len(cost[name])) if name in cost else None,
            "steps": cost[name][0]["config"]["steps"] if name in cost else None,
            "results": [asdict(result(group, benchmark, 0)) for benchmark in benchmarks],
            "gain_kept": {b.domain: gain_kept(measured, name, b) for b in benchmarks},
        }
        for name, group in measured.items()
    ]
    compared = [
        paired(
            scores(measured[way.name], benchmark),
            scores(measured[rival], benchmark),
            suite=benchmark.suite.name,
            domain=benchmark.domain,
            method=way.name,
            rival=rival,
            rival_is=kind,
        )
        for way in WAYS
        for rival, kind in (("first", "before"), (WAYS[0].name, "from the experts"))
        if way.name != rival
        for benchmark in benchmarks
    ]
    return {"rows": rows, "comparisons": [asdict(one) for one in with_holm(compared)]}


def gain_kept(measured: Mapping[str, Sequence[Measured]], name: str, benchmark: Benchmark) -> float:
    """Of the gain of the domain's own expert over the base, the share that is there: 1 is all, 0 the base."""
    mean = {
        who: float(scores(measured[who], benchmark).by_question.mean()) for who in ("base", f"expert:{benchmark.domain}", name)
    }  # fmt: skip
    return (mean[name] - mean["base"]) / (mean[f"expert:{benchmark.domain}"] - mean["base"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/incremental"))
    parser.add_argument("--new", type=Path, default=Path("adapters/code.lora"), help="the expert that is added")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="test questions of each domain")
    parser.add_argument("--output", type=Path, default=Path("eval/results/incremental.json"))
    main(**vars(parser.parse_args()))
