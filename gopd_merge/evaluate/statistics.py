"""Intervals, paired tests and the rows in which every measurement is kept. No torch.

Two kinds of chance are kept apart. Intervals and tests speak of other *questions* of the same suite: the question is the unit that is
resampled, and its samples and seeds are averaged first. What another *seed* would change stands beside them as `seed_sd`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are first named: `stats` takes half a second
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 4999  # of a bootstrap
FLIPS = 9999  # of a permutation test: exact for up to 13 questions that differ, as 2¹³ < 9999
MCNEMAR, PERMUTATION = "exact McNemar", "permutation"
BATCH = 500  # resamples made at once: bounds memory


@dataclass(frozen=True)
class Result:
    """One score, in the schema of everything that is measured (`--json`, merge.json, eval/results). Null where a field does not apply."""

    suite: str
    domain: str
    method: str  # base, expert:<domain>, average, task_arithmetic, opd, exopd, …
    parameters: dict[str, Any] | None
    alpha: float | None
    split: str
    seed: int | None  # null for the mean over `seeds`
    seeds: list[int]
    seed_sd: float | None  # standard deviation of the score over seeds
    n: int  # questions
    k: int  # samples per question and seed
    temperature: float
    metric: str
    score: float
    low: float  # 95 % over questions, see `summarise`
    high: float
    length_mean: float  # tokens
    length_capped: float  # share of answers that the length limit cut
    empty: float  # share of answers without a word


@dataclass(frozen=True)
class Comparison:
    """Is `method` better than `rival` on the same questions?"""

    suite: str
    domain: str
    method: str
    rival: str
    rival_is: str  # what the rival stands for: "best expert", "best static merge", "average"
    n: int  # questions
    difference: float  # of scores, method minus rival
    low: float  # 95 % over questions
    high: float
    p: float  # two-sided, of this comparison alone
    p_holm: float  # corrected for all comparisons of its family, see `with_holm`; until then equal to p
    test: str

    @property
    def better(self) -> bool:
        """Whether more than chance speaks for the method: by the interval and by the corrected test."""
        return is_better(self.low, self.p_holm)

    @property
    def worse(self) -> bool:
        """Whether more than chance speaks against the method."""
        return is_better(-self.high, self.p_holm)


@dataclass(frozen=True)
class Scores:
    """Every answer's score of one method on one suite, questions in the order of their ids. Made by `scores_of`."""

    ids: tuple[str, ...]
    values: NDArray[np.float64]  # (seeds, questions, samples)
    are_shares: bool  # in [0, 1]; else any numbers, such as log-likelihood ratios

    @property
    def by_question(self) -> NDArray[np.float64]:
        """Mean score of each question over its seeds and samples, (questions,)."""
        return np.asarray(self.values.mean(axis=(0, 2)))

    @property
    def is_one_verdict_each(self) -> bool:
        """Whether each question was answered once, right or wrong."""
        seeds, _, samples = self.values.shape
        return seeds == samples == 1 and bool(np.isin(self.values, (0, 1)).all())


@dataclass(frozen=True)
class Estimate:
    """A score with its two uncertainties; fields as in `Result`."""

    score: float
    low: float
    high: float
    seed_sd: float | None
    n: int
    k: int


