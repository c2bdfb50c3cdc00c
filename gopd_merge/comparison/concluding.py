"""What follows from the answers: the merge against its best rivals, results with intervals, and the document of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopd_merge.comparison.document import comparison_document
from gopd_merge.comparison.judging import Judged
from gopd_merge.comparison.lineup import Lineup
from gopd_merge.comparison.measuring import Setup, result, scores
from gopd_merge.evaluate.statistics import Comparison, Result, paired, with_holm
from gopd_merge.evaluate.suites import Benchmark
from gopd_merge.report.document import RESULTS, checked_document
from gopd_merge.report.text import markdown_text, terminal_text


@dataclass(frozen=True)
class Evaluation:
    """What was found. `document` is what `--json` prints and `gopd-merge report` reads."""

    folder: Path
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    document: Mapping[str, Any]

    @property
    def table(self) -> str:
        """The results as the command line prints them."""
        return terminal_text(checked_document(self.document, self.folder / RESULTS))

    @property
    def markdown(self) -> str:
        """The same for a model card."""
        return markdown_text(checked_document(self.document, self.folder / RESULTS))


def conclude(
    lineup: Lineup,
    test: Sequence[Benchmark],
    validation: Sequence[Benchmark],
    setup: Setup,
    described: Mapping[str, Any],
    judged: Judged | None = None,
) -> Evaluation:
    """Every method's results, and the headline's comparisons, with Holm's correction over all of them and the judge's."""
    results = [result(group, benchmark, setup.seed) for group in lineup.methods for benchmark in test]
    compared = [
        paired(
            scores(lineup.headline, benchmark),
            scores(rival, benchmark),
            suite=benchmark.suite.name,
            domain=benchmark.domain,
            method=lineup.headline[0].contender.method,
            rival=rival[0].contender.method,
            rival_is=rival_is,
        )
        for benchmark in test
        if lineup.headline is not None
        for rival_is, rival in lineup.against(benchmark).items()
    ]
    compared = with_holm([*compared, *(judged.comparisons if judged else ())])
    about = lineup.headline[0].contender if lineup.headline else lineup.measured[-1].contender
    document = comparison_document(lineup.measured, about, results, compared, test, lineup.tuned, validation, described)
    if judged:
        document["judge"] = judged.document()
    return Evaluation(setup.folder, tuple(results), tuple(compared), document)
