"""Who samples the student's answers: the base that is loaded here, or an engine beside it that is given the student anew every step."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

import torch
from torch import Tensor

from gopd_merge.distill.backbone import STUDENT, Backbone
from gopd_merge.distill.rollout import Rollout, encode, generate, stop_ids
from gopd_merge.errors import GopdError, InputError
from gopd_merge.experts.intake import WEIGHTS
from gopd_merge.experts.tensor_file import file_sha256

PROBED_PROMPTS, PROBED_TOKENS = 8, 16  # of the comparison before a run
ANOTHER_MODEL = 0.5  # nats a token between two engines' log-probs of the same tokens, above which they do not hold the same base
ROUNDING = 1e-3  # by which a log-prob may exceed 0 where it was computed in a low precision


class EngineError(GopdError):
    """An engine that stopped answering, or answers what cannot be right."""


class Engine(Protocol):
    """Who samples one response to each prompt, as the student that is on the backbone now."""

    def sample(self, prompts: Sequence[str], domains: Sequence[str], max_new_tokens: int, seeds: Sequence[int]) -> Rollout:
        """At temperature 1 from the whole distribution; row b is drawn by `seeds[b]`. Raises EngineError."""

    def close(self) -> None:
        """Give back what it holds."""


class HfEngine:
    """The loaded base itself, by Transformers' generate(): exactly the student that is trained."""

    def __init__(self, backbone: Backbone, vocabulary: int) -> None:
        """`vocabulary`: only the first that many tokens are drawn."""
        self._backbone, self._vocabulary = backbone, vocabulary

    def sample(self, prompts: Sequence[str], domains: Sequence[str], max_new_tokens: int, seeds: Sequence[int]) -> Rollout:
        """See Engine."""
        return generate(self._backbone, STUDENT, prompts, domains, max_new_tokens, seeds, vocabulary=self._vocabulary)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Sampled:
    """One response of n tokens, as another engine gives it."""

    ids: list[int]  # n, the end token included
    log_probs: list[float]  # n, log π of each as it was drawn
    ended: bool  # by an end token, not by the limit


class Sampler(Protocol):
    """Another program that holds the base, takes adapters, and samples with one of them on. Every failure is an EngineError."""

    name: str  # in messages

    def load(self, adapter: str, folder: Path) -> None:
        """Take the adapter in the folder, under that name."""

    def unload(self, adapter: str) -> None:
        """Drop it; nothing happens where it is gone already."""

    def sample(self, adapter: str, prompts: Sequence[list[int]], seeds: Sequence[int], options: dict[str, Any]) -> list[Sampled]:
        """A response to each prompt of token ids. `options` are the same for all, named as vLLM's SamplingParams name them."""

    def close(self) -> None:
        """Give back what it holds."""


def sampling_options(stops: Sequence[int], max_new_tokens: int, padding: Sequence[int] = ()) -> dict[str, Any]:
    """What rollout.plain_generation says, in vLLM's words: temperature 1, no cut, no penalty, and no end but ours.

    Everything is named, so that no default of the model's generation_config.json takes its place. `padding` are tokens never to draw.
    """
    return {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "max_tokens": max_new_tokens,
        "ignore_eos": True,  # vLLM's own idea of the end token; ours are these
        "stop_token_ids": list(stops),
        "logprobs": 0,  # of the token that was drawn alone
        **({"logit_bias": dict.fromkeys(padding, -100.0)} if padding else {}),
    }


