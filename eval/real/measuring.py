"""What everybody is worth: base, experts, static merges that were tuned, and all seeds of every trained method, on the same questions."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data import GENERATORS, SUITES
from experts import Experts, described
from merges import LONGER_RUNS, METHODS, Merges
from pieces import Piece
from sizes import LOADING, RESPONSE, SAMPLING, Size

from gopd_merge.comparison.concluding import Evaluation
from gopd_merge.comparison.measuring import ANSWERS, TUNING
from gopd_merge.comparison.run import compare
from gopd_merge.disk import write_json
from gopd_merge.eval_config import STATIC_RIVALS, CompareConfig
from gopd_merge.experts.static import RIVALS
from gopd_merge.report.progress import Progress

COMMAND = "python eval/real/study.py"


def link_answers(source: Path, target: Path) -> None:
    """Every file of answers of one folder into another that does not have it, at once and whole."""
    for kind in (ANSWERS, TUNING):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for file in (source / kind).glob("*.jsonl"):
            with suppress(FileExistsError):  # another process may be as far
                os.link(file, target / kind / file.name)


def committed(found: Evaluation) -> dict[str, Any]:
    """The results that are committed: the document without the answers and the curves."""
    return {key: value for key, value in found.document.items() if key not in ("samples", "curves")}


@dataclass(frozen=True)
class Measuring:
    """`compare` on all of them, in pieces: what one call has answered, the next finds on disk."""

    work: Path
    size: Size
    experts: Experts
    merges: Merges
    files: Mapping[str, str]  # local files of public suites
    temperature: float
    output: Path

    @property
    def folder(self) -> Path:
        """Of the answers."""
        return self.work / "evaluation" / f"temperature-{self.temperature:g}"

    def suites(self, public: bool) -> tuple[str, ...]:
        """The experts' own questions come last: those that share its validation questions are asked with its limit of tokens."""
        return (*(str(SUITES[name]) for name in (SUITES if public else ())), "own")

    def compare(self, adapters: Sequence[Path], rivals: Sequence[str], public: bool = False, folder: Path | None = None) -> Evaluation:
        """These adapters beside base, experts and these static merges."""
        config = CompareConfig(
            adapters=tuple(map(str, adapters)), suite=self.suites(public), data=self.files if public else {}, seed=0,
            rivals=tuple(rivals) or "none", limit=self.size.limit, tune_limit=self.size.tune, output=folder or self.folder, batch_size=64,
            temperature=self.temperature, quantize="none",
        )  # fmt: skip
        with Progress() as listener:
            return compare(config, COMMAND, listener)

    def finals(self) -> list[Path]:
        """The runs that count, the headline's first."""
        return [path for method in METHODS for path in self.merges.finals(method)]

    def ask(self, name: str, adapter: Callable[[], Path], rivals: Sequence[str], public: bool) -> None:
        """An adapter, and a static merge after the search for its coefficients; with the first of all, base and experts too.

        In a folder of its own, as one process at a time writes in a folder; only whole files come back from it.
        """
        own = self.folder / "pieces" / name
        link_answers(self.folder, own)
        self.compare([adapter()], rivals, public, own)
        link_answers(own, self.folder)
        self._note(name)

    def conclude(self, name: str, public: bool) -> None:
        """All of them in one document, with how they were made."""
        found = self.compare(self.finals(), STATIC_RIVALS, public)
        made = {
            domain: {r: described(self.experts.path(domain, r)) for r in dict.fromkeys(("sft", self.experts.last(domain)))}
            for domain in GENERATORS
        }
        study = {
            "data": json.loads((self.work / "data" / "data.json").read_text())["domains"],
            "experts": made,
            "budget": {
                "steps": self.size.merge_steps,
                "batch_size": self.size.merge_batch,
                "start": self.merges.start,
                "tune": self.size.tune,
            },
            "learning_rates": {method: self.merges.rate(method) for method in METHODS},
            "search": [json.loads(path.read_text()) for path in sorted((self.work / "search").glob("*.json"))],
        }
        write_json(self.output, committed(found) | {"study": study})
        self._note(name)

    def conclude_further(self, name: str, adapters: Sequence[Path], rivals: Sequence[str]) -> None:
        """A document of its own, on the experts' own questions, of merges that are not of the study's budget."""
        found = self.compare(adapters, rivals, folder=self.work / "evaluation" / name)
        output = self.output.with_name(f"{self.output.stem}_{name}.json")
        write_json(output, committed(found))
        self._note(name)

    def longer(self) -> Piece:
        """The merges with more steps beside what the study answered already."""

        def run() -> None:
            link_answers(self.folder, self.work / "evaluation" / "longer")
            self.conclude_further("longer", [self.merges.longer_path(name) for name in LONGER_RUNS], STATIC_RIVALS)

        seconds = LOADING + len(LONGER_RUNS) * 2 * self.size.limit * RESPONSE / SAMPLING
        needs = (*LONGER_RUNS, self.pieces()[-1].name)
        return Piece("longer", "longer merges measured", "longer measured", seconds, self._mark("longer").is_file, run, needs)

    def four(self) -> Piece:
        """Four experts, measured, with their tuned static merges."""
        seconds = LOADING + 4 * (8 * self.size.limit + 25 * self.size.tune) * RESPONSE / SAMPLING
        run = partial(self.conclude_further, "four", [self.merges.four_path], ("average", "task_arithmetic", "ties"))
        needs = ("four experts merged",)
        return Piece("four", "four experts measured", "four measured", seconds, self._mark("four").is_file, run, needs)

    def pieces(self, public: bool = False) -> list[Piece]:
        """By method and seed, then by rival, then the whole: on the experts' own questions, or on the public ones besides."""
        stage, where = ("public", "on public questions") if public else ("measure", "on their own questions")
        asked = self.size.limit * RESPONSE / SAMPLING * (2 * len(SUITES) if public else 2)
        at = f"{where} at temperature {self.temperature:g}"
        first, found = next(iter(METHODS)), list[Piece]()

        def add(who: str, kind: str, seconds: float, adapter: Callable[[], Path], rivals: Sequence[str], needs: tuple[str, ...]) -> None:
            """`adapter` is found when it is asked: which run is meant is known only after the search."""
            mark, before = f"{who.replace(' ', '-')}-{stage}", (found[0].name,) if found else ()  # the first asks base and experts too
            run = partial(self.ask, mark, adapter, rivals, public)
            done = self._mark(mark).is_file
            found.append(Piece(stage, f"{who} {at}", kind, LOADING + seconds, done, run, (*needs, *before)))

        for seed in range(self.size.seeds):
            for method in METHODS:
                needs = (f"{method} seed {seed}",) if seed else tuple(f"{method} at {rate:g} validated" for rate in self.size.rates)
                add(f"{method} seed {seed} measured", f"answers {stage}", asked, partial(self.merges.final, method, seed), (), needs)
        for rival in STATIC_RIVALS:
            tuned = 0 if public else len(RIVALS[rival].grid) * 2 * self.size.tune * RESPONSE / SAMPLING
            add(f"{rival} tuned", f"{rival} {stage}", asked + tuned, partial(self.merges.final, first, 0), (rival,), ())
        names = tuple(piece.name for piece in found)
        mark = f"{self.size.seeds}-seeds-{stage}"
        run = partial(self.conclude, mark, public)
        return [
            *found,
            Piece("public" if public else "report", f"conclusions {at}", "conclusions", 60, self._mark(mark).is_file, run, names),
        ]

    def _mark(self, name: str) -> Path:
        return self.folder / "done" / name

    def _note(self, name: str) -> None:
        """That a piece is done: its answers alone do not say so."""
        self._mark(name).parent.mkdir(parents=True, exist_ok=True)
        self._mark(name).touch()
