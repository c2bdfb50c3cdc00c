"""A benchmark: questions of one domain, asked of a model and graded."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gopd_merge.distill.rollout import Answers
from gopd_merge.evaluate.graders import Question, grade_all
from gopd_merge.evaluate.statistics import Result, scores_of, summarise

Respond = Callable[[Sequence[str]], Answers]  # prompts -> their answers, in order


@dataclass(frozen=True)
class Task:
    """Questions of one domain. Every model is asked the same ones in the same order, so that results can be paired."""

    domain: str
    questions: tuple[Question, ...]

    @property
    def metric(self) -> str:
        """What grades the answers, by what the first question brings."""
        first = self.questions[0]
        return "math_answer" if first.answer is not None else "function_cases" if first.cases is not None else "code_tests"


@dataclass(frozen=True)
class Outcome:
    """What one model did on a task; entry i speaks of question i."""

    correct: tuple[bool, ...]
    lengths: tuple[int, ...]  # tokens
    capped: tuple[bool, ...]
    empty: tuple[bool, ...]  # no word in the answer


def ask(task: Task, respond: Respond, batch_size: int, unsafe_exec: bool = False) -> Outcome:
    """One answer to each question. Programs in the answers run in the sandbox, or in none with `unsafe_exec`."""
    correct: list[bool] = []
    lengths: list[int] = []
    capped: list[bool] = []
    empty: list[bool] = []
    for start in range(0, len(task.questions), batch_size):
        questions = task.questions[start : start + batch_size]
        answers = respond([question.prompt for question in questions])
        correct += grade_all(questions, answers.texts, unsafe_exec)
        lengths += answers.lengths
        capped += answers.capped
        empty += [not text.strip() for text in answers.texts]
    return Outcome(tuple(correct), tuple(lengths), tuple(capped), tuple(empty))


def result_row(suite: str, outcome: Outcome, seed: int, **described: Any) -> Result:
    """The row of one outcome, with its 95 % interval over questions. `described` gives the fields that the outcome does not."""
    n = len(outcome.correct)
    found = summarise(scores_of([str(index) for index in range(n)], outcome.correct))
    return Result(
        suite=suite,
        seed=seed,
        seeds=[seed],
        length_mean=sum(outcome.lengths) / n,
        length_capped=sum(outcome.capped) / n,
        empty=sum(outcome.empty) / n,
        **asdict(found),
        **described,
    )
