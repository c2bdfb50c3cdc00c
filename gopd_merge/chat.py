"""Talking to adapters: several voices on one loaded base, each with a conversation of its own, that answer the same words side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.distill.decoding import Draw
from gopd_merge.distill.rollout import ends_of, pad_of, plain_generation, row_seeds, stop_ids
from gopd_merge.errors import InputError
from gopd_merge.experts.base import context_length, load_base, resolve_base
from gopd_merge.experts.intake import read_expert
from gopd_merge.machine import resolve_device

BASE = "base"  # the word for the base without any adapter
Tell = Callable[[int, str], None]  # a voice's number, and its whole answer so far


@dataclass
class Voice:
    """One that answers, and what it was told and said so far."""

    name: str
    role: str
    messages: list[dict[str, str]] = field(default_factory=list)


class Chat:
    """Conversations of one person with several voices."""

    def __init__(self, backbone: Backbone, voices: Sequence[Voice], longest: int | None, system: str | None = None) -> None:
        """`longest`: tokens that the base can read. `system` is a message before each conversation."""
        self.voices = list(voices)
        self._backbone, self._longest, self._system = backbone, longest, system
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        self._turn = 0
        for voice in self.voices:
            voice.messages = [{"role": "system", "content": self._system}] if self._system else []

    @torch.no_grad()
    def ask(self, text: str, max_new_tokens: int, temperature: float, seed: int, tell: Tell = lambda *_: None) -> list[str]:
        """Every voice's answer. All draw with the same random numbers, so that they differ by what they are.

        Only whole answers are remembered. Raises InputError where the conversation has become too long for the base.
        """
        asked = [[*voice.messages, {"role": "user", "content": text}] for voice in self.voices]
        together = self._backbone.can_mix
        groups = [list(range(len(asked)))] if together else [[number] for number in range(len(asked))]
        answers = [""] * len(asked)
        for group in groups:
            ids, mask = self._encoded([asked[number] for number in group])  # (B, P)
            room = max_new_tokens if self._longest is None else min(max_new_tokens, self._longest - ids.shape[1])
            if room < 1:
                raise InputError(f"the conversation has {ids.shape[1]} tokens and the base reads {self._longest}; begin a new one")
            seeds = row_seeds(seed, "chat", self._turn, count=1) * len(group)
            stream = _Stream(self._backbone, group, tell)
            self._generate(group, ids, mask, room, Draw(seeds, temperature, self._backbone.device, "check the adapter"), stream)
            for number, answer in zip(group, stream.texts, strict=True):
                answers[number] = answer
        for voice, messages, answer in zip(self.voices, asked, answers, strict=True):
            voice.messages = [*messages, {"role": "assistant", "content": answer}]
        self._turn += 1
        return answers

    def _generate(self, group: Sequence[int], ids: Tensor, mask: Tensor, room: int, draw: Draw, stream: "_Stream") -> None:
        backbone, ends = self._backbone, ends_of(self._backbone, ())
        ends.begin(len(group), ids.shape[1], enough=len(group))
        with (
            self._roles([self.voices[number].role for number in group]) as model,
            plain_generation(backbone, ids.shape[1] + room) as options,
        ):
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([draw]),
                stopping_criteria=StoppingCriteriaList([ends]),
                streamer=stream,
                **options,
            )

    @contextmanager
    def _roles(self, roles: Sequence[str]) -> Iterator[Any]:
        """The model, row b of whose batch is computed by `roles[b]`."""
        if len(roles) == 1:
            with self._backbone.role(roles[0]) as model:
                yield model
        else:
            with self._backbone.mixed_batch(roles):
                yield self._backbone.peft

    def _encoded(self, conversations: Sequence[list[dict[str, str]]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, both (B, P), in the base's chat template; a base without one gets the messages as lines."""
        tokenizer = self._backbone.tokenizer
        if tokenizer.chat_template:
            texts = [tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) for messages in conversations]
        else:
            texts = ["\n".join(message["content"] for message in messages) for messages in conversations]
        encoded = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        return encoded["input_ids"].to(self._backbone.device), encoded["attention_mask"].to(self._backbone.device)


class _Stream(BaseStreamer):  # type: ignore[misc]
    """Gets the tokens of all rows one after the other, and tells each voice's text as it grows, up to its end."""

    def __init__(self, backbone: Backbone, group: Sequence[int], tell: Tell) -> None:
        self._tokenizer, self._group, self._tell = backbone.tokenizer, group, tell
        self._stop = {*stop_ids(backbone), pad_of(backbone)}
        self._rows: list[list[int]] = [[] for _ in group]
        self._ended = [False for _ in group]
        self.texts = ["" for _ in group]
        self._begun = False

    def put(self, value: Tensor) -> None:
        """First the prompts, (B, P), then a token of every row, (B,)."""
        if not self._begun:
            self._begun = True
            return
        for row, token in enumerate(value.tolist()):
            self._ended[row] |= token in self._stop
            if self._ended[row]:
                continue
            self._rows[row].append(token)
            text = self._tokenizer.decode(self._rows[row], skip_special_tokens=True)
            if text != self.texts[row] and not text.endswith("�"):  # a character of which some bytes are still to come
                self.texts[row] = text
                self._tell(self._group[row], text)

    def end(self) -> None:
        """After the last token: what was held back is told as it is."""
        for row, ids in enumerate(self._rows):
            self.texts[row] = self._tokenizer.decode(ids, skip_special_tokens=True)
            self._tell(self._group[row], self.texts[row])


def load_chat(names: Sequence[str], base: str | None, quantize: str, device: str, system: str | None = None) -> Chat:
    """A chat with these adapters (folders, Hub ids, or the word `base` for none) on their one base. Raises InputError."""
    experts = {name: read_expert(f"voice{number}", name, allow_noop=True) for number, name in enumerate(names) if name != BASE}
    found = resolve_base(list(experts.values()), base, quantize=quantize)
    model, tokenizer = load_base(found, quantize, resolve_device(device))
    backbone = Backbone(model, tokenizer, list(experts.values()))
    voices = [Voice(name, expert(experts[name].domain) if name in experts else REFERENCE) for name in names]
    return Chat(backbone, voices, context_length(found), system)
