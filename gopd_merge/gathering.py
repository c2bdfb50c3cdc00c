"""The prompts of a run: read from where `--prompts` says, and without those that it cannot ask, or must not. No torch.

What is left out is counted by reason; a domain of which nothing is left is an error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gopd_merge.config import MergeConfig
from gopd_merge.errors import InputError
from gopd_merge.eval_config import OWN
from gopd_merge.evaluate.suites import Benchmark, Suite, load_benchmarks, read_suite
from gopd_merge.experts.base import Base, context_length, load_tokenizer
from gopd_merge.experts.decoder import read_decoder
from gopd_merge.experts.token_counts import Counter, token_counter
from gopd_merge.prompts.contamination import Suspects
from gopd_merge.prompts.sources import Prompt, PromptSet, counted, training_prompts

SHORTEST_SYNTH = 8  # tokens that an expert must have for a prompt
SPLITS = ("test", "validation")  # neither what is measured on nor what α is chosen on may be trained on


def gather(config: MergeConfig, folders: Mapping[str, Path], base: Base) -> tuple[PromptSet, ...]:
    """The prompts of every domain, with their lengths in tokens, in order of domain; none yet where the expert writes them.

    `folders` are those of the experts that are here. Raises InputError, one line.
    """
    sources = [training_prompts(domain, folders.get(domain), config.prompts_of(domain), config.max_prompts) for domain in config.domains]
    suspects = [one for name in config.decontaminate for one in suspects_of(name, folders, config.max_new_tokens)]
    count, context = counter_of(base)
    return tuple(fitting(clean(source, suspects), config, count, context) for source in sources)


def suspects_of(name: str, folders: Mapping[str, Path], max_new_tokens: int | None = None) -> list[Suspects]:
    """The questions of a suite, of its test and of its validation split if it has one. Raises InputError."""
    suite = read_suite(name)
    questions = [
        item.prompt for split in SPLITS for benchmark in _split(suite, split, folders) for item in benchmark.items
    ]  # fmt: skip
    if not questions:
        raise InputError(f"--decontaminate {name}: no expert brings questions of its own; name another suite, or leave it out")
    return [Suspects(suite.name, questions)]


def _split(suite: Suite, split: str, folders: Mapping[str, Path]) -> Sequence[Benchmark]:
    if suite.name == OWN or suite.data.expert is not None:
        path = (suite.data.expert or "").format(split=split)
        folders = {domain: folder for domain, folder in folders.items() if (folder / path).is_file()}
    elif suite.splits and split not in suite.splits:
        return ()
    try:
        return load_benchmarks(suite, "test" if split == "test" else "validation", folders)
    except InputError:
        if split == "validation" and suite.data.file is not None and not suite.splits:
            return ()  # of a file of few questions none may be kept for it
        raise


def clean(source: PromptSet, suspects: Sequence[Suspects]) -> PromptSet:
    """Without what is in an evaluation suite. Raises InputError where nothing is left."""
    for one in suspects:
        kept = tuple(prompt for prompt in source.prompts if not one.holds(prompt.prompt))
        why = f"in {one.name} (runs of {one.n} words)"
        source = _without(source, kept, why, "name other prompts, or leave that suite out of --decontaminate")
    return source


def fitting(source: PromptSet, config: MergeConfig, count: Counter, context: int | None) -> PromptSet:
    """With the lengths of the prompts, and without those that leave no room for a response. Raises InputError where none does."""
    room = None if context is None else context - config.trained_tokens
    flag = "--horizon" if config.horizon else "--max-new-tokens"
    if source.is_synthetic:
        (around,) = count(["a"])
        longest = min(room or math.inf, around - 1 + config.synth_tokens)
        if longest < around - 1 + SHORTEST_SYNTH:
            raise InputError(f"{source.domain}=synth: {flag} {config.trained_tokens} leaves no room for a prompt; lower it")
        return replace(source, lengths=(int(longest),) * config.synth_prompts)
    lengths = count([prompt.prompt for prompt in source.prompts])
    pairs = [pair for pair in zip(source.prompts, lengths, strict=True) if room is None or pair[1] <= room]
    why = f"longer than the base's context of {context:,} tokens with {flag} {config.trained_tokens}" if context else ""
    kept = _without(source, tuple(prompt for prompt, _ in pairs), why, f"lower {flag}, or name shorter prompts")
    return replace(kept, lengths=tuple(length for _, length in pairs))


def _without(source: PromptSet, kept: tuple[Prompt, ...], why: str, remedy: str) -> PromptSet:
    """The set with these prompts only, the others counted under `why`. Raises InputError where none is left."""
    lost = len(source.prompts) - len(kept)
    if not lost:
        return source
    if not kept:
        raise InputError(f"{source.domain}: all {lost:,} prompts of {source.name} are {why}; {remedy}")
    origin = replace(source.origin, dropped={**source.origin.dropped, why: source.origin.dropped.get(why, 0) + lost})
    return replace(source, prompts=kept, origin=origin)


def prompt_notes(sources: Sequence[PromptSet]) -> list[str]:
    """A line for each domain of which something was left out, or is still to be written."""
    written = [
        f"{one.domain}: its expert will write its {one.size:,} prompts (synth); planned with {one.lengths[0]:,} tokens each"
        for one in sources
        if one.is_synthetic and not one.prompts
    ]
    return written + [
        f"{one.domain}: {sum(one.origin.dropped.values()):,} of {one.origin.read:,} prompts left out: {counted(one.origin.dropped)}"
        for one in sources
        if one.origin.dropped and one.prompts
    ]


def counter_of(base: Base) -> tuple[Counter, int | None]:
    """What counts the tokens of prompts as the roles read them, and the most that the base can read. Raises GopdError."""
    folder = Path(base.location)
    decoder = read_decoder(folder)
    if decoder and (count := token_counter(folder, decoder.kind)):
        return count, decoder.context
    from gopd_merge.distill.rollout import prompt_lengths

    tokenizer = load_tokenizer(base)
    return partial(prompt_lengths, tokenizer), context_length(base)
