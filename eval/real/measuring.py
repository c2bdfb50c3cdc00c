"""What everybody is worth: base, experts, static merges that were tuned, and all seeds of every trained method, on the same questions."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data import GENERATORS, SUITES
from experts import Experts, described
from merges import METHODS, Merges
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
            if not (target / kind / file.name).exists():
                os.link(file, target / kind / file.name)


@dataclass(frozen=True)
class Measuring:
    """`compare` on all of them, in pieces: what one call has answered, the next finds on disk."""

    work: Path
    size: Size
    experts: Experts
    merges: Merges
    files: Mapping[str, str]  # local files of public suites
    public: bool
    temperature: float
    output: Path

    @property
    def folder(self) -> Path:
        """Of the answers."""
        return self.work / "evaluation" / f"temperature-{self.temperature:g}"

    @property
    def suites(self) -> tuple[str, ...]:
        """The experts' own questions come last: those that share its validation questions are asked with its limit of tokens."""
        return (*(str(SUITES[name]) for name in (SUITES if self.public else ())), "own")

    def compare(
        self, adapters: Sequence[Path], rivals: Sequence[str], suites: Sequence[str] | None = None, folder: Path | None = None
    ) -> Evaluation:
        """These adapters beside base, experts and these static merges."""
        config = CompareConfig(
            adapters=tuple(map(str, adapters)), suite=tuple(suites or self.suites), data=self.files if self.public else {}, seed=0,
            rivals=tuple(rivals) or "none", limit=self.size.limit, tune_limit=self.size.tune, output=folder or self.folder, batch_size=64,
            temperature=self.temperature, quantize="none",
        )  # fmt: skip
        with Progress() as listener:
            return compare(config, COMMAND, listener)

    def finals(self) -> list[Path]:
        """The runs that count, the headline's first."""
        return [path for method in METHODS for path in self.merges.finals(method)]

    def measure(self, method: str, seed: int) -> None:
        """One trained merge; with the first of all, base and experts too."""
        self._beside(f"{method}-{seed}", self.merges.final(method, seed), ())

    def tune(self, rival: str) -> None:
        """One static merge: its grid on validation questions, its best on the test."""
        self._beside(rival, self.merges.final(next(iter(METHODS)), 0), (rival,))

    def _beside(self, name: str, adapter: Path, rivals: Sequence[str]) -> None:
        """In a folder of its own, as one process at a time writes in a folder; only whole files come back from it."""
        own = self.folder / "pieces" / name
        link_answers(self.folder, own)
        self.compare([adapter], rivals, folder=own)
        link_answers(own, self.folder)
        self._note(name)

    def conclude(self) -> None:
        """All of them in one document; the results that are committed are it, without the answers and the curves."""
        found = self.compare(self.finals(), STATIC_RIVALS)
        made = {
            domain: {r: described(self.experts.path(domain, r)) for r in dict.fromkeys(("sft", self.experts.last(domain)))}
            for domain in GENERATORS
        }
        kept = {key: value for key, value in found.document.items() if key not in ("samples", "curves")}
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
        write_json(self.output, kept | {"study": study})
        self._note("all")

    def conclude_four(self) -> None:
        """The merge of four beside its experts and their tuned static merges, on the experts' own questions."""
        found = self.compare([self.merges.four_path], ("average", "task_arithmetic", "ties"), ("own",), self.work / "evaluation" / "four")
        output = self.output.with_name(f"{self.output.stem}_four.json")
        write_json(output, {key: value for key, value in found.document.items() if key not in ("samples", "curves")})
        self._note("four")

    def four(self) -> Piece:
        """Four experts, measured."""
        tokens = 4 * (8 * self.size.limit + 25 * self.size.tune) * RESPONSE
        return Piece(
            "four", "four experts measured", "four measured", LOADING + tokens / SAMPLING, self._mark("four").is_file, self.conclude_four,
            ("four experts merged",),
        )  # fmt: skip

    def pieces(self) -> list[Piece]:
        """By method and seed, then by rival, then the whole."""
        asked = self.size.limit * RESPONSE / SAMPLING * (2 + (2 * len(SUITES) if self.public else 0))
        at = f"at temperature {self.temperature:g}"
        first, found = next(iter(METHODS)), []
        for seed in range(self.size.seeds):
            for method in METHODS:
                needs = (f"{method} seed {seed}",) if seed else tuple(f"{method} at {rate:g} validated" for rate in self.size.rates)
                needs += (f"{first} seed 0 measured {at}",) if found else ()  # it asks base and experts too
                run = partial(self.measure, method, seed)
                found.append(self._piece(f"{method} seed {seed} measured {at}", "answers", asked, run, f"{method}-{seed}", needs))
        for rival in STATIC_RIVALS:
            seconds = asked + len(RIVALS[rival].grid) * 2 * self.size.tune * RESPONSE / SAMPLING
            needs = (f"{first} seed 0 measured {at}",)
            found.append(self._piece(f"{rival} tuned {at}", rival, seconds, partial(self.tune, rival), rival, needs))
        names = tuple(piece.name for piece in found)
        whole = Piece("report", f"conclusions {at}", "conclusions", 60, self._mark("all").is_file, self.conclude, names)
        return [*found, whole]

    def _piece(self, name: str, kind: str, seconds: float, run: Callable[[], None], mark: str, needs: tuple[str, ...]) -> Piece:
        return Piece("measure", name, kind, LOADING + seconds, self._mark(mark).is_file, run, needs)

    def _mark(self, name: str) -> Path:
        return self.folder / "done" / name

    def _note(self, name: str) -> None:
        """That a piece is done: its answers alone do not say so."""
        self._mark(name).parent.mkdir(parents=True, exist_ok=True)
        self._mark(name).touch()
