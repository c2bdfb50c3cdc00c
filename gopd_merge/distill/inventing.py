"""Prompts that a role writes itself, sampled where the chat template has a user speak; and how far experts depart from the base on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from gopd_merge.distill.backbone import REFERENCE, Backbone
from gopd_merge.distill.batches import micro_batches
from gopd_merge.distill.decoding import Draw, Ends, cache_of, decode
from gopd_merge.distill.rollout import Rollout, answers, pad_of, plain_generation, rollout_of
from gopd_merge.errors import InputError

SENTINEL = "gopd9prompt9begins9here"
PARAGRAPH = "\n\n"  # where a prompt ends in plain text, if not with the end of the text


@dataclass(frozen=True)
class Opening:
    """What comes before a user's words, and what follows them."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]  # tokens
    stop: tuple[str, ...]  # texts


@dataclass(frozen=True)
class Written:
    """Texts of one role, with the rollout whose responses they are."""

    texts: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens, the end among them
    ended: tuple[bool, ...]  # with what ends a prompt, and not at the limit
    is_text: tuple[bool, ...]  # False where special tokens are inside
    rollout: Rollout


@dataclass(frozen=True)
class Departure:
    """How far roles are from the base on the responses of a rollout, in nats a token, row by row."""

    ratios: tuple[float, ...]  # of the first role: mean of log π_role/π_0 of the tokens that are there
    divergences: tuple[tuple[float, ...], ...]  # of each role: mean of KL(π_role ‖ π_0), what that ratio is expected to be


def opening_of(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> Opening:
    """The beginning of a user's turn in the chat template; without one, of a text. `stops` are the tokens that end the model's responses.

    Raises InputError for a template that does not show a user's words as they are, and for a model that has no token to begin with.
    """
    if not tokenizer.chat_template:
        ids = tokenizer("", add_special_tokens=True)["input_ids"] or [tokenizer.bos_token_id or tokenizer.eos_token_id]
        if None in ids:
            raise InputError("--prompts synth: the base has no chat template and no token that begins a text; name prompts instead")
        return Opening(tuple(ids), tuple(stops), (PARAGRAPH,))
    chat = [{"role": "user", "content": SENTINEL}]
    before, found, after = str(tokenizer.apply_chat_template(chat, tokenize=False)).partition(SENTINEL)
    if not found or not before:
        raise InputError("--prompts synth: the base's chat template does not say where a user's words begin; name prompts instead")
    ids = tokenizer(before.rstrip(" "), add_special_tokens=False)["input_ids"]
    closing = tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
    if closing and closing[0] in _special(tokenizer):
        return Opening(tuple(ids), tuple({*stops, closing[0]}), ())
    return Opening(tuple(ids), tuple(stops), (after.strip(),) if after.strip() else ())


@torch.no_grad()
def write(backbone: Backbone, role: str, opening: Opening, max_tokens: int, seeds: Sequence[int]) -> Written:
    """One prompt for each seed, sampled at temperature 1 from the full distribution. Raises GopdError where logits are not finite."""
    ids = torch.tensor([opening.ids] * len(seeds), device=backbone.device)  # (B, P)
    mask = torch.ones_like(ids)
    draw = Draw(seeds, 1.0, backbone.device, f"check the adapter of {role} and the base")
    ends = Ends(opening.ends, opening.stop, backbone.tokenizer, backbone.device)
    with backbone.role(role) as model, plain_generation(backbone, ids.shape[1] + max_tokens) as options:
        run = partial(model.generate, logits_processor=LogitsProcessorList([draw]), **options)
        found = decode(run, ids, mask, max_tokens, draw, ends, pad_of(backbone), cache_of(backbone.model))
    rollout = rollout_of(found, mask, [role] * len(seeds))
    said = answers(backbone, rollout, opening.stop)
    special = torch.tensor(sorted(_special(backbone.tokenizer)), device=ids.device)
    inside = torch.isin(rollout.ids[:, rollout.prompt_width :], special) & rollout.response_mask  # (B, T)
    ending = (
        torch.isin(rollout.ids[:, rollout.prompt_width :], torch.tensor(opening.ends, dtype=torch.long, device=ids.device))
        & rollout.response_mask
    )
    is_text = (inside & ~ending).sum(1) == 0
    texts = tuple(text.strip() for text in said.texts)
    return Written(texts, said.lengths, tuple(found.ended.tolist()), tuple(is_text.tolist()), rollout)


@torch.no_grad()
def departure(backbone: Backbone, rollout: Rollout, roles: Sequence[str], micro_batch_size: int, chunk_tokens: int) -> Departure:
    """How far the roles depart from the base on every response, that of the first role measured on its tokens too."""
    count = len(rollout.domains)
    sums = torch.zeros(1 + len(roles), count)
    with backbone.float_head():
        for part in micro_batches(rollout, micro_batch_size):
            ids = part.response_ids()
            rows = part.rows[part.token_row].cpu()  # (n,)
            hidden = [part.predicting(backbone.hidden(role, part.ids)) for role in (REFERENCE, *roles)]  # (n, H) each
            for start in range(0, len(ids), chunk_tokens):
                at = slice(start, start + chunk_tokens)
                base = backbone.logits(hidden[0][at], REFERENCE).log_softmax(-1)  # (m, V)
                for number, role in enumerate(roles):
                    own = backbone.logits(hidden[number + 1][at], role).log_softmax(-1)
                    sums[number + 1].index_add_(0, rows[at], _divergence(own, base).cpu())
                    if number == 0:
                        ratio = (own - base).gather(-1, ids[at].unsqueeze(-1)).squeeze(-1)  # (m,)
                        sums[0].index_add_(0, rows[at], ratio.cpu())
    means = (sums / rollout.response_mask.sum(1).cpu()).tolist()
    return Departure(tuple(means[0]), tuple(map(tuple, means[1:])))


def _divergence(own: Tensor, base: Tensor) -> Tensor:
    """(m,) KL of two distributions given by log-probabilities (m, V)."""
    return (own.exp() * (own - base)).sum(-1)


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are no text."""
    return {*tokenizer.all_special_ids, *(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)}
