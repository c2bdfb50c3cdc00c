"""What the student answers: sampling at temperature 1 from the full distribution, which is the one that is trained."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase

from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.decoding import Decoded, Draw, Ends, cache_of, decode


@dataclass(frozen=True)
class Rollout:
    """Prompts and sampled responses. Column P + t of `ids` is the response token that column t of `response_mask` speaks of."""

    ids: Tensor  # (B, P + T) prompt, padded on the left, then response, padded on the right
    attention_mask: Tensor  # (B, P + T) 1 on prompt and response
    response_mask: Tensor  # (B, T) True on response tokens, the end token included
    capped: Tensor  # (B,) True where the length limit cut the response
    domains: tuple[str, ...]  # (B,)
    sampled_log_probs: Tensor | None = None  # (B, T) float32 log π as another engine drew each token; None: the role here drew it

    @property
    def prompt_width(self) -> int:
        """P, in tokens."""
        return self.ids.shape[1] - self.response_mask.shape[1]

    @property
    def num_tokens(self) -> int:
        """Response tokens of the whole rollout."""
        return int(self.response_mask.sum())

    def rows(self, start: int, stop: int) -> "Rollout":
        """A slice of the batch, trimmed to its own longest response."""
        response = self.response_mask[start:stop]
        longest = int(response.sum(1).max())
        width = self.prompt_width + longest
        return Rollout(
            ids=self.ids[start:stop, :width],
            attention_mask=self.attention_mask[start:stop, :width],
            response_mask=response[:, :longest],
            capped=self.capped[start:stop],
            domains=self.domains[start:stop],
            sampled_log_probs=None if self.sampled_log_probs is None else self.sampled_log_probs[start:stop, :longest],
        )

    def response_ids(self) -> Tensor:
        """(N,) the sampled tokens, row by row."""
        return self.ids[:, self.prompt_width :][self.response_mask]

    def engine_log_probs(self) -> Tensor | None:
        """(N,) log π of the sampled tokens as another engine drew them, row by row."""
        return None if self.sampled_log_probs is None else self.sampled_log_probs[self.response_mask]

    def predicting(self, hidden: Tensor) -> Tensor:
        """(B, P + T, H) -> (N, H): the hidden states from which the N response tokens were sampled, one column to the left."""
        return hidden[:, self.prompt_width - 1 : -1][self.response_mask]


@dataclass(frozen=True)
class Format:
    """How a prompt's text reaches the model."""

    chat: bool = True  # as a user's message in the base's chat template, where it has one; else as plain text
    system: str | None = None  # a message of the system before it


@dataclass(frozen=True)
class Answers:
    """Decoded responses of one model."""

    texts: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens
    capped: tuple[bool, ...]  # whether the length limit cut the response


CHAT = Format()


def encode(backbone: Backbone, prompts: Sequence[str], form: Format = CHAT) -> tuple[Tensor, Tensor]:
    """Formatted prompts, padded on the left: ids and mask, both (B, P)."""
    encoded = tokenize(backbone.tokenizer, prompts, form, return_tensors="pt", padding=True)
    return encoded["input_ids"].to(backbone.device), encoded["attention_mask"].to(backbone.device)


