"""Metrics: what `evaluate.load` finds in eval/metrics, how they are asked, and pass@k."""

import atexit
import functools
import json
import math
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gopd_merge.errors import InputError
from gopd_merge.evaluate.bundled import bundled
from gopd_merge.evaluate.graders import Question

if TYPE_CHECKING:
    from evaluate import EvaluationModule


def load_metric(name: str) -> "EvaluationModule":
    """A metric of ours by its name, or one of yours by its folder, which holds a script of the folder's name. Never from the network.

    Its predictions and references stay in memory. Raises InputError when there is no such metric.
    """
    folder = Path(name) if "/" in name else bundled("metrics") / name
    script = folder.resolve() / f"{folder.resolve().name}.py"
    if not script.is_file():
        known = ", ".join(sorted(path.name for path in bundled("metrics").iterdir() if path.is_dir() and path.name[0] not in "_."))
        raise InputError(f"metric {name}: {script} is missing; name one of {known}, or the folder of your own")
    import evaluate  # here because it imports torch

    if not _writable(Path(evaluate.config.HF_MODULES_CACHE)):  # evaluate imports a copy of the script from there
        evaluate.config.HF_MODULES_CACHE = Path(_temporary_folder())
    return evaluate.load(str(script.parent), keep_in_memory=True, cache_dir=_temporary_folder())


def grade_samples(
    metric: "EvaluationModule", questions: Sequence[Question], texts: Sequence[Sequence[str]], **options: Any
) -> list[list[bool]]:
    """Whether each answer is right: texts[i][j], and entry [i][j] of the result, is sample j of question i.

    `options` are the metric's own. Raises InputError where programs are to be run and find no sandbox.
    """
    result = metric.compute(
        predictions=[[_storable(text) for text in samples] for samples in texts],
        references=[reference(question) for question in questions],
        **options,
    )
    correct: list[list[bool]] = result["correct"]
    return correct


def reference(question: Question) -> str:
    """What a metric grades a question by, as JSON: what there is of `answer`, `cases`, and `tests` with `entry_point` and `prompt`."""
    fields: dict[str, Any] = {}
    if question.answer is not None:
        fields["answer"] = question.answer
    if question.cases is not None:
        fields["cases"] = [{"args": case.args, "expected": case.expected} for case in question.cases]
    if question.tests is not None:
        fields |= {"tests": question.tests, "entry_point": question.entry_point, "prompt": question.stub or question.prompt}
    return json.dumps(fields)


def scores(predictions: Sequence[Sequence[str]], correct: Iterable[bool], k: Sequence[int]) -> dict[str, Any]:
    """What our metrics return: the mean of each "pass@k" over the questions, and "correct" as [question][sample].

    `correct` holds the verdicts of all samples of the first question, then those of the second and so on.
    Raises InputError when there is no question or a question has fewer than k samples.
    """
    if not predictions:
        raise InputError(f"predictions: {len(predictions)} questions; give one list of answers for each question, and a question at least")
    verdicts = iter(correct)
    grouped = [[next(verdicts) for _ in samples] for samples in predictions]
    counts, samples = [sum(row) for row in grouped], [len(row) for row in grouped]
    return {f"pass@{size}": statistics.fmean(pass_at_k(counts, samples, size)) for size in k} | {"correct": grouped}


def pass_at_k(correct_counts: Sequence[int], samples: Sequence[int], k: int) -> list[float]:
    """For each question, the unbiased estimate of the probability that one of k answers or more is right.

    1 - C(n - c, k) / C(n, k) with c right ones of n samples (Chen et al. 2021, arXiv 2107.03374, equation 1).
    Raises InputError when k is not in 1…n.
    """
    if k < 1 or k > min(samples):
        raise InputError(f"pass@{k}: the fewest samples of a question are {min(samples)}; sample more often, or choose k from 1 to that")
    return [1 - math.comb(n - c, k) / math.comb(n, k) for c, n in zip(correct_counts, samples, strict=True)]


def _storable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which Arrow refuses; a model's bytes need not be UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="gopd-metrics-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
