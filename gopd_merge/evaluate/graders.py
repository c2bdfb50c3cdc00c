"""Is an answer right? A final number, or a small function that is run on hidden cases."""

import ast
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

from simpleeval import EvalWithCompoundTypes

FINAL = "####"  # what comes before the final answer, as in GSM8K
FUNCTIONS = {"sum": sum, "len": len, "max": max, "min": min, "sorted": sorted, "abs": abs}
LONGEST_PROGRAM = 2000  # characters


class Case(Protocol):
    """f(*args) must equal `expected`."""

    @property
    def args(self) -> list[Any]: ...
    @property
    def expected(self) -> Any: ...


class Question(Protocol):
    """What a prompt must have to be graded: an `answer`, or `cases`."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def cases(self) -> Sequence[Case] | None: ...


def grade(question: Question, response: str) -> bool:
    """Whether the response is right, by the question's `answer` if it has one, else by its `cases`."""
    if question.answer is not None:
        return final_answer_equals(response, question.answer)
    return passes_cases(response, question.cases or ())


def final_answer_equals(response: str, answer: str) -> bool:
    """Whether the first line after the last #### is the answer, compared as a number where both are numbers."""
    _, marker, given = response.rpartition(FINAL)
    if not marker:
        return False
    given, answer = (text.strip().split("\n")[0].strip().replace(",", "") for text in (given, answer))
    try:
        return Fraction(given) == Fraction(answer)
    except (ValueError, ZeroDivisionError):
        return given == answer != ""


def passes_cases(response: str, cases: Sequence[Case]) -> bool:
    """Whether the response is a straight-line Python function that gives the expected value in every case.

    Nothing is executed as Python: the function is parsed, and its assignments and its return are evaluated by simpleeval
    with list operations and a handful of built-in functions. A loop, an import, an attribute or any other
    statement makes the answer wrong.
    """
    try:
        function = _parse(response)
        return bool(cases) and all(_same(function(*case.args), case.expected) for case in cases)
    except Exception:
        return False  # whatever a wrong program does, it is wrong


def _same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and found == expected


def _parse(text: str) -> Callable[..., Any]:
    if len(text) > LONGEST_PROGRAM:
        raise ValueError("too long")
    (definition,) = ast.parse(text.strip()).body
    if not isinstance(definition, ast.FunctionDef):
        raise ValueError("not a function")
    names = [argument.arg for argument in definition.args.args]
    *assignments, last = definition.body
    if not isinstance(last, ast.Return) or last.value is None:
        raise ValueError("no return at the end")
    targets = []
    for statement in assignments:
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(statement.targets[0], ast.Name):
            raise ValueError("not a plain assignment")
        targets.append((statement.targets[0].id, ast.unparse(statement.value)))
    result = ast.unparse(last.value)

    def run(*args: Any) -> Any:
        values = dict(zip(names, args, strict=True))
        for name, expression in targets:
            values[name] = _evaluate(expression, values)
        return _evaluate(result, values)

    return run


def _evaluate(expression: str, values: dict[str, Any]) -> Any:
    return EvalWithCompoundTypes(names=values, functions=FUNCTIONS).eval(expression)
