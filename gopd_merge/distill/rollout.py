"""What the student answers: sampling at temperature 1 from the full distribution, which is the one that is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from gopd_merge.distill.backbone import Backbone


@dataclass(frozen=True)
class Rollout:
    """Prompts and sampled responses. Column P + t of `ids` is the response token that column t of `response_mask` speaks of."""

    ids: Tensor  # (B, P + T) prompt, padded on the left, then response, padded on the right
    attention_mask: Tensor  # (B, P + T) 1 on prompt and response
    response_mask: Tensor  # (B, T) True on response tokens, the end token included
    capped: Tensor  # (B,) True where the length limit cut the response
    domains: tuple[str, ...]  # (B,)
    sampled_log_probs: Tensor | None = (
        None  # (B, T) float32 log π of each response token as its engine says; None: the student here drew it
    )

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


@torch.no_grad()
def generate(
    backbone: Backbone,
    role: str,
    prompts: Sequence[str],
    domains: Sequence[str],
    max_new_tokens: int,
    temperature: float = 1.0,
    form: Format = CHAT,
    stop: Sequence[str] = (),
    vocabulary: int | None = None,
) -> Rollout:
    """Sample one response to each prompt as `role` (temperature 0 is greedy), from torch's global generator.

    A response ends with a stop token, or with the token in which it has one of the texts `stop`. With `vocabulary` only the first that
    many tokens are drawn: what pads a head beyond them may mean nothing to another model.
    Every cut and penalty is off, whatever the base's own generation_config.json says: anything else would be another
    distribution than the one that is trained and measured.
    """
    ids, mask = encode(backbone, prompts, form)  # (B, P)
    with backbone.role(role) as model, plain_generation(backbone, max_new_tokens, temperature, stop, vocabulary) as options:
        out = model.generate(input_ids=ids, attention_mask=mask, **options)  # (B, P + T)
    return rollout_of(backbone, out, mask, domains, stop)


@contextmanager
def plain_generation(
    backbone: Backbone, max_new_tokens: int, temperature: float, stop: Sequence[str], vocabulary: int | None = None
) -> Iterator[dict[str, Any]]:
    """What to give Transformers' generate() so that no cut or penalty is left; the base's own settings are away while the block lasts."""
    base = backbone.model
    stored = base.generation_config
    padding = list(range(vocabulary, backbone.vocabulary)) if vocabulary is not None else []
    plain = GenerationConfig(
        do_sample=temperature > 0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids(backbone),
        pad_token_id=backbone.tokenizer.pad_token_id,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
        **({"stop_strings": list(stop)} if stop else {}),
        **({"suppress_tokens": padding} if padding else {}),
    )
    base.generation_config = plain  # generate() fills what a given config leaves open from the model's own
    try:
        yield {"generation_config": plain} | ({"tokenizer": backbone.tokenizer} if stop else {})
    finally:
        base.generation_config = stored


def rollout_of(backbone: Backbone, ids: Tensor, prompt_mask: Tensor, domains: Sequence[str], stop: Sequence[str]) -> Rollout:
    """What generate() gave, (B, P + T), with what belongs to each response. `prompt_mask` is (B, P)."""
    response = ids[:, prompt_mask.shape[1] :]  # (B, T)
    ends = torch.isin(response, torch.tensor(stop_ids(backbone), device=response.device))  # (B, T)
    if stop:
        ends |= _ends_in_text(backbone.tokenizer, response, stop)
    response_mask = (ends.cumsum(1) - ends.long()) == 0  # up to and with the first end
    return Rollout(
        ids=ids,
        attention_mask=torch.cat([prompt_mask, response_mask.long()], dim=1),
        response_mask=response_mask,
        capped=~ends.any(1),
        domains=tuple(domains),
    )


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


def joined(parts: Sequence[Rollout], order: Sequence[int], pad: int) -> Rollout:
    """Rollouts of different prompts as one, row i of it being row `order[i]` of them one after the other. `pad` fills them up."""
    prompt = max(part.prompt_width for part in parts)
    longest = max(part.response_mask.shape[1] for part in parts)
    room = [(prompt - part.prompt_width, longest - part.response_mask.shape[1]) for part in parts]
    rows = torch.tensor(order, device=parts[0].ids.device)

    def stacked(name: str, value: int) -> Tensor:
        return torch.cat([F.pad(getattr(part, name), sides, value=value) for part, sides in zip(parts, room, strict=True)])[rows]

    masks = torch.cat([F.pad(part.response_mask, (0, right)) for part, (_, right) in zip(parts, room, strict=True)])
    domains = [domain for part in parts for domain in part.domains]
    return Rollout(
        ids=stacked("ids", pad),
        attention_mask=stacked("attention_mask", 0),
        response_mask=masks[rows],
        capped=torch.cat([part.capped for part in parts])[rows],
        domains=tuple(domains[row] for row in order),
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


def _ends_in_text(tokenizer: PreTrainedTokenizerBase, response: Tensor, stop: Sequence[str]) -> Tensor:
    """(B, T) True on the token that completes the first stop text of a row."""
    ends = torch.zeros_like(response, dtype=torch.bool)
    for row, ids in enumerate(response.tolist()):
        if any(text in tokenizer.decode(ids) for text in stop):
            low, high = 1, len(ids)  # the shortest beginning that holds one
            while low < high:
                middle = (low + high) // 2
                found = any(text in tokenizer.decode(ids[:middle]) for text in stop)
                low, high = (low, middle) if found else (middle + 1, high)
            ends[row, low - 1] = True
    return ends


def stop_ids(backbone: Backbone) -> list[int]:
    """The tokens that end a response."""
    stored = backbone.peft.get_base_model().generation_config.eos_token_id
    ids = set(stored) if isinstance(stored, list) else {stored}
    return sorted(i for i in (*ids, backbone.tokenizer.eos_token_id) if i is not None)
