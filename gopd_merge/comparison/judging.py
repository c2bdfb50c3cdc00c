"""A judge's verdicts on open-ended answers, as comparisons beside those by score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gopd_merge.comparison.lineup import Lineup
from gopd_merge.comparison.measuring import Measured, Setup, key_of
from gopd_merge.distillation import Listener
from gopd_merge.evaluate.judge import Judge, Judgement, Pair, judge_pairs
from gopd_merge.evaluate.statistics import Comparison, difference_interval, sign_test_p
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark

JUDGED, SIGN_TEST = "judged", "sign test"


@dataclass(frozen=True)
class Judged:
    """All verdicts of a run."""

    model: str
    judgements: tuple[Judgement, ...]
    comparisons: tuple[Comparison, ...]  # not yet corrected for their number

    def document(self) -> dict[str, Any]:
        """How far the judge can be trusted: how often the order alone decided, and how often it said nothing readable."""
        n = len(self.judgements)
        unreadable = sum("unreadable" in (j.forward, j.backward) for j in self.judgements)
        return {"model": self.model, "pairs": n, "swayed": sum(j.swayed for j in self.judgements), "unreadable": unreadable}


def judge_all(judge: Judge, lineup: Lineup, benchmarks: Sequence[Benchmark], setup: Setup, listener: Listener) -> Judged:
    """The merge's first answer against that of each rival, on every question of the open-ended benchmarks.

    The difference is the share of questions won in both orders minus the share lost in both; its p is the exact sign test's.
    """
    judgements: list[Judgement] = []
    comparisons = []
    for benchmark in benchmarks:
        if benchmark.metric != EXPERT_REWARD or lineup.headline is None:
            continue
        for rival_is, rival in lineup.against(benchmark).items():
            found = _judge_pair(judge, lineup.headline[0], rival[0], benchmark, setup, listener)
            values = [judgement.value for judgement in found]
            p = sign_test_p(values)
            low, high = difference_interval(values)
            comparisons.append(
                Comparison(
                    suite=benchmark.suite.name,
                    domain=f"{benchmark.domain}, {JUDGED}",
                    method=found[0].method,
                    rival=found[0].rival,
                    rival_is=rival_is,
                    n=len(values),
                    difference=sum(values) / len(values),
                    low=low,
                    high=high,
                    p=p,
                    p_holm=p,
                    test=SIGN_TEST,
                )
            )
            judgements += found
    return Judged(judge.model, tuple(judgements), tuple(comparisons))


def _judge_pair(judge: Judge, ours: Measured, theirs: Measured, benchmark: Benchmark, setup: Setup, listener: Listener) -> list[Judgement]:
    key = key_of(benchmark)
    first = [{answer.id: answer.text for answer in one.answers[key] if answer.sample == 0} for one in (ours, theirs)]
    pairs: list[Pair] = [(item.id, item.prompt, first[0][item.id], first[1][item.id]) for item in benchmark.items]
    file = setup.folder / JUDGED / f"{'.'.join(key)}.{ours.contender.slug}.{theirs.contender.slug}.jsonl"
    label = f"judging {ours.contender.method} and {theirs.contender.method} on {benchmark.domain}"
    return judge_pairs(
        judge, pairs, ours.contender.method, theirs.contender.method, file, lambda done, total: listener.evaluating(done, total, label)
    )
