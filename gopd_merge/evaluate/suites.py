"""Suites: what a benchmark asks, how answers are sampled and how they are graded, each in a YAML file of a few lines.

`read_suite` finds one, `load_benchmarks` gets its questions. Nothing here runs code that comes with a data set.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from jinja2 import TemplateSyntaxError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gopd_merge.errors import InputError
from gopd_merge.evaluate.bundled import bundled
from gopd_merge.evaluate.items import ENVIRONMENT, METRICS, Item, make_items
from gopd_merge.evaluate.rows import choose, read_hub
from gopd_merge.prompts.files import Row, read_file

Split = Literal["test", "validation"]
EXPERT_REWARD = "expert_reward"  # an open-ended domain: how much likelier its expert finds an answer than the base does
DOMAIN = r"[A-Za-z][A-Za-z0-9_-]*"
ASKED_WITH = {"chat", "system", "temperature", "samples", "max_new_tokens", "stop"}  # with the items, what a result depends on


def _template(text: str) -> str:
    try:
        ENVIRONMENT.parse(text)
    except TemplateSyntaxError as error:
        raise ValueError(f"not a Jinja template ({error.message})") from None
    return text


Template = Annotated[str, AfterValidator(_template)]


class Described(BaseModel):
    """A part of a suite's file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Described):
    """Where the rows are: on the Hub, in a file beside the suite's, or in the experts' folders."""

    hub: str | None = None  # id of a data set
    config: str | None = None
    revision: str | None = None  # a commit, tag or branch; None is the newest
    file: Path | None = None
    expert: str | None = None  # path in an adapter's folder, with {split} in it

    @model_validator(mode="after")
    def _one_place(self) -> "Data":
        if sum(place is not None for place in (self.hub, self.file, self.expert)) != 1:
            raise ValueError("give one of hub, file and expert")
        if self.hub is None and (self.config or self.revision):
            raise ValueError("config and revision belong to hub")
        if self.expert is not None and "{split}" not in self.expert:
            raise ValueError("expert is a path with {split} in it")
        return self


class ItemTemplates(Described):
    """Fields of an item as Jinja templates over a row's columns; `chat` and the row's `index` are names that they may use too."""

    id: Template | None = None
    prompt: Template
    answer: Template | None = None
    cases: Template | None = None  # renders JSON: {{ column | tojson }}
    tests: Template | None = None
    entry_point: Template | None = None
    stub: Template | None = None  # code that the prompt wraps in words and that an answer may go on from

    @model_validator(mode="after")
    def _one_way_to_grade(self) -> "ItemTemplates":
        if sum(getattr(self, field) is not None for field in METRICS) > 1:
            raise ValueError("give at most one of answer, cases and tests")
        if (self.tests is None) != (self.entry_point is None):
            raise ValueError("tests and entry_point belong together")
        return self


class Suite(Described):
    """One benchmark. A field that a suite's file leaves out has the value given here."""

    name: str = Field(pattern=r"^\w[\w.+-]*$")
    about: str
    licence: str
    domain: str | None = Field(default=None, pattern=f"^{DOMAIN}$")  # None: a benchmark for each expert, on its own domain
    data: Data
    splits: dict[Split, str] = {}  # in the syntax of `datasets`; none: as the rows' own `split` says, see `choose`
    tune_on: str | None = None  # a suite whose validation split serves for one that has none
    item: ItemTemplates | None = None  # None: the rows are items already, {"prompt", "answer" | "cases" | "tests" and "entry_point"}
    keep: Template | None = None  # a condition on a row: {{ column == 1 }}; None: all rows
    skip: dict[str, str] = {}  # items that no answer can pass: id -> why
    metric: Literal["math_answer", "function_cases", "code_tests", "expert_reward"] | None = None  # None: the one that the items are for
    metric_options: dict[str, Any] = {}
    chat: bool = True  # prompts go through the base's chat template, if it has one
    system: str | None = None  # what the chat's system says
    temperature: float = Field(default=1.0, ge=0)  # 0 is greedy
    samples: int = Field(default=1, ge=1)  # k answers to each question; the score is their mean
    max_new_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()  # texts at which an answer ends, not part of it

    @model_validator(mode="after")
    def _fits_together(self) -> "Suite":
        if (self.domain is None) != (self.data.expert is not None):
            raise ValueError("a suite has a domain, or the experts' own data")
        if self.data.hub is not None and ("test" not in self.splits or self.item is None):
            raise ValueError("data from the Hub needs splits with a test, and the templates of an item")
        if self.tune_on is not None and "validation" in self.splits:
            raise ValueError("tune_on is for a suite that has no validation split")
        if self.metric is None and self.metric_options:
            raise ValueError("metric_options need a metric by name")
        if "" in self.stop:
            raise ValueError("an empty stop text would end every answer")
        if self.system is not None and not self.chat:
            raise ValueError("a system text needs chat: true")
        return self


@dataclass(frozen=True)
class Benchmark:
    """The questions of one split of a suite, for one domain."""

    suite: Suite
    domain: str
    split: Split
    items: tuple[Item, ...]
    metric: str
    version: str  # sha256 of all that a score depends on but the limit; scores of two versions cannot be compared
    limit: int | None  # the first so many of a fixed shuffle; None: all


