"""The comparison document (`evaluation/results.json`): what it holds, and reading it with one clear line for whatever is wrong. No torch.

The models here are the JSON form. A row of `results` is a `gopd_merge.evaluate.statistics.Result` written as JSON, a row of `comparisons` a
`Comparison`. Fields that are not named here are kept as they are, so that a document passes through unharmed.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gopd_merge.errors import InputError
from gopd_merge.evaluate.statistics import is_better

SCHEMA, KIND = 1, "comparison"
EVALUATION, RESULTS = "evaluation", "results.json"  # a folder in that of a merged adapter, and the file in it
AGAIN = "write it again with gopd-merge compare"

Key = tuple[str, str]  # (suite, domain): one benchmark
Who = tuple[str, float | None, str]  # method, α and parameters: what tells one row of a table from another


class Part(BaseModel):
    """A part of the document. Infinite and NaN numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Played(Part):
    """Something that one method did. Where `parameters` are missing, reading takes those of the first method of that name and α."""

    method: str
    alpha: float | None = None
    parameters: dict[str, Any] | None = None

    @property
    def who(self) -> Who:
        """Which method it was, apart from the seed."""
        return self.method, self.alpha, json.dumps(self.parameters or {}, sort_keys=True)


P = TypeVar("P", bound=Played)


class Headline(Played):
    """The method that the document is about."""

    alpha: float | None


class Suite(Part):
    """One benchmark and how it was asked."""

    suite: str
    domain: str
    version: str  # sha256 of its questions and settings
    metric: str
    about: str | None = None
    licence: str | None = None
    split: str
    n: int
    k: int
    temperature: float
    max_new_tokens: int
    stop: tuple[str, ...] | None = None
    chat: Any = None
    tuned_on: str | None = None

    @property
    def key(self) -> Key:
        """What its rows are found by."""
        return self.suite, self.domain


class Cost(Part):
    """What a method took. `tokens` are those of training, tuning and answering together."""

    train_seconds: float | None = None
    tune_seconds: float | None = None
    answer_seconds: float | None = None
    tune_answers: int | None = None
    answers: int | None = None
    tokens: int | None = None
    device: str | None = None


class Method(Played):
    """What was measured: one adapter, or weight arithmetic on the experts."""

    label: str
    kind: str  # base, expert, static or trained
    lost: float | None = None  # share of a merge's squared norm that does not fit into an adapter
    sha256: str | None = None
    adapter: str | None = None
    cost: Cost | None = None


class ResultRow(Played):
    """One score with its 95 % interval over questions: `statistics.Result` as JSON."""

    suite: str
    domain: str
    parameters: dict[str, Any] | None
    alpha: float | None
    split: str
    seed: int | None  # null: the mean over `seeds`
    seeds: tuple[int, ...] = ()
    seed_sd: float | None = None
    n: int
    k: int
    temperature: float
    metric: str
    score: float
    low: float
    high: float
    length_mean: float
    length_capped: float
    empty: float

    @property
    def key(self) -> Key:
        """Its benchmark."""
        return self.suite, self.domain


class ComparisonRow(Played):
    """A paired difference with its 95 % interval: `statistics.Comparison` as JSON.

    `alpha`, `parameters` and `seeds` say which merge was compared; they are filled in by reading, from the document's headline.
    """

    suite: str
    domain: str
    seeds: tuple[int, ...] = ()
    rival: str
    rival_is: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str

    @property
    def key(self) -> Key:
        """Its benchmark."""
        return self.suite, self.domain

    @property
    def better(self) -> bool:
        """Whether the interval is above zero and chance is unlikely after Holm's correction."""
        return is_better(self.low, self.p_holm)

    @property
    def worse(self) -> bool:
        """The same below zero."""
        return is_better(-self.high, self.p_holm)


class Tuned(Part):
    """One point of the grid that a rival was tuned over, on validation questions."""

    method: str
    parameters: dict[str, Any]
    suite: str
    domain: str
    n: int
    score: float
    chosen: bool


class CurveRow(Part):
    """One step: a line of metrics.jsonl. What a domain has no number for is null or missing."""

    step: int
    domains: dict[str, dict[str, float | None]] = {}


class Curve(Played):
    """The metrics of one training run."""

    label: str
    alpha: float | None
    seed: int | None = None
    rows: tuple[CurveRow, ...]


class Answer(Played):
    """What one method wrote. `length` in tokens; `correct` true, false, or a score."""

    text: str
    correct: bool | float
    length: int
    capped: bool = False


class Sample(Part):
    """A question and what the methods answered."""

    suite: str
    domain: str
    id: str
    prompt: str
    reference: str | None = None
    answers: tuple[Answer, ...]


