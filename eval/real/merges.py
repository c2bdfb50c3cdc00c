"""The trained merges: every method with the same budget and the same search for a learning rate, then the other seeds at the rate found."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data import GENERATORS
from experts import FURTHER, Experts
from pieces import Piece
from sizes import FORWARD, LOADING, PROMPT, RESPONSE, SAMPLING, UPDATE, Size

from gopd_merge import MergeConfig, merge
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.contenders import read_entry
from gopd_merge.comparison.measuring import Setup, measure
from gopd_merge.disk import write_json
from gopd_merge.evaluate.validation import load_validation
from gopd_merge.plan import MANIFEST, read_inputs
from gopd_merge.settings import identity

METHODS: dict[str, dict[str, Any]] = {  # the first is what the comparisons are about: choosing one by its score would flatter it
    "exopd-1.25": {"alpha": 1.25},
    "exopd-1.5": {"alpha": 1.5},
    "exopd-2": {"alpha": 2.0},
    "exopd-adaptive": {"alpha": 2.0, "adaptive": "token"},
    "opd": {"method": "opd"},
    "seqkd": {"method": "seqkd"},
}
LONGER = 4  # times the steps of the others, for what more of them would give: a method, and where it begins (None: as the others)
LONGER_RUNS: dict[str, tuple[str, str | None]] = {
    "exopd-longer": ("exopd-1.25", None),
    "opd-longer": ("opd", None),
    "exopd-longer-from-base": ("exopd-1.25", "none"),
}
LONGER_SEED = 9  # none of the others', whose answers are in the same folder
SEARCHED = 0  # the seed at which rates are tried; the run at the chosen rate is that seed's run


@dataclass(frozen=True)
class Merges:
    """Where they are and how they are made."""

    work: Path
    size: Size
    experts: Experts
    start: str = "none"  # where every student begins

    def config(self, output: Path, domains: tuple[str, ...], seed: int, rate: float | None, options: Mapping[str, Any]) -> MergeConfig:
        """One merge of the experts of these domains."""
        size = self.size
        return MergeConfig(
            experts={domain: str(self.experts.path(domain, self.experts.last(domain))) for domain in domains},
            output=output, seed=seed, learning_rate=rate, steps=size.merge_steps, batch_size=size.merge_batch * len(domains) // 2,
            micro_batch_size=8, max_new_tokens=size.max_new_tokens, quantize="none", eval=False, checkpoint_every=3, checkpoint_minutes=3,
            warmup_steps=min(2, size.merge_steps - 1), start=self.start, **options,
        )  # fmt: skip

    def searched(self, method: str, rate: float) -> Path:
        """The run of the search at a rate."""
        return self.work / "merges" / f"{method}-rate-{rate:g}-seed-{SEARCHED}.lora"

    def final(self, method: str, seed: int) -> Path:
        """The run that counts: of the search, the one at the chosen rate. Raises OSError before that is chosen."""
        if seed == SEARCHED:
            return self.searched(method, self.rate(method))
        return self.work / "merges" / f"{method}-seed-{seed}.lora"

    def finals(self, method: str) -> list[Path]:
        """One for each seed."""
        return [self.final(method, seed) for seed in range(self.size.seeds)]

    def score_file(self, method: str, rate: float) -> Path:
        """What the validation questions say of a rate."""
        return self.work / "search" / f"{method}-rate-{rate:g}.json"

    def rate(self, method: str) -> float:
        """The rate with the highest mean accuracy over both domains' validation questions; the lower of equals."""
        found = {rate: json.loads(self.score_file(method, rate).read_text())["mean"] for rate in sorted(self.size.rates)}
        return max(found, key=lambda rate: found[rate])

    def run(self, config: MergeConfig) -> None:
        """Merge, or go on."""
        merge(config, resume=True)

    def validate(self, method: str, rate: float) -> None:
        """Accuracy of a run of the search on the experts' own validation questions, one answer each."""
        path = self.searched(method, rate)
        config = self.config(path, tuple(GENERATORS), SEARCHED, rate, METHODS[method])
        inputs = read_inputs(config.model_copy(update={"overwrite": True}))
        backbone = load_backbone(config, inputs)
        folders = {expert.domain: expert.path for expert in inputs.experts}
        questions = load_validation(folders, limit=self.size.tune, max_new_tokens=self.size.max_new_tokens)
        made_of = identity(inputs.base, inputs.experts, config.quantize)
        setup = Setup(self.work / "search" / path.name.removesuffix(".lora"), made_of, seed=0, batch_size=64)
        contender = read_entry(str(path)).contender(among_experts=True)
        scores = {}
        for benchmark in questions:
            answers = measure(backbone, contender, benchmark, setup)
            scores[benchmark.domain] = sum(answer.score for answer in answers) / len(answers)
        row = {"method": method, "learning_rate": rate, "questions": self.size.tune, "scores": scores}
        write_json(self.score_file(method, rate), row | {"mean": sum(scores.values()) / len(scores)})

    def pieces(self) -> list[Piece]:
        """The search, then the other seeds."""
        found = []
        experts = tuple(f"{domain} {self.experts.last(domain)}" for domain in GENERATORS)
        for method, options in METHODS.items():
            for rate in self.size.rates:
                output, name = self.searched(method, rate), f"{method} at {rate:g}"
                run = self._runner(output, lambda rate=rate: rate, SEARCHED, options)
                found.append(Piece("search", name, self.kind(method), self.seconds(), _complete(output), run, experts))
                seconds = LOADING + 2 * self.size.tune * RESPONSE / SAMPLING
                done, scored = self.score_file(method, rate).is_file, partial(self.validate, method, rate)
                found.append(Piece("search", f"{name} validated", "validation", seconds, done, scored, (name,)))
        for seed in range(1, self.size.seeds):
            for method, options in METHODS.items():
                output = self.final(method, seed)
                run = self._runner(output, lambda method=method: self.rate(method), seed, options)
                needs = tuple(f"{method} at {rate:g} validated" for rate in self.size.rates)
                found.append(Piece("merges", f"{method} seed {seed}", self.kind(method), self.seconds(), _complete(output), run, needs))
        return found

    def longer(self) -> list[Piece]:
        """Merges with more steps, of one seed. From the base, where there is further to go, at the highest rate of the search."""
        more = replace(self.size, merge_steps=LONGER * self.size.merge_steps)
        found = []
        for name, (method, start) in LONGER_RUNS.items():
            made = replace(self, size=more, start=start or self.start)
            rate = (lambda: max(self.size.rates)) if start else partial(self.rate, method)
            run = made._runner(self.longer_path(name), rate, LONGER_SEED, METHODS[method])
            needs = tuple(f"{method} at {one:g} validated" for one in self.size.rates)
            found.append(
                Piece("longer", name, f"{self.kind(method)} longer", made.seconds(), _complete(self.longer_path(name)), run, needs)
            )
        return found

    def longer_path(self, name: str) -> Path:
        """One of them."""
        return self.work / "merges" / f"{name}.lora"

    def four(self) -> Piece:
        """The same with four experts; the first method at its own rate."""
        method = next(iter(METHODS))
        domains = (*GENERATORS, *FURTHER)
        needs = (*(f"{d} {self.experts.last(d)}" for d in domains), *(f"{method} at {rate:g} validated" for rate in self.size.rates))
        run = self._runner(self.four_path, lambda: self.rate(method), 0, METHODS[method], domains)
        return Piece("four", "four experts merged", "four", 2 * self.seconds(), _complete(self.four_path), run, needs)

    @property
    def four_path(self) -> Path:
        """The merge of four."""
        return self.work / "merges" / "four.lora"

    def _runner(
        self, output: Path, rate: Callable[[], float], seed: int, options: Mapping[str, Any], domains: tuple[str, ...] = tuple(GENERATORS)
    ) -> Callable[[], None]:
        return lambda: self.run(self.config(output, domains, seed, rate(), options))

    @staticmethod
    def kind(method: str) -> str:
        """The methods whose steps cost alike."""
        return method if method in ("opd", "seqkd") else "exopd"

    def seconds(self) -> float:
        """Of a merge, as planned."""
        rows = self.size.merge_steps * self.size.merge_batch
        scored = 2 * (PROMPT + RESPONSE) / FORWARD
        return LOADING + rows * (RESPONSE / SAMPLING + scored + (PROMPT + RESPONSE) / UPDATE)


def _complete(output: Path) -> Callable[[], bool]:
    return (output / MANIFEST).is_file