def scores_of(ids: Sequence[str], *seeds: ArrayLike, are_shares: bool = True) -> Scores:
    """`Scores` from one array a seed, (questions,) or (questions, samples), row i of question `ids[i]`.

    Raises ValueError where ids repeat, shapes disagree, a share is not in [0, 1], or a score is not finite.
    """
    arrays = [np.asarray(seed, dtype=np.float64) for seed in seeds]
    values = np.stack([array[:, None] if array.ndim == 1 else array for array in arrays])
    if values.ndim != 3 or values.shape[1] != len(ids) or values.size == 0:
        raise ValueError(f"scores of shape {values.shape} for {len(ids)} questions; give one row a question and one array a seed")
    if len(set(ids)) != len(ids):
        raise ValueError(f"{len(ids)} questions with {len(set(ids))} different ids; an id must name one question")
    if not np.isfinite(values).all() or (are_shares and not ((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"scores from {values.min()} to {values.max()}; they must be shares from 0 to 1")
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    return Scores(tuple(ids[i] for i in order), values[:, order], are_shares)


def summarise(scores: Scores) -> Estimate:
    """Mean score with its 95 % interval over questions: Wilson's for one verdict a question, the bootstrap's for other shares.

    For numbers that are no shares it is Student's t-interval. Raises ValueError where there is only one such number.
    """
    seeds, n, k = scores.values.shape
    score = float(scores.by_question.mean())
    if not scores.are_shares:
        low, high = t_interval(scores.by_question)
    elif scores.is_one_verdict_each:
        low, high = wilson_interval(round(score * n), n)
    else:
        low, high = bootstrap_interval(scores.by_question)
    seed_sd = float(scores.values.mean(axis=(1, 2)).std(ddof=1)) if seeds > 1 else None
    return Estimate(score, low, high, seed_sd, n, k)


def is_better(low: float, p_holm: float) -> bool:
    """The one rule for the word: the interval of the difference, from `low` on, excludes zero, and so does the corrected test."""
    return low > 0 and p_holm < 1 - CONFIDENCE


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's score interval)."""
    interval = scipy.stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def t_interval(by_question: ArrayLike) -> tuple[float, float]:
    """95 % interval of the mean of numbers, one a question (Student's t). Raises ValueError for less than two."""
    values = np.asarray(by_question, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"{len(values)} question; an interval needs two")
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def bootstrap_interval(by_question: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of scores in [0, 1], one a question, by resampling questions.

    One right and one wrong question are added first, as Agresti and Caffo (2000) do for shares. Without them the interval of scores
    near 1 is far too narrow, and has no width where all questions score alike; with hundreds of questions they hardly count.
    `eval/interval_coverage.py` compares this with the bare percentile and BCa intervals.
    """
    return _percentiles(np.concatenate([np.asarray(by_question, dtype=np.float64), [0.0, 1.0]]), seed)


def difference_interval(differences: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of paired differences in [-1, 1], one a question, by resampling questions.

    Where all are equal to d, resampling knows no other value: then a share of questions up to Wilson's bound for none seen in n is
    allowed to differ from d by the most that is possible, 1 + |d|. With few questions that differ the interval is too narrow (see
    `eval/interval_coverage.py`), so nothing is called better by it without the test.
    """
    values = np.asarray(differences, dtype=np.float64)
    if np.ptp(values) > 0:
        return _percentiles(values, seed)
    half = wilson_interval(0, len(values))[1] * (1 + abs(values[0]))
    return max(-1.0, float(values[0] - half)), min(1.0, float(values[0] + half))


def paired(ours: Scores, theirs: Scores, *, suite: str, domain: str, method: str, rival: str, rival_is: str) -> Comparison:
    """Method against rival, question by question; the numbers of seeds and samples of the two may differ.

    Exact McNemar for one verdict a question, else a permutation test. Raises ValueError unless both answered the same questions.
    """
    if ours.ids != theirs.ids:
        odd = sorted(set(ours.ids) ^ set(theirs.ids))
        raise ValueError(
            f"{method} and {rival} on {suite}: {len(odd)} questions that only one answered, {odd[0]!r} first; ask both the same"
        )
    differences = ours.by_question - theirs.by_question
    if all(scores.are_shares and scores.is_one_verdict_each for scores in (ours, theirs)):
        test, p = MCNEMAR, mcnemar_p(ours.by_question > 0, theirs.by_question > 0)
    else:
        test, p = PERMUTATION, permutation_p(differences)
    low, high = difference_interval(differences)
    return Comparison(suite, domain, method, rival, rival_is, len(differences), float(differences.mean()), low, high, p, p, test)


def sign_test_p(values: ArrayLike) -> float:
    """Two-sided exact p that wins (above 0) and losses (below 0) are equally likely; ties do not speak."""
    signs = np.sign(np.asarray(values))
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    return float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def mcnemar_p(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided exact p that two methods are equally good, from paired verdicts: only questions where they differ speak."""
    return sign_test_p(np.asarray(first, dtype=float) - np.asarray(second, dtype=float))


def permutation_p(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p that paired differences (questions,) lie around zero: each question's sign is flipped at random.

    That is exact if method and rival are exchangeable in each question, and close for many questions if only their means agree (as when
    one was sampled more often). All sign patterns are tried where there are few; else no p is below 2 / (FLIPS + 1).
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.abs(values) > 1e-12]  # a zero has no sign to flip; equal means differ by rounding
    if len(values) < 2:  # of one question, both signs are as far from zero
        return 1.0
    rng = np.random.default_rng(seed)
    result = scipy.stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=FLIPS, batch=BATCH, vectorized=True, rng=rng
    )
    return float(result.pvalue)


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with `p_holm` filled in. Give all that are read together: the family is what was given."""
    corrected = holm([c.p for c in comparisons])
    return [replace(c, p_holm=p) for c, p in zip(comparisons, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _percentiles(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=BATCH, vectorized=True, confidence_level=CONFIDENCE, method="percentile", rng=rng
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
