"""Items: the questions of a benchmark, out of the rows of its data."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, Template, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError

from gopd_merge.errors import InputError
from gopd_merge.prompts.files import Row
from gopd_merge.prompts.sources import Prompt

METRICS = {"answer": "math_answer", "cases": "function_cases", "tests": "code_tests"}  # what an item is graded by -> the metric
GRADED_BY = {metric: field for field, metric in METRICS.items()}
HOW_GRADED = 'give each row an "answer", "cases", or "tests" and "entry_point"'


class Item(Prompt):
    """A question: the prompt as the model gets it, and what its answers are graded by."""

    id: str

    @property
    def graded_by(self) -> str | None:
        """The field that its answers are graded by; None where it has none."""
        return next((field for field in METRICS if getattr(self, field) is not None), None)


def called_function(code: str, tests: str | Sequence[str]) -> str:
    """The first function that the tests call and the code defines. Raises ValueError where there is none."""
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    tree = ast.parse(tests if isinstance(tests, str) else "\n".join(tests))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(call.func, ast.Name) and call.func.id in defined:
            return call.func.id
    raise ValueError("the tests call no function that the code defines")


# Templates come from files that people hand to each other, so they reach no Python internals and change no row.
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
ENVIRONMENT.globals["called_function"] = called_function


def make_items(
    rows: Sequence[Row], templates: Mapping[str, str] | None, keep: str | None, prefix: str, metric: str | None, chat: bool
) -> tuple[Item, ...]:
    """The items of a split, in the order of its rows. Raises InputError, one line, at the first row that is none.

    `templates` maps fields of an item to Jinja templates over a row's columns, its number from 0 as `index`, and `chat`; with None
    the rows are items already. Rows for which the template `keep` does not render True are left out. An item without an id is called
    `prefix`/index. `metric` is what all must be gradable by: a metric's name, "expert_reward" for no grading at all, or None for the
    metric of the first item.
    """
    compiled = {name: ENVIRONMENT.from_string(text) for name, text in (templates or {}).items()}
    condition = {} if keep is None else {"keep": ENVIRONMENT.from_string(keep)}
    items: dict[str, Item] = {}
    for index, row in enumerate(rows):
        extra = {"index": index, "chat": chat}
        if condition and _render(row, condition, extra)["keep"].strip() != "True":
            continue
        fields = _render(row, compiled, extra) if compiled else row.values
        item = _item(row.where, {"id": f"{prefix}/{index}"} | fields)
        metric = metric or METRICS.get(item.graded_by or "")
        _check(row.where, item, metric)
        if item.id in items:
            raise InputError(f"{row.where}: the id {item.id} is that of an earlier row; give each row one of its own")
        items[item.id] = item
    return tuple(items.values())


def _render(row: Row, templates: Mapping[str, Template], extra: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, template in templates.items():
        try:
            text = template.render({**row.values, **extra})
            fields[name] = json.loads(text) if name == "cases" else text
        except UndefinedError as error:
            missing = re.fullmatch(r"'(\w+)' is undefined", str(error))
            problem = f"the column {missing[1]} is missing or null" if missing else str(error)
            raise InputError(f"{row.where}: {problem}, its {name} needs it; the row has {', '.join(row.values)}") from None
        except Exception as error:  # a template may call any method of any value
            problem = f"its {name} cannot be made ({' '.join(str(error).split())[:120]})"
            raise InputError(f"{row.where}: {problem}; check the row, and the suite's template") from None
    return fields


def _item(where: str, fields: Mapping[str, Any]) -> Item:
    try:
        return Item.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {name}: {first['msg']}; {HOW_GRADED}, beside a prompt") from None


def _check(where: str, item: Item, metric: str | None) -> None:
    """Raises InputError when the item cannot be asked or graded."""
    if not item.prompt.strip():
        raise InputError(f"{where}: the prompt is empty; remove the row")
    try:
        item.model_dump_json()
    except ValueError as error:  # half of a surrogate pair, which JSON can spell and no tokenizer can read
        raise InputError(f"{where}: not text ({' '.join(str(error).split())[:120]}); correct or remove the row") from None
    if metric == "expert_reward":
        return
    field = None if metric is None else GRADED_BY[metric]
    if field is None or getattr(item, field) is None:
        raise InputError(f"{where}: has no {field or 'answer, cases or tests'} to grade by; {HOW_GRADED}, the same for all")
    value = getattr(item, field)
    if not (value.strip() if isinstance(value, str) else value):
        raise InputError(f"{where}: its {field} is empty; remove the row, or give it one")
    if metric == "code_tests" and not (item.entry_point or "").isidentifier():
        raise InputError(f"{where}: has tests but no entry_point; add the name of the function that they call")
