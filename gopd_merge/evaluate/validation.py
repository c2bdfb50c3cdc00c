"""The questions that λ is chosen on: the validation split of suites, for the domains of the experts. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gopd_merge.errors import InputError
from gopd_merge.eval_config import OWN
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark, Suite, load_benchmarks, read_suite, tuning_suite


def load_validation(
    experts: Mapping[str, Path],
    suites: Sequence[str] = (OWN,),
    limit: int | None = None,
    data: Mapping[str, str] | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
) -> list[Benchmark]:
    """The validation questions of the suites, each to be answered once; of `own` and `open`, those of the experts that bring some.

    Args:
        experts: domain -> the adapter's folder.
        suites: names as `read_suite` takes them.
        limit: questions per benchmark.
        data: local files for suites' data, by the suite's name.
        temperature: None is each suite's own; so is None for `max_new_tokens`.

    Raises:
        InputError: a suite has no validation questions or is of a domain that no expert has; a domain is left without questions.
    """
    asked = {key: value for key, value in (("temperature", temperature), ("max_new_tokens", max_new_tokens)) if value is not None}
    found: dict[tuple[str, str], Benchmark] = {}
    for name in suites:
        given = read_suite(name)
        suite = tuning_suite(given)
        if suite is None:
            raise InputError(f"{name}: has no validation questions to choose α on; leave it out of --suite")
        if suite.domain is not None and suite.domain not in experts:
            raise InputError(
                f"{name}: asks in the domain {suite.domain}, the experts are {' and '.join(experts)}; "
                f"name the expert that it is for {suite.domain}=PATH, or leave it out of --suite"
            )
        own = {"samples": 1, "max_new_tokens": given.max_new_tokens}
        file = (data or {}).get(suite.name)
        for benchmark in _of_suite(suite.model_copy(update={**own, **asked}), experts, Path(file) if file else None, limit):
            found[benchmark.suite.name, benchmark.domain] = benchmark
    for domain, folder in experts.items():
        _check_covered(domain, folder, list(found.values()))
    return list(found.values())


def _of_suite(suite: Suite, experts: Mapping[str, Path], data: Path | None, limit: int | None) -> list[Benchmark]:
    path = suite.data.expert
    have = experts if path is None else {d: folder for d, folder in experts.items() if (folder / path.format(split="validation")).is_file()}
    return load_benchmarks(suite, "validation", have, data, limit)


def _check_covered(domain: str, folder: Path, found: Sequence[Benchmark]) -> None:
    """Raises InputError for a domain without questions, and for one question of which no interval follows."""
    mine = [benchmark for benchmark in found if benchmark.domain == domain]
    if not mine:
        raise InputError(
            f"{domain}: no validation questions to choose α on ({folder / 'prompts' / 'validation.jsonl'} is missing); put questions with "
            "answers there, none of them in test.jsonl, or give α as a number; "
            f"gopd-merge probe also takes a file of them: --suite own,{domain}=FILE.jsonl"
        )
    for benchmark in mine:
        if benchmark.metric == EXPERT_REWARD and len(benchmark.items) < 2:
            raise InputError(f"{benchmark.suite.name}: one question in {domain}, from which no interval follows; give more")
