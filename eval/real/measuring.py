"""What everybody is worth: base, experts, static merges that were tuned, and all seeds of every trained method, on the same questions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import GENERATORS, SUITES
from experts import Experts, described
from merges import METHODS, Merges
from pieces import Piece
from sizes import LOADING, RESPONSE, SAMPLING, Size

from gopd_merge.comparison.run import compare
from gopd_merge.disk import write_json
from gopd_merge.eval_config import STATIC_RIVALS, CompareConfig
from gopd_merge.experts.static import RIVALS
from gopd_merge.report.progress import Progress

COMMAND = "python eval/real/study.py"
LOCK = "evaluation"  # one process at a time writes there


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

    def compare(self, adapters: Sequence[Path], rivals: Sequence[str]) -> Any:
        """These adapters beside base, experts and these static merges."""
        config = CompareConfig(
            adapters=tuple(map(str, adapters)), suite=self.suites, data={n: f for n, f in self.files.items() if self.public}, seed=0,
            rivals=tuple(rivals) or "none", limit=self.size.limit, tune_limit=self.size.tune, output=self.folder, batch_size=64,
            temperature=self.temperature, quantize="none",
        )  # fmt: skip
        with Progress() as listener:
            return compare(config, COMMAND, listener)

    def finals(self) -> list[Path]:
        """The runs that count, the headline's first."""
        return [path for method in METHODS for path in self.merges.finals(method)]

    def measure(self, method: str, seed: int) -> None:
        """One trained merge; with the first of all, base and experts too."""
        self.compare([self.merges.final(method, seed)], ())
        write_json(self._mark(f"{method}-{seed}"), {"adapter": self.merges.final(method, seed).name})

    def tune(self, rival: str) -> None:
        """One static merge: its grid on validation questions, its best on the test."""
        self.compare([self.merges.final(next(iter(METHODS)), 0)], (rival,))
        write_json(self._mark(rival), {"rival": rival})

    def conclude(self) -> None:
        """All of them in one document; the results that are committed are it, without the answers and the curves."""
        found = self.compare(self.finals(), STATIC_RIVALS)
        made = {domain: {recipe: described(self.experts.path(domain, recipe)) for recipe in ("sft", "rlvr")} for domain in GENERATORS}
        kept = {key: value for key, value in found.document.items() if key not in ("samples", "curves")}
        study = {
            "data": json.loads((self.work / "data" / "data.json").read_text())["domains"],
            "experts": made,
            "learning_rates": {method: self.merges.rate(method) for method in METHODS},
            "search": [json.loads(path.read_text()) for path in sorted((self.work / "search").glob("*.json"))],
        }
        write_json(self.output, kept | {"study": study})

    def pieces(self) -> list[Piece]:
        """By method and seed, then by rival, then the whole."""
        asked = self.size.limit * (RESPONSE / SAMPLING) * (2 + (len(SUITES) if self.public else 0) * 2)
        found = []
        for seed in range(self.size.seeds):
            for method in METHODS:
                needs = (f"{method} seed {seed}",) if seed else tuple(f"{method} at {rate:g} validated" for rate in self.size.rates)
                found.append(self._piece(f"{method} seed {seed} measured", "answers", asked, lambda m=method, s=seed: self.measure(m, s), f"{method}-{seed}", needs))
        first = next(iter(METHODS))
        for rival in STATIC_RIVALS:
            seconds = asked + len(RIVALS[rival].grid) * 2 * self.size.tune * RESPONSE / SAMPLING
            needs = (f"{first} seed 0 measured at temperature {self.temperature:g}",)
            found.append(self._piece(f"{rival} tuned", rival, seconds, lambda r=rival: self.tune(r), rival, needs))
        names = tuple(piece.name for piece in found)
        whole = Piece("report", f"conclusions at temperature {self.temperature:g}", "conclusions", 60.0, self.output.is_file, self.conclude, names, LOCK)
        return [*found, whole]

    def _piece(self, name: str, kind: str, seconds: float, run: Any, mark: str, needs: tuple[str, ...]) -> Piece:
        return Piece("measure", f"{name} at temperature {self.temperature:g}", kind, LOADING + seconds, self._mark(mark).is_file, run, needs, LOCK)

    def _mark(self, name: str) -> Path:
        return self.folder / "done" / f"{name}.json"