class ScalePoint(Part):
    """One α on validation questions: the target itself where it was probed, a short merge where it was swept."""

    domain: str
    suite: str
    alpha: float = Field(ge=0)
    learning_rate: float | None = None  # of the merge; null for the target, which has no training
    steps: int | None = None
    full_steps: int | None = None  # of the merge that a sweep's short one stands for
    rung: int | None = None  # of a sweep, from 1
    seed: int | None = None
    n: int
    score: float
    low: float
    high: float
    metric: str
    length_mean: float  # tokens
    length_capped: float  # share of answers that the length limit cut
    entropy: float | None = None  # nats per token

    @property
    def key(self) -> Key:
        """Its benchmark."""
        return self.suite, self.domain


class Document(Part):
    """A whole comparison."""

    version: int = Field(alias="schema")
    kind: str
    output: str | None = None
    headline: Headline
    suites: tuple[Suite, ...]
    methods: tuple[Method, ...]
    results: tuple[ResultRow, ...] = Field(min_length=1)
    comparisons: tuple[ComparisonRow, ...] = ()
    tuning: tuple[Tuned, ...] = ()
    curves: tuple[Curve, ...] = ()
    samples: tuple[Sample, ...] = ()
    scale: tuple[ScalePoint, ...] = ()  # what was known about α before the merge; the rest of it is in the next four
    scale_made_by: Literal["probe", "sweep"] = "probe"
    chosen: dict[str, float] = {}  # α by domain
    chosen_options: dict[str, float] = {}  # of a sweep: learning_rate, steps
    why: dict[str, str] = {}
    inputs: dict[str, dict[str, Any]] = {}
    base: dict[str, Any] = {}
    config: dict[str, Any] | None = None
    command: str | None = None
    seconds: dict[str, float] = {}
    environment: dict[str, Any] = {}

    def title(self, key: Key) -> str:
        """The benchmark's name for people: its domain, and its suite where the domain has several."""
        suite, domain = key
        shared = sum(s.domain == domain for s in self.suites) > 1
        return f"{domain} ({suite})" if shared else domain


def read_document(path: Path) -> Document:
    """The comparison in a file, or in the folder of a merged adapter.

    Raises InputError where the file is missing, is not JSON, is another kind of document, is newer than this program, or lacks something.
    """
    path = locate(path)
    try:
        data = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; measure the merge first with gopd-merge compare") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON document ({error}); {AGAIN}") from None
    return checked_document(data, path)


def locate(path: Path) -> Path:
    """The results of a run: the file itself, or where they are in the folder of a merge or of an evaluation."""
    if not path.is_dir():
        return path
    return path / RESULTS if (path / RESULTS).is_file() else path / EVALUATION / RESULTS


def checked_document(data: Any, path: Path) -> Document:
    """The comparison that JSON holds; `path` is named where it does not. Raises InputError as `read_document`."""
    found = data.get("kind") if isinstance(data, dict) else type(data).__name__
    if found != KIND:
        raise InputError(f"{path}: its kind is {found!r}, expected {KIND!r}; name the results.json that gopd-merge compare wrote")
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(f"{path}: schema {schema}, this program reads up to {SCHEMA}; update gopd-merge")
    try:
        return _with_compared(Document.model_validate(_readable(data)))
    except ValidationError as error:
        first, count = error.errors()[0], error.error_count()
        place = ".".join(map(str, first["loc"]))
        rest = f" (and {count - 1} more)" if count > 1 else ""
        raise InputError(f"{path}: {place}: {first['msg']}{rest}; {AGAIN}") from None


def json_document(document: Document) -> str:
    """The document as JSON, with what reading filled in."""
    return json.dumps(document.model_dump(by_alias=True, mode="json"), indent=1, ensure_ascii=False) + "\n"


def _readable(value: Any) -> Any:
    """The same without half surrogate pairs, which no UTF-8 file can hold; JSON can write them as \\ud800."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return value


def _with_compared(document: Document) -> Document:
    """Say of everything which parameters it had, and in every comparison of the headline which merge it is about."""
    known = {(row.method, row.alpha): row.parameters for row in reversed(document.results)}

    def named(part: P) -> P:
        missing = "parameters" not in part.model_fields_set
        return part.model_copy(update={"parameters": known.get((part.method, part.alpha))}) if missing else part

    headline = named(document.headline)
    rows = [row for row in document.results if row.who == headline.who]
    seeds = max((r.seeds or ((r.seed,) if r.seed is not None else ()) for r in rows), key=len, default=())
    about = {"alpha": headline.alpha, "parameters": headline.parameters, "seeds": seeds}
    return document.model_copy(
        update={
            "headline": headline,
            "comparisons": tuple(
                c.model_copy(update=about) if c.method == headline.method and not c.seeds else named(c) for c in document.comparisons
            ),
            "curves": tuple(map(named, document.curves)),
            "samples": tuple(s.model_copy(update={"answers": tuple(map(named, s.answers))}) for s in document.samples),
        }
    )
