"""`gopd-merge probe`: how good the target of every α is, before anything is trained.

The target q ∝ teacher^α · reference^(1−α) is sampled as it is (`distill.mixture`), on validation questions, the same for every α. What it
scores is what a student can reach that learns it whole, and where it breaks, extrapolation breaks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gopd_merge import artefacts
from gopd_merge.casting import load_roles
from gopd_merge.comparison.contenders import Field
from gopd_merge.comparison.measuring import (
    ANSWERS,
    Setup,
    answer_file,
    check_context,
    is_full,
    responding,
    scores_of_answers,
)
from gopd_merge.disk import alone, write_json
from gopd_merge.distill.backbone import Backbone
from gopd_merge.distill.mixture import Mix, expert_and_base, generate_mixture
from gopd_merge.distillation import Listener
from gopd_merge.evaluate.answers import Answer
from gopd_merge.evaluate.sandbox import check_sandbox
from gopd_merge.evaluate.statistics import Scores, scores_of, summarise
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark
from gopd_merge.evaluate.tasks import ask
from gopd_merge.evaluate.validation import load_validation
from gopd_merge.experts.base import context_length, load_tokenizer, resolve_base
from gopd_merge.experts.intake import check_mixable, read_experts
from gopd_merge.probe_config import ProbeConfig
from gopd_merge.report.document import ScalePoint
from gopd_merge.report.progress import Silent
from gopd_merge.report.scale import SCALE, scale_text
from gopd_merge.scaling.choice import NOT_CHOSEN, choose
from gopd_merge.scaling.document import scale_document
from gopd_merge.settings import identity
from gopd_merge.usage import Clock

Target = Callable[[str, float], tuple[Sequence[str], Mix]]  # domain and α -> the target's roles, and how their logits are mixed


@dataclass(frozen=True)
class Probed:
    """What the targets scored, and the α that follows for each domain; one that cannot be chosen is missing, and `why` says so."""

    points: tuple[ScalePoint, ...]
    chosen: Mapping[str, float]
    why: Mapping[str, str]


@dataclass(frozen=True)
class Probe:
    """A finished probe. `document` is what `--json` prints and scale.json holds."""

    folder: Path
    document: Mapping[str, Any]

    @property
    def picture(self) -> str:
        """The scores drawn, the choice and its reasons, as the command line prints them."""
        return scale_text(self.document)


def probe(config: ProbeConfig, command: str, listener: Listener | None = None) -> Probe:
    """Sample the targets and choose α by domain. What is answered already is not asked again.

    Raises InputError for whatever is refused before anything is loaded, GopdError where the run fails.
    """
    listener = listener or Silent()
    clock = Clock()
    experts = read_experts(config.experts, config.allow_noop)
    check_mixable(experts)
    base = resolve_base(experts, config.base, "all", config.quantize)
    folders = {e.domain: e.path for e in experts}
    questions = load_validation(folders, config.suite, config.limit, config.data, config.temperature, config.max_new_tokens)
    if any(benchmark.metric == "code_tests" for benchmark in questions):
        check_sandbox(config.unsafe_exec)
    check_context(load_tokenizer(base), context_length(base), questions)
    setup = Setup(config.output, identity(base, experts, config.quantize), config.seed, config.batch_size, config.unsafe_exec)
    for warning in (*(f"{e.name}: {text}" for e in experts for text in e.warnings), *base.warnings):
        listener.note(warning)
    with alone(setup.folder, (ANSWERS, SCALE) if config.overwrite else ()):
        listener.phase("loading the base")
        with clock.measure("load"):
            targets = sorted({target for one in experts for target in one.targets})
            backbone = load_roles(base, experts, config.quantize, config.device, max(one.rank for one in experts), targets, config.seed)
        with clock.measure("answer"):
            found = probe_on(backbone, questions, config.alphas, setup, listener)
        field = Field(entries=(), experts=tuple(experts), base=base, quantize=config.quantize)
        described = {
            "command": command,
            "inputs": field.described_inputs(),
            "base": field.described_base(),
            "environment": artefacts.environment(backbone.device),
            "seconds": clock.rounded(),
        }
        document = scale_document("probe", found.points, found.chosen, found.why, described)
        write_json(setup.folder / SCALE, document)
    return Probe(setup.folder, document)


def probe_on(
    backbone: Backbone,
    questions: Sequence[Benchmark],
    alphas: Sequence[float],
    setup: Setup,
    listener: Listener,
    target: Target = expert_and_base,
    rule: Mapping[str, Any] | None = None,
) -> Probed:
    """The same on a base that is loaded, with the experts on it; answers go to `setup.folder`/answers.

    Args:
        backbone: where all roles are that `target` names.
        questions: benchmarks of the experts' domains, see `evaluate.validation.load_validation`.
        alphas: the grid.
        setup: how all are asked; every α draws from the same generators, so that answers can be paired.
        listener: hears how far it is.
        target: what is sampled for a domain at an α, by default its expert against the base.
        rule: what `target` depends on besides these two; answers of another rule are not taken for this one's.

    Raises:
        InputError: an answer file on disk is of another run; the roles cannot share a batch.
    """
    points: list[ScalePoint] = []
    scores: dict[str, dict[float, list[Scores]]] = {}  # by domain and α, those of its benchmarks
    total = len(questions) * len(alphas)
    for benchmark in questions:
        for alpha in alphas:
            answers = _measure(
                backbone, benchmark, alpha, setup, target, rule or {}, _teller(listener, len(points), total, benchmark, alpha)
            )
            found = scores_of_answers([answers], benchmark)
            points.append(_point(benchmark, alpha, setup.seed, answers, found))
            if benchmark.metric != EXPERT_REWARD:
                scores.setdefault(benchmark.domain, {}).setdefault(alpha, []).append(found)
    choices = {domain: choose({alpha: _pooled(parts) for alpha, parts in by.items()}) for domain, by in scores.items()}
    why = dict.fromkeys((b.domain for b in questions), NOT_CHOSEN) | {domain: choice.why for domain, choice in choices.items()}
    return Probed(tuple(points), {domain: choice.alpha for domain, choice in choices.items()}, why)


def _measure(
    backbone: Backbone,
    benchmark: Benchmark,
    alpha: float,
    setup: Setup,
    target: Target,
    rule: Mapping[str, Any],
    told: Callable[[int, int], None],
) -> list[Answer]:
    """One target's answers to a benchmark; those on disk are not asked again."""
    who = {"method": "target", "parameters": {"alpha": alpha, **rule}, "sha256": None}
    file = answer_file(benchmark, setup, ANSWERS, f"target-alpha-{alpha:g}", who)
    if is_full(file, benchmark):
        return file.answers
    roles, mix = target(benchmark.domain, alpha)
    respond = responding(backbone, partial(generate_mixture, backbone, roles, mix), benchmark, setup)
    return ask(benchmark, respond, file, setup.seed, setup.batch_size, setup.unsafe_exec, told)


def _teller(listener: Listener, done: int, total: int, benchmark: Benchmark, alpha: float) -> Callable[[int, int], None]:
    return lambda here, of: listener.evaluating(done + here / of, total, f"α = {alpha:g} in {benchmark.domain}")


def _point(benchmark: Benchmark, alpha: float, seed: int, answers: Sequence[Answer], scores: Scores) -> ScalePoint:
    estimate = summarise(scores)
    return ScalePoint(
        domain=benchmark.domain,
        suite=benchmark.suite.name,
        alpha=alpha,
        seed=seed,
        n=estimate.n,
        score=estimate.score,
        low=estimate.low,
        high=estimate.high,
        metric=benchmark.metric,
        length_mean=sum(answer.length for answer in answers) / len(answers),
        length_capped=sum(answer.capped for answer in answers) / len(answers),
    )


def _pooled(parts: Sequence[Scores]) -> Scores:
    """All questions of a domain, whatever suite they are from; each was answered once."""
    ids = [id for part in parts for id in part.ids]
    return scores_of(ids, [score for part in parts for score in part.by_question])