def suite_names() -> list[str]:
    """The suites that come with the program."""
    return sorted(path.stem for path in bundled("suites").glob("*.yaml"))


def read_suite(name: str) -> Suite:
    """A bundled suite by its name, one of the user's by the path of its YAML file, or `DOMAIN=FILE` with questions of the user's own.

    Such a file has one JSON object a line: `prompt`, and `answer`, `cases`, or `tests` with `entry_point`; `id` and `split` (test or
    validation) if wanted. Without `split`, one question in five, by the hash of its prompt, is for validation, the others are
    the test. Raises InputError, one line.
    """
    if name in suite_names():
        return _read(bundled("suites") / f"{name}.yaml")
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name))
    domain, _, file = name.partition("=")
    if re.fullmatch(DOMAIN, domain) and file:
        return Suite(
            name=re.sub(r"^\W|[^\w.+-]", "_", Path(file).name),
            about=f"Questions of the user's own, {Path(file).name}; unless its lines name a split, a fifth is kept for validation",
            licence="the user's",
            domain=domain,
            data=Data(file=Path(file)),
        )
    raise InputError(f"{name}: no such suite; use {', '.join(suite_names())}, a suite's .yaml file, or DOMAIN=FILE.jsonl")


def tuning_suite(suite: Suite) -> Suite | None:
    """The suite whose validation split coefficients are chosen on: its own or `tune_on`; None where there is none."""
    if suite.tune_on is not None:
        return read_suite(suite.tune_on)
    return suite if "validation" in suite.splits or not suite.splits else None


def load_benchmarks(
    suite: Suite, split: Split, experts: Mapping[str, Path], data: Path | None = None, limit: int | None = None
) -> list[Benchmark]:
    """The questions of a suite: one benchmark, or one for each of the `experts` (domain -> folder) where it asks their own.

    `data` is a file to use instead of the suite's: rows with the columns of its data set, or with `prompt` and what they are graded
    by. With a limit, each benchmark holds the first so many of a shuffle by the hash of the ids, whatever the order of the file.
    Raises InputError, one line.
    """
    if suite.data.expert is not None:
        if data is not None:
            raise InputError(f"{data}: the suite {suite.name} asks the experts' own questions; give a file of others as DOMAIN={data}")
        benchmarks = []
        for domain in sorted(experts):
            path = experts[domain] / suite.data.expert.format(split=split)
            if not path.is_file():
                problem = f"{path} is missing, and the suite {suite.name} asks each expert's own questions"
                raise InputError(f"{problem}; name a file of questions with {domain}=FILE.jsonl instead")
            benchmarks.append(_benchmark(suite, domain, split, read_file(path), limit))
        return benchmarks
    if suite.domain is None:
        raise ValueError("a suite without a domain asks the experts' own questions")
    return [_benchmark(suite, suite.domain, split, _rows(suite, split, data), limit)]


def _rows(suite: Suite, split: Split, data: Path | None) -> list[Row]:
    expression = suite.splits.get(split)
    if suite.splits and expression is None:
        other = f"its questions for tuning are those of {suite.tune_on}" if suite.tune_on else f"it has {', '.join(suite.splits)}"
        raise InputError(f"{suite.name}: has no {split} split; {other}")
    path = data or suite.data.file
    if path is not None:
        rows = read_file(path)
        if suite.item is None:  # a bad line, or an id that is there twice, is refused whatever its split
            make_items(rows, None, None, suite.name, suite.metric, suite.chat)
        return choose(path, rows, split, expression)
    if suite.data.hub is None or expression is None:
        raise ValueError("a suite without data")
    return read_hub(suite.name, suite.data.hub, suite.data.config, suite.data.revision, expression)


def _benchmark(suite: Suite, domain: str, split: Split, rows: Sequence[Row], limit: int | None) -> Benchmark:
    templates = None if suite.item is None else suite.item.model_dump(exclude_none=True)
    prefix = f"{suite.name}/{split}" if suite.domain is not None else f"{suite.name}/{domain}/{split}"
    items = make_items(rows, templates, suite.keep, prefix, suite.metric, suite.chat)
    items = tuple(item for item in items if item.id not in suite.skip)
    if not items:
        raise InputError(f"{suite.name}: all {len(rows)} questions of its {split} split are left out; correct its keep and skip")
    metric = suite.metric or METRICS[items[0].graded_by or ""]
    content = {
        "benchmark": [suite.name, domain, split],
        "metric": [metric, suite.metric_options],
        "asked": suite.model_dump(mode="json", include=ASKED_WITH),
        "items": [item.model_dump(mode="json", exclude_none=True) for item in items],
    }
    version = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if limit is not None:
        items = tuple(sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:limit])
    return Benchmark(suite, domain, split, items, metric, version, limit)


def _read(path: Path) -> Suite:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); name a suite's YAML file, or one of {', '.join(suite_names())}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"{path}: not valid YAML{where}; see the suites in {bundled('suites')}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the fields of a suite, found {type(content).__name__}; see those in {bundled('suites')}")
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the suite"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {field}: {message}; see the suites in {bundled('suites')}") from None
    if suite.data.file is None:
        return suite
    return suite.model_copy(update={"data": suite.data.model_copy(update={"file": path.parent / suite.data.file})})
