"""Is an answer right? A final answer, a small function evaluated on hidden cases, or a program that is run in the sandbox with tests."""

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simpleeval import EvalWithCompoundTypes

from gopd_merge.evaluate.final_answer import LONGEST_ANSWER, final_answer, plain_number
from gopd_merge.evaluate.formulas import SECONDS, Pair, equal_formulas
from gopd_merge.evaluate.sandbox import Program, run_programs

FUNCTIONS = {"sum": sum, "len": len, "max": max, "min": min, "sorted": sorted, "abs": abs}
LONGEST_PROGRAM = 2000  # characters
END_OF_TEXT = 2000  # characters in which an answer without a marker and a box is looked for
FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


class Case(Protocol):
    """f(*args) must equal `expected`."""

    @property
    def args(self) -> list[Any]: ...
    @property
    def expected(self) -> Any: ...


class Question(Protocol):
    """What a prompt must have to be graded: an `answer`, or `cases`, or `tests` of the function `entry_point`."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def cases(self) -> Sequence[Case] | None: ...
    @property
    def tests(self) -> str | Sequence[str] | None: ...
    @property
    def entry_point(self) -> str | None: ...
    @property
    def stub(self) -> str | None: ...


def grade(question: Question, response: str, final: str = "any", unsafe_exec: bool = False) -> bool:
    """Whether one response is right, by the question's `answer` if it has one, else its `cases`, else its `tests`.

    `final` says where an answer stands: see `final_answer`. Raises InputError where tests find no sandbox. For many responses at once
    there are the metrics, which are quicker.
    """
    if question.answer is not None:
        return answers_equal([response], [question.answer], final)[0]
    if question.cases is not None:
        return passes_cases(response, question.cases)
    return run_programs([program_of(question, response)], unsafe=unsafe_exec)[0].passed


def program_of(question: Question, response: str) -> Program:
    """What a response to a question with tests stands for: the whole function, or the body that goes on where the prompt's code ends."""
    if question.tests is None or question.entry_point is None:
        raise ValueError("a question without tests and entry_point")
    tests = question.tests if isinstance(question.tests, str) else "\n".join(question.tests)
    prelude = question.prompt if _defines(question.prompt, question.entry_point) else ""
    blocks = FENCE.findall(response)
    whole = re.compile(rf"^(async\s+)?def\s+{re.escape(question.entry_point)}\b", re.MULTILINE)
    code = next((text for text in [*blocks, response] if whole.search(text)), None)
    if code is None:  # a body; what follows it at the margin is the model going on with something else
        body = blocks[0] if blocks else response
        code = re.split(r"\n(?=[^\s#])", "\n" + body)[0] if body[:1].isspace() else body
    return Program(f"{prelude}\n{code}", question.entry_point, tests, prelude)


def _defines(text: str, name: str) -> bool:
    """Whether the text, which is the benchmark's and not a model's, is Python that defines the function."""
    try:
        return any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False


def answers_equal(responses: Sequence[str], answers: Sequence[str], final: str = "any", seconds: float = SECONDS) -> list[bool]:
    """Whether the final answer of each response is mathematically the one that stands at its place in `answers`.

    `final` says where it is: see `final_answer`. With "any" it may also be what math-verify takes for the answer near the end of the text.
    Plain numbers are compared exactly; all else, and a fraction with what is not equal to it, by `equal_formulas`, in `seconds` each.
    """
    verdicts: list[bool | None] = []
    pairs = {}
    for index, (response, answer) in enumerate(zip(responses, answers, strict=True)):
        given = final_answer(response, final)
        verdict = _equal_plain(given or "", answer)
        if verdict is None and (given or final == "any"):
            pairs[index] = Pair(given, answer) if given else Pair(response[-END_OF_TEXT:], answer, is_text=True)
        verdicts.append(verdict)
    for index, equal in zip(pairs, equal_formulas(list(pairs.values()), seconds), strict=True):
        verdicts[index] = equal
    return [bool(verdict) for verdict in verdicts]


def _equal_plain(given: str, answer: str) -> bool | None:
    """Whether they are equal, where that can be told without algebra."""
    if len(given) > LONGEST_ANSWER or not answer.strip():
        return False
    numbers = plain_number(given), plain_number(answer)
    if None in numbers:
        return None
    if numbers[0] == numbers[1]:
        return True
    return None if "/" in given + answer else False  # 0.333333 is as good as 1/3


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
