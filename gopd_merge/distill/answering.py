"""The prompts of a step are answered by whom the method says: the student (on-policy), each domain's expert, or the data."""

from collections.abc import Sequence

from gopd_merge.distill.cast import Cast
from gopd_merge.distill.engines import HfEngine
from gopd_merge.distill.methods import ANSWERED_BY
from gopd_merge.distill.rollout import Rollout, generate, joined, tokenize, written


def respond(
    cast: Cast,
    method: str,
    prompts: Sequence[str],
    domains: Sequence[str],
    responses: Sequence[str | None],
    max_new_tokens: int,
    seeds: Sequence[int],
) -> Rollout:
    """One response to each prompt, by whom the method says, drawn from its seed. `responses` are those that the data hold, for sft."""
    by = ANSWERED_BY[method]
    if by == "student":
        engine = cast.engine or HfEngine(cast.backbone, cast.vocabulary)
        return engine.sample(prompts, domains, max_new_tokens, seeds)
    if by == "data":
        given = [text for text in responses if text is not None]  # all: `plan` has checked it
        return written(cast.backbone, prompts, given, domains, max_new_tokens)
    return _by_experts(cast, prompts, domains, max_new_tokens, seeds)


def _by_experts(cast: Cast, prompts: Sequence[str], domains: Sequence[str], max_new_tokens: int, seeds: Sequence[int]) -> Rollout:
    """Each domain's expert answers its prompts; the rows come back in the order of the prompts."""
    parts, asked = [], []
    for domain in sorted(set(domains)):
        rows = [row for row, other in enumerate(domains) if other == domain]
        parts.append(_by_expert(cast, domain, [prompts[row] for row in rows], max_new_tokens, [seeds[row] for row in rows]))
        asked += rows
    order = [asked.index(row) for row in range(len(prompts))]
    return joined(parts, order, int(cast.backbone.tokenizer.pad_token_id))


def _by_expert(cast: Cast, domain: str, prompts: Sequence[str], max_new_tokens: int, seeds: Sequence[int]) -> Rollout:
    domains = [domain] * len(prompts)
    if domain in cast.remote:
        said = cast.remote[domain].answer(tokenize(cast.backbone.tokenizer, prompts)["input_ids"], max_new_tokens, seeds)
        texts, ended = [one.text for one in said], [one.ended for one in said]
        return written(cast.backbone, prompts, texts, domains, max_new_tokens, ended)
    teacher = cast.teacher(domain)
    model = cast.models[teacher.model]
    return generate(model, teacher.adapter, prompts, domains, max_new_tokens, seeds, vocabulary=cast.vocabulary)
