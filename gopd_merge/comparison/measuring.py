"""Contenders answer benchmarks on one loaded base; their answers become results and comparisons."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gopd_merge.comparison.contenders import Contender
from gopd_merge.distill.backbone import Backbone, expert
from gopd_merge.distill.rollout import Answers, Format, Rollout, answers, generate, prompt_lengths
from gopd_merge.distill.target import mean_rewards
from gopd_merge.distillation import Listener
from gopd_merge.errors import InputError
from gopd_merge.evaluate.answers import Answer, AnswerFile
from gopd_merge.evaluate.statistics import Result, Scores, scores_of, summarise
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark
from gopd_merge.evaluate.tasks import Respond, ask

ANSWERS, TUNING = "answers", "tuning"
Key = tuple[str, str]  # suite and domain


@dataclass(frozen=True)
class Setup:
    """How everybody is asked: the same for all, so that answers can be paired."""

    folder: Path  # for the files of answers
    base: Mapping[str, Any]  # what identifies it, for the files
    seed: int
    batch_size: int
    unsafe_exec: bool = False


@dataclass(frozen=True)
class Measured:
    """What a contender answered, by benchmark."""

    contender: Contender
    answers: Mapping[Key, Sequence[Answer]]


def key_of(benchmark: Benchmark) -> Key:
    """What a benchmark is found by."""
    return benchmark.suite.name, benchmark.domain


def measure(
    backbone: Backbone,
    contender: Contender,
    benchmark: Benchmark,
    setup: Setup,
    kind: str = ANSWERS,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """All answers of a contender to a benchmark; those that are on disk already are not asked again. Raises InputError as AnswerFile."""
    who = {"method": contender.method, "parameters": contender.parameters, "sha256": contender.sha256}
    file = answer_file(benchmark, setup, kind, contender.slug, who)
    if is_full(file, benchmark):
        return file.answers  # without putting its adapter on the base
    home = contender.home or backbone
    with contender.on(home) as role:
        respond = responding(home, partial(generate, home, role), benchmark, setup)
        return ask(benchmark, respond, file, setup.seed, setup.batch_size, setup.unsafe_exec, told)


def answer_file(benchmark: Benchmark, setup: Setup, kind: str, slug: str, who: Mapping[str, Any]) -> AnswerFile:
    """The file of what one model answers to a benchmark; `who` says which model that is. Raises InputError as AnswerFile."""
    suite = benchmark.suite
    header = {
        "suite": suite.name,
        "domain": benchmark.domain,
        "split": benchmark.split,
        "version": benchmark.version,
        "questions": len(benchmark.items),
        "samples": suite.samples,
        "seed": setup.seed,
        **who,
        **setup.base,
    }
    name = f"{suite.name}.{benchmark.domain}.{len(benchmark.items)}.{slug}.jsonl"
    return AnswerFile(setup.folder / kind / name, header, setup.batch_size)


def is_full(file: AnswerFile, benchmark: Benchmark) -> bool:
    """Whether nothing is left to ask."""
    return len(file.answers) == len(benchmark.items) * benchmark.suite.samples


def responding(backbone: Backbone, sample: Callable[..., Rollout], benchmark: Benchmark, setup: Setup) -> Respond:
    """How a benchmark's prompts are answered by `sample`, which takes what `rollout.generate` takes after the role."""
    suite = benchmark.suite

    def respond(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Answers, list[float] | None]:
        domains = [benchmark.domain] * len(prompts)
        form = Format(suite.chat, suite.system)
        rollout = sample(prompts, domains, suite.max_new_tokens, seeds, suite.temperature, form, suite.stop)
        rewards = None
        if benchmark.metric == EXPERT_REWARD:
            rewards = mean_rewards(backbone, rollout, expert(benchmark.domain), min(32, setup.batch_size))
        return answers(backbone, rollout, suite.stop), rewards

    return respond


