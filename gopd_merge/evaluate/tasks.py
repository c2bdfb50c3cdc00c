"""A model is asked the questions of a benchmark, and its answers are graded."""

import hashlib
import time
from collections.abc import Callable, Sequence

import torch

from gopd_merge.distill.rollout import Answers
from gopd_merge.evaluate.answers import Answer, AnswerFile
from gopd_merge.evaluate.metrics import grade_samples, load_metric
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark

# Prompts -> their answers in order, and the rewards of these where the benchmark is open-ended.
Respond = Callable[[Sequence[str]], tuple[Answers, Sequence[float] | None]]


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

    Every batch draws from a generator of its own seed, so that a run that was stopped gets the answers it would have had.
    `told` hears how many answers are there, of how many.
    """
    questions = sorted(benchmark.items, key=lambda item: (len(item.prompt), item.id))  # of like length: less padding
    metric = None if benchmark.metric == EXPERT_REWARD else load_metric(benchmark.metric)
    options = dict(benchmark.suite.metric_options) | ({"unsafe": True} if unsafe_exec and benchmark.metric == "code_tests" else {})
    asked = [(item, sample) for sample in range(benchmark.suite.samples) for item in questions]
    for start in range(len(file.answers), len(asked), batch_size):
        told(start, len(asked))
        batch = asked[start : start + batch_size]
        began = time.perf_counter()
        torch.manual_seed(batch_seed(seed, benchmark, start))
        answers, rewards = respond([item.prompt for item, _ in batch])
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


def batch_seed(seed: int, benchmark: Benchmark, start: int) -> int:
    """Of the batch that begins with answer `start`: the same for every model, so that their answers can be paired."""
    text = f"{seed} {benchmark.suite.name} {benchmark.domain} {benchmark.split} {start}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
