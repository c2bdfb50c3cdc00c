"""One answer of a server with prompt log-probs, in vLLM's form, checked from end to end: nothing of it is used unless all of it fits.

`choices[0].prompt_logprobs` has an entry for each token that was sent: null for the first, then a map of token ids, as texts, to
{"logprob", "rank", "decoded_token"}: the k likeliest tokens there, and the one that was sent wherever that is not among them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROUNDING = 1e-3  # by which probabilities may exceed 1 where they were computed in a low precision
PIECE = "\ufffd"  # in the text of a token that is a part of a character; servers complete such texts from the tokens before
PROBE_EVENLY, PROBE_LAST = 64, 16  # tokens of the vocabulary that a probe takes


class Unusable(Exception):
    """An answer of another form, or one that cannot be right: what is wrong with it, as the end of a sentence."""


class NoLogProbs(Unusable):
    """An answer without log-probs of the prompt."""


class OtherVocabulary(Unusable):
    """An answer in which an id does not stand for the token that it is here."""


@dataclass(frozen=True)
class Answer:
    """What is known of n tokens, in their order."""

    log_probs: list[float]  # n, of the tokens that were sent
    top_ids: list[list[int]]  # n times k, the likeliest first
    top_log_probs: list[list[float]]  # n times k


@dataclass(frozen=True)
class Written:
    """What a teacher wrote after one prompt."""

    text: str
    ended: bool  # by its end token, not by the limit


class Vocabulary:
    """The ids that the model has, and how its tokenizer spells them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", size: int) -> None:
        """`size` is V, the width of the model's logits, which can be more than the tokenizer has tokens."""
        self.size = size
        self._tokenizer = tokenizer
        self._spellings: dict[int, frozenset[str]] = {}

    def check(self, token_id: int, decoded: Any) -> None:
        """Raises OtherVocabulary unless a server's text of an id is ours.

        Releases of vLLM differ in the spaces around it, and some give the vocabulary's own spelling.
        """
        if not 0 <= token_id < self.size:
            raise OtherVocabulary(f"names the token {token_id} where there are {self.size}")
        if not isinstance(decoded, str):
            raise OtherVocabulary(f"does not say how it spells the token {token_id} (decoded_token)")
        spellings = self._spellings.get(token_id)
        if spellings is None:
            spellings = self._spellings[token_id] = self._spelled(token_id)
        if spellings and decoded.strip() not in spellings:
            raise OtherVocabulary(f"spells the token {token_id} {decoded!r}, here it is {min(spellings)!r}")

    def probe(self) -> list[int]:
        """Ids from all over the vocabulary, its last ones and the end token: what tells it from another one.

        Other special tokens are left out: to a server of a multimodal model one can stand for an image.
        """
        special = set(self._tokenizer.all_special_ids)
        ordinary = sorted(i for i in self._tokenizer.get_vocab().values() if i not in special)
        chosen = {ordinary[n * len(ordinary) // PROBE_EVENLY] for n in range(PROBE_EVENLY)}
        return [*sorted(chosen | set(ordinary[-PROBE_LAST:])), self._tokenizer.eos_token_id]

    def _spelled(self, token_id: int) -> frozenset[str]:
        """The texts that it may have; none where these cannot be compared."""
        text = self._tokenizer.decode([token_id])
        if PIECE in text or not text.strip():
            return frozenset()
        return frozenset({text.strip(), str(self._tokenizer.convert_ids_to_tokens(token_id)).strip()})


def read_answer(reply: Any, ids: Sequence[int], start: int, k: int, vocabulary: Vocabulary) -> Answer:
    """The log-probs of `ids[start:]` out of a server's reply to all of `ids`. Raises Unusable."""
    try:
        entries = reply["choices"][0].get("prompt_logprobs")
    except (LookupError, TypeError, AttributeError):
        raise Unusable("answers without choices") from None
    if entries is None:
        raise NoLogProbs("answers without prompt_logprobs")
    if not isinstance(entries, list) or len(entries) != len(ids):
        count = len(entries) if isinstance(entries, list) else "no"
        raise Unusable(f"answers with log-probs of {count} tokens where {len(ids)} were sent")
    answer = Answer([], [], [])
    for position in range(start, len(ids)):
        log_prob, top = _read_position(entries[position], ids[position], k, vocabulary)
        answer.log_probs.append(log_prob)
        answer.top_ids.append([token_id for token_id, _ in top])
        answer.top_log_probs.append([value for _, value in top])
    return answer


def read_written(reply: Any, ids: Sequence[int]) -> Written:
    """The text in a server's reply to the prompt `ids`. Raises Unusable."""
    try:
        choice = reply["choices"][0]
        text, reason, read = choice["text"], choice.get("finish_reason"), (reply.get("usage") or {}).get("prompt_tokens")
    except (LookupError, TypeError, AttributeError):
        raise Unusable("answers without choices") from None
    if not isinstance(text, str) or reason not in ("stop", "length"):
        raise Unusable(f"answers with {type(text).__name__} that ended by {reason!r} where a text was asked for")
    if read is not None and read != len(ids):
        raise OtherVocabulary(f"reads {read} tokens where {len(ids)} were sent")
    return Written(text, reason == "stop")


def _read_position(entry: Any, sent: int, k: int, vocabulary: Vocabulary) -> tuple[float, list[tuple[int, float]]]:
    """The log-prob of the token that was sent, and (id, log-prob) of the k likeliest."""
    found: dict[int, float] = {}
    try:
        for name, fields in entry.items():
            token_id, value = int(name), fields["logprob"]
            vocabulary.check(token_id, fields.get("decoded_token"))
            found[token_id] = _checked(value, token_id)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise Unusable("answers with prompt_logprobs of another form than vLLM's") from None
    if sent not in found:
        raise OtherVocabulary(f"leaves out the token {sent} that was sent")
    if len(found) < k:
        raise Unusable(f"answers with {len(found)} tokens at a position where {k} were asked for")
    top = sorted(found.items(), key=lambda item: -item[1])[:k]  # without the token that was sent, where that is less likely
    total = math.fsum(math.exp(value) for _, value in top)
    if total > 1 + ROUNDING:
        raise Unusable(f"answers with probabilities that add up to {total:.4g}")
    return found[sent], top


def _checked(value: Any, token_id: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > ROUNDING:
        raise Unusable(f"answers with a log-prob of {value} for the token {token_id}")
    return min(float(value), 0.0)