class OtherEngine:
    """The student on another program: its adapter is written to disk and loaded there under a new name whenever it has changed.

    The name is made of the adapter's bytes: nothing that the program keeps of an older student (its prefix cache, for one) can be taken
    for this one, and several processes with the same student share it.
    """

    def __init__(self, backbone: Backbone, vocabulary: int, sampler: Sampler, parent: Path | None, base_name: str) -> None:
        """`parent` is where the folder for the adapters is made, which `close` removes; by default where temporary files go."""
        self._backbone, self._vocabulary, self._sampler, self._base_name = backbone, vocabulary, sampler, base_name
        self._folder = Path(tempfile.mkdtemp(prefix=".gopd-rollout-", dir=parent)).absolute()
        self._folder.chmod(0o755)  # a server may run as somebody else
        self._adapter = ""

    def sample(self, prompts: Sequence[str], domains: Sequence[str], max_new_tokens: int, seeds: Sequence[int]) -> Rollout:
        """See Engine. The rollout knows the log-probs with which its tokens were drawn."""
        ids, mask = encode(self._backbone, prompts)  # (B, P)
        rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        self._hand_over()
        stops = stop_ids(self._backbone)
        options = sampling_options(stops, max_new_tokens, range(self._vocabulary, self._backbone.vocabulary))
        sampled = self._sampler.sample(self._adapter, rows, seeds, options)
        for one in sampled:
            if problem := _fault(one, self._vocabulary, stops, max_new_tokens):
                raise EngineError(f"{self._sampler.name}: {problem}, which cannot be used; see its log")
        return rollout_of_sampled(ids, mask, sampled, domains, int(self._backbone.tokenizer.pad_token_id))

    def check(self, prompts: Sequence[str], max_new_tokens: int, note: Callable[[str], None]) -> None:
        """Whether it samples from the base that is loaded here, tried on a few of the prompts. `note` is told how near the two are.

        Raises InputError where they are too far apart for one base, or where nothing can be sampled.
        """
        asked = list(prompts[:PROBED_PROMPTS])
        try:
            rollout = self.sample(asked, [""] * len(asked), min(PROBED_TOKENS, max_new_tokens), range(len(asked)))
        except EngineError as error:
            raise InputError(*error.lines) from None
        gap = log_prob_gap(self._backbone, rollout, self._vocabulary)
        if not gap < ANOTHER_MODEL:
            raise InputError(
                f"{self._sampler.name}: its log-probs differ from this run's base by {gap:.2g} nats a token, too far for one model; "
                f"let it hold {self._base_name}, with its tokenizer and its own precision"
            )
        note(f"{self._sampler.name}: its log-probs are {gap:.1g} nats a token from this run's; importance weights make up for that")

    def close(self) -> None:
        """Drop the student there, and the folder here."""
        try:
            if self._adapter:
                self._sampler.unload(self._adapter)
        finally:
            self._sampler.close()
            rmtree(self._folder, ignore_errors=True)

    def _hand_over(self) -> None:
        """The student as it is now, under a name of its own. One that has not changed since is there already."""
        written = self._folder / "student"
        self._backbone.save_student(written, self._base_name, None)
        adapter = f"gopd-{file_sha256(written / WEIGHTS)[:16]}"
        if adapter == self._adapter:
            rmtree(written)
            return
        written.rename(self._folder / adapter)
        if self._adapter:
            self._sampler.unload(self._adapter)  # first: a server may have room for one
            rmtree(self._folder / self._adapter)
        self._sampler.load(adapter, self._folder / adapter)
        self._adapter = adapter


def rollout_of_sampled(ids: Tensor, mask: Tensor, sampled: Sequence[Sampled], domains: Sequence[str], pad: int) -> Rollout:
    """Prompts, (B, P) and padded on the left, with the response to each, filled up with `pad`."""
    lengths = torch.tensor([len(one.ids) for one in sampled], device=ids.device)  # (B,)
    response_mask = torch.arange(int(lengths.max()), device=ids.device) < lengths.unsqueeze(1)  # (B, T)
    response = torch.full(response_mask.shape, pad, device=ids.device)
    response[response_mask] = torch.tensor([i for one in sampled for i in one.ids], device=ids.device)
    log_probs = torch.zeros(response_mask.shape, device=ids.device)
    log_probs[response_mask] = torch.tensor([value for one in sampled for value in one.log_probs], device=ids.device)
    return Rollout(
        ids=torch.cat([ids, response], dim=1),
        attention_mask=torch.cat([mask, response_mask.long()], dim=1),
        response_mask=response_mask,
        capped=torch.tensor([not one.ended for one in sampled], device=ids.device),
        domains=tuple(domains),
        sampled_log_probs=log_probs,
    )


@torch.no_grad()
def log_prob_gap(backbone: Backbone, rollout: Rollout, vocabulary: int) -> float:
    """Mean distance of the log-probs with which a rollout was drawn from those that the student has here, in nats a token."""
    assert rollout.sampled_log_probs is not None
    hidden = rollout.predicting(backbone.hidden(STUDENT, rollout.ids, rollout.attention_mask))  # (N, H)
    log_probs = backbone.logits(hidden)[:, :vocabulary].log_softmax(-1)
    own = log_probs.gather(1, rollout.response_ids().unsqueeze(1)).squeeze(1)  # (N,)
    return float((own - rollout.sampled_log_probs[rollout.response_mask]).abs().mean())


def _fault(one: Sampled, vocabulary: int, stops: Sequence[int], max_new_tokens: int) -> str | None:
    """What cannot be right about a response, as the end of a sentence."""
    if not one.ids or len(one.ids) != len(one.log_probs) or len(one.ids) > max_new_tokens:
        return f"answers with {len(one.ids)} tokens and {len(one.log_probs)} log-probs where up to {max_new_tokens} were asked for"
    if outside := next((i for i in one.ids if not 0 <= i < vocabulary), None):
        return f"answers with the token {outside} where there are {vocabulary}"
    if (value := next((x for x in one.log_probs if not (math.isfinite(x) and x <= ROUNDING)), None)) is not None:
        return f"answers with a log-prob of {value}"
    if any(i in stops for i in one.ids[:-1]) or one.ended != (one.ids[-1] in stops):
        return f"answers with a response that {'ended' if one.ended else 'was cut'} without an end token, or went on after it"
    if not one.ended and len(one.ids) < max_new_tokens:
        return f"answers with a response that was cut after {len(one.ids)} tokens, not {max_new_tokens}"
    return None
