"""Who stands against whom: the merge, the experts, and the rivals that count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gopd_merge.comparison.measuring import Measured, by_method, key_of, scores
from gopd_merge.comparison.tuning import Tuned, best_static
from gopd_merge.eval_config import OPD
from gopd_merge.evaluate.statistics import difference_interval
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark
from gopd_merge.report.lines import difference_text
from gopd_merge.report.terminal import label_of

Seeds = Sequence[Measured]  # of one method
OTHER_TRAINING = ("seqkd", "sft", "rkl", "alternate")  # what a merge could have been trained by instead


@dataclass(frozen=True)
class Lineup:
    """Who was measured, and who stands against whom."""

    measured: Sequence[Measured]
    methods: Sequence[Seeds]
    headline: Seeds | None  # the merge that it is about
    experts: Mapping[str, Seeds]  # by domain
    rivals: Mapping[str, Seeds]  # what a rival is, such as "best static merge" -> the rival
    tuned: Sequence[Tuned]

    def against(self, benchmark: Benchmark) -> dict[str, Seeds]:
        """The headline's rivals on a benchmark: the expert that is best there, which is not always the domain's own, and those of all.

        It is the best by the very test scores: that can only favour the rival.
        """
        key = key_of(benchmark)

        def score(expert: Seeds) -> float:
            return sum(answer.score for answer in expert[0].answers[key])

        experts = {"best expert": max(self.experts.values(), key=score)} if self.experts else {}
        return {**experts, **self.rivals}


def idle_teachers(lineup: Lineup, benchmarks: Sequence[Benchmark]) -> list[str]:
    """A sentence for each expert that is not clearly better than the base in its own domain: α > 1 amplifies what else it learned."""
    base = [one for one in lineup.measured if one.contender.kind == "base"]
    said = []
    for benchmark in benchmarks:
        teacher = lineup.experts.get(benchmark.domain)
        if not teacher or not base or teacher[0].contender.home is not None:  # on another base it has another reference
            continue
        gains = scores(teacher, benchmark).by_question - scores(base, benchmark).by_question
        gain = (float(gains.mean()), *difference_interval(gains))
        if gain[1] <= 0:
            text = difference_text(gain, benchmark.metric != EXPERT_REWARD)
            said.append(
                f"{benchmark.domain}: on {len(gains):,} questions of {benchmark.suite.name} its expert is not clearly better than the base "
                f"({text}); where a teacher has nothing to teach, α > 1 amplifies its side effects"
            )
    return said


def line_up(measured: Sequence[Measured], tuned: Sequence[Tuned], validation: Sequence[Benchmark]) -> Lineup:
    """The first merge by extrapolation against the best static merge, chosen on validation questions, OPD and other trained methods.

    Where there is none it is about the first by another method, and about OPD, which is trained here as a rival, only where that is all.
    """
    methods = by_method(measured)
    merges = [group for group in methods if group[0].contender.kind == "trained"]
    places = dict.fromkeys(OTHER_TRAINING, 1) | {OPD: 2}
    headline = min(merges, key=lambda group: places.get(group[0].contender.method, 0), default=None)
    named = {group[0].contender.method: group for group in reversed(methods)}  # the first of each
    rivals = {}
    if static := best_static(tuned, validation):
        method = static.contender.method
        rivals["best static merge" if len(tuned) > 1 else label_of(method, None)] = named[method]
    if OPD in named and headline is not named[OPD]:
        rivals["α = 1"] = named[OPD]
    for method in OTHER_TRAINING:
        if method in named and headline is not named[method]:
            rivals[label_of(method, None)] = named[method]
    experts = {name.removeprefix("expert:"): group for name, group in named.items() if name.startswith("expert:")}
    return Lineup(measured, methods, headline, experts, rivals, tuned)
