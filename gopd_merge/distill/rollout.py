"""What the student answers: sampling at temperature 1 from the full distribution, which is the one that is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
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
        )

    def response_ids(self) -> Tensor:
        """(N,) the sampled tokens, row by row."""
        return self.ids[:, self.prompt_width :][self.response_mask]

    def predicting(self, hidden: Tensor) -> Tensor:
        """(B, P + T, H) -> (N, H): the hidden states from which the N response tokens were sampled, one column to the left."""
        return hidden[:, self.prompt_width - 1 : -1][self.response_mask]


@dataclass(frozen=True)
class Answers:
    """Decoded responses of one model."""

    texts: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens
    capped: tuple[bool, ...]  # whether the length limit cut the response


def encode(backbone: Backbone, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Chat-formatted prompts, padded on the left: ids and mask, both (B, P)."""
    encoded = tokenize(backbone.tokenizer, prompts, return_tensors="pt", padding=True)
    return encoded["input_ids"].to(backbone.device), encoded["attention_mask"].to(backbone.device)


def prompt_lengths(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[int]:
    """Tokens of each prompt as the roles will read it."""
    return [len(ids) for ids in tokenize(tokenizer, prompts)["input_ids"]]


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], **options: Any) -> Any:
    """Prompts as a user's message in the base's chat template; a base without one gets plain text."""
    if tokenizer.chat_template:
        prompts = [
            tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
            for text in prompts
        ]
    return tokenizer(list(prompts), add_special_tokens=not tokenizer.chat_template, **options)


@torch.no_grad()
def generate(
    backbone: Backbone, role: str, prompts: Sequence[str], domains: Sequence[str], max_new_tokens: int, temperature: float = 1.0
) -> Rollout:
    """Sample one response to each prompt as `role` (temperature 0 is greedy), from torch's global generator.

    Every cut and penalty is off, whatever the base's own generation_config.json says: anything else would be another
    distribution than the one that is trained and measured.
    """
    ids, mask = encode(backbone, prompts)  # (B, P)
    with backbone.role(role) as model:
        base = model.get_base_model()
        stored = base.generation_config
        stop_ids = _stop_ids(backbone, stored)
        plain = GenerationConfig(
            do_sample=temperature > 0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=backbone.tokenizer.pad_token_id,
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
        )
        base.generation_config = plain  # generate() fills what a given config leaves open from the model's own
        try:
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=plain)  # (B, P + T)
        finally:
            base.generation_config = stored
    response = out[:, ids.shape[1] :]  # (B, T)
    stops = torch.isin(response, torch.tensor(sorted(stop_ids), device=response.device))
    response_mask = (stops.cumsum(1) - stops.long()) == 0  # up to and with the first stop token
    return Rollout(
        ids=out,
        attention_mask=torch.cat([mask, response_mask.long()], dim=1),
        response_mask=response_mask,
        capped=~stops.any(1),
        domains=tuple(domains),
    )


def answers(backbone: Backbone, rollout: Rollout) -> Answers:
    """The responses as text, without special tokens."""
    response = rollout.ids[:, rollout.prompt_width :]
    lengths = rollout.response_mask.sum(1).tolist()
    texts = backbone.tokenizer.batch_decode(
        [row[:length] for row, length in zip(response.tolist(), lengths, strict=True)], skip_special_tokens=True
    )
    return Answers(tuple(texts), tuple(lengths), tuple(rollout.capped.tolist()))


def _stop_ids(backbone: Backbone, config: GenerationConfig) -> set[int]:
    stored = config.eos_token_id
    ids = set(stored) if isinstance(stored, list) else {stored}
    return {i for i in (*ids, backbone.tokenizer.eos_token_id) if i is not None}