def prompt_lengths(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], form: Format = CHAT) -> list[int]:
    """Tokens of each prompt as the roles will read it."""
    return [len(ids) for ids in tokenize(tokenizer, prompts, form)["input_ids"]]


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], form: Format = CHAT, **options: Any) -> Any:
    """Prompts in the base's chat template; a base without one gets plain text, after the system's message if there is one."""
    chat = form.chat and bool(tokenizer.chat_template)
    if chat:
        before = [{"role": "system", "content": form.system}] if form.system else []
        prompts = [
            tokenizer.apply_chat_template([*before, {"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
            for text in prompts
        ]
    elif form.system:
        prompts = [f"{form.system}\n\n{text}" for text in prompts]
    return tokenizer(list(prompts), add_special_tokens=not chat, **options)


def row_seeds(*batch: object, count: int) -> list[int]:
    """One seed for each row of a batch, below 2³¹ as every server takes it: of what names the batch, and of the row's place in it."""
    name = " ".join(map(str, batch))
    return [int.from_bytes(hashlib.sha256(f"{name} {row}".encode()).digest()[:4]) >> 1 for row in range(count)]


@torch.no_grad()
def generate(
    backbone: Backbone,
    role: str,
    prompts: Sequence[str],
    domains: Sequence[str],
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    form: Format = CHAT,
    stop: Sequence[str] = (),
    vocabulary: int | None = None,
) -> Rollout:
    """Sample one response to each prompt as `role`, each from its own seed (temperature 0 is greedy).

    A response ends with a stop token, or with the token in which it has one of the texts `stop`. With `vocabulary` only the first that
    many tokens are drawn: what pads a head beyond them may mean nothing to another model.
    Every cut and penalty is off, whatever the base's own generation_config.json says: anything else would be another
    distribution than the one that is trained and measured. Raises GopdError where a model's logits are not finite.
    """
    ids, mask = encode(backbone, prompts, form)  # (B, P)
    advice = "lower --learning-rate or --alpha" if role == STUDENT else f"check the adapter of {role} and the base"
    draw, ends = Draw(seeds, temperature, backbone.device, advice), ends_of(backbone, stop)
    with backbone.role(role) as model, plain_generation(backbone, ids.shape[1] + max_new_tokens, vocabulary) as options:
        run = partial(model.generate, logits_processor=LogitsProcessorList([draw]), **options)
        cache = None if backbone.is_shared else cache_of(backbone.model)  # all processes make equally many calls then: one
        found = decode(run, ids, mask, max_new_tokens, draw, ends, pad_of(backbone), cache)
    return rollout_of(found, mask, domains)


@contextmanager
def plain_generation(backbone: Backbone, max_length: int, vocabulary: int | None = None) -> Iterator[dict[str, Any]]:
    """What to give Transformers' generate() so that it takes the likeliest token and nothing is left of cuts and penalties.

    The base's own settings are away while the block lasts: generate() fills what a given config leaves open from them.
    """
    base = backbone.model
    stored = base.generation_config
    padding = list(range(vocabulary, backbone.vocabulary)) if vocabulary is not None else []
    plain = GenerationConfig(
        do_sample=False,
        max_length=max_length,
        pad_token_id=pad_of(backbone),
        **({"suppress_tokens": padding} if padding else {}),
    )
    base.generation_config = plain
    try:
        yield {"generation_config": plain} | ({"synced_gpus": True} if backbone.is_shared else {})  # and equally many passes
    finally:
        base.generation_config = stored


def rollout_of(found: Decoded, prompt_mask: Tensor, domains: Sequence[str]) -> Rollout:
    """With what belongs to each response. `prompt_mask` is (B, P)."""
    return Rollout(
        ids=found.ids,
        attention_mask=torch.cat([prompt_mask, found.response_mask.long()], dim=1),
        response_mask=found.response_mask,
        capped=~found.ended,
        domains=tuple(domains),
    )


def ends_of(backbone: Backbone, stop: Sequence[str]) -> Ends:
    """How the base's responses end: with its stop tokens, and with these texts."""
    return Ends(stop_ids(backbone), stop, backbone.tokenizer, backbone.device)


def stop_ids(backbone: Backbone) -> list[int]:
    """The tokens that end a response."""
    stored = backbone.model.generation_config.eos_token_id
    ids = set(stored) if isinstance(stored, list) else {stored}
    return sorted({*ids, backbone.tokenizer.eos_token_id} - {None})


def pad_of(backbone: Backbone) -> int:
    """The token that pads."""
    return int(backbone.tokenizer.pad_token_id)


def written(
    backbone: Backbone,
    prompts: Sequence[str],
    responses: Sequence[str],
    domains: Sequence[str],
    max_new_tokens: int,
    ended: Sequence[bool] | None = None,
) -> Rollout:
    """Given responses as a rollout: each is tokenised apart from its prompt, ended, and cut at the limit.

    `ended` says which responses are whole; by default all. One that was cut gets no end token, unless nothing else is in it.
    """
    ids, mask = encode(backbone, prompts)  # (B, P)
    tokenizer = backbone.tokenizer
    whole = ended if ended is not None else [True] * len(responses)
    rows = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in responses]
    cut = [bool(row) and not is_whole for row, is_whole in zip(rows, whole, strict=True)]
    rows = [row if is_cut else [*row, tokenizer.eos_token_id] for row, is_cut in zip(rows, cut, strict=True)]
    width = min(max(map(len, rows)), max_new_tokens)
    response = torch.full((len(rows), width), int(tokenizer.pad_token_id), device=ids.device)  # (B, T)
    for index, row in enumerate(rows):
        response[index, : len(row)] = torch.tensor(row[:width])
    lengths = torch.tensor([min(len(row), width) for row in rows], device=ids.device)
    response_mask = torch.arange(width, device=ids.device) < lengths.unsqueeze(-1)
    return Rollout(
        ids=torch.cat([ids, response], dim=1),
        attention_mask=torch.cat([mask, response_mask.long()], dim=1),
        response_mask=response_mask,
        capped=torch.tensor([is_cut or len(row) > width for row, is_cut in zip(rows, cut, strict=True)], device=ids.device),
        domains=tuple(domains),
    )


def unasked(device: torch.device) -> Rollout:
    """A rollout of no prompt: what a process has of a step with fewer prompts than processes."""
    nothing = torch.zeros(0, 1, dtype=torch.long, device=device)
    return Rollout(nothing, nothing, torch.zeros(0, 0, dtype=torch.bool, device=device), nothing[:, 0].bool(), ())


def joined(parts: Sequence[Rollout], order: Sequence[int], pad: int) -> Rollout:
    """Rollouts of different prompts as one, row i of it being row `order[i]` of them one after the other. `pad` fills them up.

    Their engines' log-probs are left out unless all have some.
    """
    prompt = max(part.prompt_width for part in parts)
    longest = max(part.response_mask.shape[1] for part in parts)
    room = [(prompt - part.prompt_width, longest - part.response_mask.shape[1]) for part in parts]
    rows = torch.tensor(order, device=parts[0].ids.device)

    def stacked(name: str, value: int) -> Tensor:
        return torch.cat([F.pad(getattr(part, name), sides, value=value) for part, sides in zip(parts, room, strict=True)])[rows]

    masks = torch.cat([F.pad(part.response_mask, (0, right)) for part, (_, right) in zip(parts, room, strict=True)])
    told = [F.pad(p.sampled_log_probs, (0, right)) for p, (_, right) in zip(parts, room, strict=True) if p.sampled_log_probs is not None]
    domains = [domain for part in parts for domain in part.domains]
    return Rollout(
        ids=stacked("ids", pad),
        attention_mask=stacked("attention_mask", 0),
        response_mask=masks[rows],
        capped=torch.cat([part.capped for part in parts])[rows],
        domains=tuple(domains[row] for row in order),
        sampled_log_probs=torch.cat(told)[rows] if len(told) == len(parts) else None,
    )


def answers(backbone: Backbone, rollout: Rollout, stop: Sequence[str] = ()) -> Answers:
    """The responses as text, without special tokens, up to the first of the texts `stop`."""
    response_ids = rollout.ids[:, rollout.prompt_width :]
    lengths = rollout.response_mask.sum(1).tolist()
    texts = backbone.tokenizer.batch_decode(
        [row[:length] for row, length in zip(response_ids.tolist(), lengths, strict=True)], skip_special_tokens=True
    )
    for text in stop:
        texts = [response_text.partition(text)[0] for response_text in texts]
    return Answers(tuple(texts), tuple(lengths), tuple(rollout.capped.tolist()))
