"""The tokens that a run will have to read and write: of every prompt that it asks, with responses at their limit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gopd_merge.config import AUTO_ALPHAS, MergeConfig
from gopd_merge.errors import InputError
from gopd_merge.evaluate.suites import Benchmark
from gopd_merge.gathering import counter_of
from gopd_merge.plan import Inputs
from gopd_merge.prompts.mixing import PromptMixer

MOST = "--max-new-tokens"


@dataclass(frozen=True)
class DomainWork:
    """The prompts of one domain as a run asks them."""

    domain: str
    source: str
    prompts: int  # that there are
    asked: int  # over all steps, with repetitions
    mean_tokens: float
    longest: int  # tokens


@dataclass(frozen=True)
class Work:
    """What a run does, in tokens. Responses are counted at their limit."""

    domains: tuple[DomainWork, ...]
    steps: int
    prompt_tokens: int
    response_tokens: int
    evaluated_answers: int
    longest_prompt: int  # of those asked in training, tokens
    longest_test_prompt: int  # 0 where nothing is measured
    probed_answers: int = 0  # of targets, for --alpha auto
    longest_probed_prompt: int = 0


def count_work(config: MergeConfig, inputs: Inputs) -> Work:
    """Tokens of every prompt that the run will ask. Raises InputError for one that is too long for the base."""
    count, context = counter_of(inputs.base)

    def checked(benchmarks: Iterable[Benchmark], split: str) -> list[int]:
        lengths: list[int] = []
        for benchmark in benchmarks:
            found = count([item.prompt for item in benchmark.items])
            check_lengths(f"{benchmark.domain}'s {split}", found, config.max_new_tokens, context)
            lengths += found
        return lengths

    test_lengths, probed_lengths = checked(inputs.test, "test"), checked(inputs.validation, "validation")
    mixer = PromptMixer(inputs.prompts, config.batch_size, config.seed)
    share = config.prompts_per_step // len(inputs.prompts)
    domains = tuple(
        DomainWork(s.domain, s.origin.source, s.size, share * config.steps, sum(s.lengths) / s.size, max(s.lengths)) for s in inputs.prompts
    )
    asked = [source.lengths[index] for step in range(config.steps) for source, index in mixer.positions(step)]
    has_average = inputs.on_one_base and all(e.is_plain for e in inputs.experts)
    roles = 2 + len(inputs.experts) + has_average  # base, merge, experts, average
    responses = len(asked) * config.trained_tokens
    return Work(
        domains,
        config.steps,
        sum(asked),
        responses,
        evaluated_answers=roles * len(test_lengths),
        longest_prompt=max(asked),
        longest_test_prompt=max(test_lengths, default=0),
        probed_answers=len(AUTO_ALPHAS) * len(probed_lengths),
        longest_probed_prompt=max(probed_lengths, default=0),
    )


def check_lengths(domain: str, lengths: Sequence[int], max_new_tokens: int, context: int | None) -> None:
    """Raises InputError for a prompt that, with its response, is longer than the base's context."""
    for number, length in enumerate(lengths, start=1):
        if context is not None and length + max_new_tokens > context:
            raise InputError(
                f"prompt {number} of {domain} has {length:,} tokens; with {MOST} {max_new_tokens} that is more than the "
                f"base's context of {context:,}; remove the prompt, or lower {MOST}"
            )