def measure_all(
    backbone: Backbone, contenders: Sequence[Contender], benchmarks: Sequence[Benchmark], setup: Setup, listener: Listener
) -> list[Measured]:
    """Everybody on everything."""
    measured: list[Measured] = []
    total = len(contenders) * len(benchmarks)
    for contender in contenders:
        found: dict[Key, list[Answer]] = {}
        for benchmark in benchmarks:
            done, label = len(measured) * len(benchmarks) + len(found), f"{contender.method} on {benchmark.domain}"

            def told(here: int, of: int, done: int = done, label: str = label) -> None:
                listener.evaluating(done + here / of, total, label)

            found[key_of(benchmark)] = measure(backbone, contender, benchmark, setup, told=told)
        measured.append(Measured(contender, found))
    return measured


def check_context(backbone_tokenizer: Any, context: int | None, benchmarks: Sequence[Benchmark]) -> None:
    """Raises InputError for a question that, with its answer, is longer than the base's context."""
    for benchmark in benchmarks:
        suite = benchmark.suite
        form = Format(suite.chat, suite.system)
        lengths = prompt_lengths(backbone_tokenizer, [item.prompt for item in benchmark.items], form)
        longest = max(lengths)
        if context is not None and longest + suite.max_new_tokens > context:
            remedy = "lower --max-new-tokens" if longest < context else "leave the suite out, it is not for this base"
            raise InputError(
                f"{suite.name}: the question {benchmark.items[lengths.index(longest)].id} has {longest:,} tokens; with "
                f"--max-new-tokens {suite.max_new_tokens} that is more than the base's context of {context:,}; {remedy}"
            )


def scores(measured: Sequence[Measured], benchmark: Benchmark) -> Scores:
    """The scores of one method on a benchmark; `measured` are its seeds."""
    return scores_of_answers([one.answers[key_of(benchmark)] for one in measured], benchmark)


def scores_of_answers(seeds: Sequence[Sequence[Answer]], benchmark: Benchmark) -> Scores:
    """The same from the answers of each seed."""
    ids = sorted({answer.id for answer in seeds[0]})
    row = {id: index for index, id in enumerate(ids)}
    arrays = []
    for found in seeds:
        array = np.empty((len(ids), len(found) // len(ids)))
        for answer in found:
            array[row[answer.id], answer.sample] = answer.score
        arrays.append(array)
    return scores_of(ids, *arrays, are_shares=benchmark.metric != EXPERT_REWARD)


def result(measured: Sequence[Measured], benchmark: Benchmark, seed: int) -> Result:
    """The row of one method on a benchmark; `measured` are its seeds, `seed` that of the sampling, for methods without training."""
    key, contender = key_of(benchmark), measured[0].contender
    found = [answer for one in measured for answer in one.answers[key]]
    estimate = summarise(scores(measured, benchmark))
    seeds = [seed if one.contender.seed is None else one.contender.seed for one in measured]
    return Result(
        suite=benchmark.suite.name,
        domain=benchmark.domain,
        method=contender.method,
        parameters=contender.parameters,
        alpha=contender.alpha,
        split=benchmark.split,
        seed=seeds[0] if len(seeds) == 1 else None,
        seeds=seeds,
        seed_sd=estimate.seed_sd,
        n=estimate.n,
        k=estimate.k,
        temperature=benchmark.suite.temperature,
        metric=benchmark.metric,
        score=estimate.score,
        low=estimate.low,
        high=estimate.high,
        length_mean=sum(answer.length for answer in found) / len(found),
        length_capped=sum(answer.capped for answer in found) / len(found),
        empty=sum(not answer.text.strip() for answer in found) / len(found),
    )


def by_method(measured: Sequence[Measured]) -> list[list[Measured]]:
    """The seeds of each method together, in the order in which the methods come."""
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        groups.setdefault(json.dumps([one.contender.method, one.contender.alpha, one.contender.parameters]), []).append(one)
    return list(groups.values())
