"""A model is asked the questions of a benchmark, and its answers are graded."""

import time
from collections.abc import Callable, Sequence

from gopd_merge.distill.rollout import Answers, row_seeds
from gopd_merge.evaluate.answers import Answer, AnswerFile
from gopd_merge.evaluate.metrics import grade_samples, load_metric
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark

# Prompts and their seeds -> their answers in order, and the rewards of these where the benchmark is open-ended.
Respond = Callable[[Sequence[str], Sequence[int]], tuple[Answers, Sequence[float] | None]]


def ask(
    benchmark: Benchmark,
    respond: Respond,
    file: AnswerFile,
    seed: int,
    batch_size: int,
    unsafe_exec: bool = False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """The benchmark's `samples` answers to each question, those that `file` lacks asked and added to it batch by batch.

    Every answer has a seed of its own, so that a run that was stopped gets the answers it would have had; it is the same for every model,
    so that their answers can be paired.
    `told` hears how many answers are there, of how many.
    """
    questions = sorted(benchmark.items, key=lambda item: (len(item.prompt), item.id))  # of like length: less padding
    metric = None if benchmark.metric == EXPERT_REWARD else load_metric(benchmark.metric)
    options = dict(benchmark.suite.metric_options) | ({"unsafe": True} if unsafe_exec and benchmark.metric == "code_tests" else {})
    asked = [(item, sample) for sample in range(benchmark.suite.samples) for item in questions]
    seeds = row_seeds(seed, benchmark.suite.name, benchmark.domain, benchmark.split, count=len(asked))
    for start in range(len(file.answers), len(asked), batch_size):
        told(start, len(asked))
        batch = asked[start : start + batch_size]
        began = time.perf_counter()
        answers, rewards = respond([item.prompt for item, _ in batch], seeds[start : start + batch_size])
        if metric is None:
            assert rewards is not None  # who asks an open-ended benchmark gives them
            scores = list(rewards)
        else:
            graded = grade_samples(metric, [item for item, _ in batch], [[text] for text in answers.texts], **options)
            scores = [float(correct) for (correct,) in graded]
        seconds = (time.perf_counter() - began) / len(batch)
        file.append(
            [
                Answer(item.id, sample, text, score, length, capped, round(seconds, 4))
                for (item, sample), text, score, length, capped in zip(
                    batch, answers.texts, scores, answers.lengths, answers.capped, strict=True
                )
            ]
        )
    told(len(asked), len(asked))
    return file.answers
