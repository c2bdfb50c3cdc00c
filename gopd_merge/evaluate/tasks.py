"""A benchmark: questions of one domain, asked of a model and graded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gopd_merge.distill.rollout import Answers
from gopd_merge.evaluate.graders import Question, grade_all
from gopd_merge.evaluate.statistics import Result, wilson_interval

Respond = Callable[[Sequence[str]], Answers]  # prompts -> their answers, in order


@dataclass(frozen=True)
class Task:
    """Questions of one domain. Every model is asked the same ones in the same order, so that results can be paired."""

    domain: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Outcome:
    """What one model did on a task; entry i speaks of question i."""

    correct: tuple[bool, ...]
    lengths: tuple[int, ...]  # tokens
    capped: tuple[bool, ...]


def ask(task: Task, respond: Respond, batch_size: int, unsafe_exec: bool = False) -> Outcome:
    """One answer to each question. Programs in the answers run in the sandbox, or in none with `unsafe_exec`."""
    correct: list[bool] = []
    lengths: list[int] = []
    capped: list[bool] = []
    for start in range(0, len(task.questions), batch_size):
        questions = task.questions[start : start + batch_size]
        answers = respond([question.prompt for question in questions])
        correct += grade_all(questions, answers.texts, unsafe_exec)
        lengths += answers.lengths
        capped += answers.capped
    return Outcome(tuple(correct), tuple(lengths), tuple(capped))


def result_row(suite: str, outcome: Outcome, **described: Any) -> Result:
    """The row of one outcome, with its 95 % interval over questions. `described` gives the fields that the outcome does not."""
    n, correct = len(outcome.correct), sum(outcome.correct)
    low, high = wilson_interval(correct, n)
    return Result(
        suite=suite,
        n=n,
        k=1,
        score=correct / n,
        low=low,
        high=high,
        length_mean=sum(outcome.lengths) / n,
        length_capped=sum(outcome.capped) / n,
        **described,
    )
