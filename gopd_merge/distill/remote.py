"""A teacher behind an OpenAI-compatible server that returns the log-probs of a prompt, as vLLM does.

A response is sent as a part of the prompt, in token ids, so that no text is made of it and back; the one token that is
generated after it is thrown away. What comes back are the teacher's own log-probs, at temperature 1.
"""

import re
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gopd_merge.distill.remote_answer import (
    Answer,
    NoLogProbs,
    OtherVocabulary,
    Unusable,
    Vocabulary,
    Written,
    read_answer,
    read_written,
)
from gopd_merge.errors import GopdError, InputError
from gopd_merge.server import KEY, Failed, Patient, Result, Server, api_key, split_location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP_K = 20  # what vLLM allows unless it was started with another --max-logprobs
WORKERS = 8  # requests at once; the server makes one batch of them
TIMEOUT, PATIENCE = 120.0, 600.0  # seconds: of one silence, and of a server that is down in the middle of a run
CHECK_PATIENCE = 30.0  # seconds in the check before a run, for which a server may be busy but not down
UNKNOWN = re.compile("unrecognized|unknown|unexpected|unsupported|extra inputs|not permitted|additional propert", re.IGNORECASE)
MOST = re.compile(r"max(?:imum)? allowed: (\d+)")  # "Requested prompt logprobs of 50, which is greater than max allowed: 20"


class TeacherError(GopdError):
    """A remote teacher that stopped answering, or answers what cannot be right, in the middle of a run."""


class _CannotScore(InputError):
    """A server that returns no log-probs of a prompt."""


@dataclass(frozen=True)
class RemoteScores:
    """What a teacher says of n response tokens: those of the first sequence, then those of the second, and so on."""

    log_probs: Tensor  # (n,) float32, of the tokens that were sampled
    top_ids: Tensor  # (n, k) the likeliest tokens of each state, the likeliest first
    top_log_probs: Tensor  # (n, k) float32


class RemoteTeacher:
    """One model on a server: `check()` it before a run, then `score()` responses; or `check_answers()`, then let it `answer()`."""

    def __init__(
        self,
        location: str,
        tokenizer: "PreTrainedTokenizerBase",
        vocabulary_size: int,
        k: int = TOP_K,
        workers: int = WORKERS,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        note: Callable[[str], None] = lambda text: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is sent yet. Raises InputError for a location that is none.

        Args:
            location: `http://host:8000/v1#name`. The server's key, if it asks for one, is in the environment's GOPD_REMOTE_API_KEY.
            tokenizer: of the base, whose vocabulary the teacher must have.
            vocabulary_size: V, the width of the base's logits.
            k: likeliest tokens that are asked for at each position; 0 for the sampled ones alone. `check` lowers it to what
                the server allows.
            workers: requests at once.
            timeout: seconds that the server may be silent within one request.
            patience: seconds for which `score` and `answer` try again before they give up.
            note: told, once in each of them, that the server does not answer, from any thread; and that it does again.
            waiting: called before the first of these notes, from any thread: what is held in memory alone can be saved.
        """
        url, self.model = split_location(location)
        self.location = location
        self.k = min(k, vocabulary_size - 1)
        self._vocabulary = Vocabulary(tokenizer, vocabulary_size)
        self._workers, self._note = workers, note
        self._plain = False  # whether the server takes no request with vLLM's own fields
        try:
            self._server = Server(url, timeout, api_key())
        except Failed as failure:
            raise InputError(f"{location}: no URL ({failure}); write http://host:8000/v1#name") from None
        self._patient = Patient(self._server, location, patience, note, waiting)

    def check(self, longest: int = 0) -> None:
        """Whether it can teach: it is there, serves the model, returns log-probs of prompts, and its vocabulary is ours.

        Args:
            longest: tokens of the longest prompt and response together.

        Raises:
            InputError: with what is missing and what to do.
        """
        self._check_read(self._check_served(longest + 1))  # one more is generated

    def check_answers(self, longest: int = 0) -> None:
        """Whether it can be learnt from: it is there, serves the model, and writes after a prompt in our token ids.

        Its vocabulary is compared if it returns log-probs of prompts; `note` is told where that cannot be done.
        Arguments and errors as for `check`.
        """
        room = self._check_served(longest)
        try:
            self._check_read(room)
        except _CannotScore:
            self._note(
                f"{self.location}: returns no log-probs of a prompt, so whether it reads tokens as this run's base cannot be compared"
            )
        probe = self._probe_ids(room)[:8]
        while True:
            try:
                read_written(self._server.post("completions", self._answer_request(probe, 1, 0), CHECK_PATIENCE), probe)
                return
            except Failed as failure:
                if failure.status in (400, 422) and not self._plain and UNKNOWN.search(str(failure)):
                    self._plain = True  # an API without these fields has no cuts to turn off by them
                    continue
                if failure.status in (401, 403):
                    raise self._no_key(failure) from None
                raise InputError(f"{self.location}: writes nothing after a prompt ({failure}); see the server's log") from None
            except Unusable as problem:
                raise InputError(f"{self.location}: {problem}; serve the model with vLLM") from None

    def score(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> RemoteScores:
        """What the teacher says of the tokens `sequence[start:]` of each sequence.

        Args:
            sequences: token ids of prompt and response, without padding.
            starts: where each response begins; at least 1, as nothing is said of a first token.

        Raises:
            TeacherError: the server stays away longer than the patience, refuses a request, or its answer cannot be right.
        """
        if not all(0 < start <= len(sequence) for sequence, start in zip(sequences, starts, strict=True)):
            raise ValueError("a response begins outside of its sequence")
        answers = self._patient.each(self._workers, self._score_one, list(zip(sequences, starts, strict=True)))
        top_ids = [row for answer in answers for row in answer.top_ids]
        top_log_probs = [row for answer in answers for row in answer.top_log_probs]
        return RemoteScores(
            log_probs=torch.tensor([value for answer in answers for value in answer.log_probs], dtype=torch.float32),
            top_ids=torch.tensor(top_ids, dtype=torch.long).reshape(len(top_ids), self.k),
            top_log_probs=torch.tensor(top_log_probs, dtype=torch.float32).reshape(len(top_ids), self.k),
        )

    def answer(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seeds: Sequence[int]) -> list[Written]:
        """What the teacher writes after each prompt, at temperature 1 and without any cut, up to its end token.

        Args:
            prompts: token ids, without padding.
            max_new_tokens: the length at which a response is cut.
            seeds: of each request; a server that heeds them repeats itself with the run.

        Raises:
            TeacherError: as `score`.
        """
        requests = [self._answer_request(list(ids), max_new_tokens, seed) for ids, seed in zip(prompts, seeds, strict=True)]
        return self._patient.each(self._workers, self._answer_one, requests)

    def close(self) -> None:
        """Close the connections to the server."""
        self._server.close()

    def _score_one(self, part: tuple[Sequence[int], int], stop: threading.Event) -> Answer:
        ids, start = list(part[0]), part[1]
        if start == len(ids):
            return Answer([], [], [])
        return self._ask(self._request(ids), lambda reply: read_answer(reply, ids, start, self.k, self._vocabulary), stop)

    def _answer_one(self, request: dict[str, Any], stop: threading.Event) -> Written:
        return self._ask(request, lambda reply: read_written(reply, request["prompt"]), stop)

    def _ask(self, request: dict[str, Any], read: Callable[[Any], Result], stop: threading.Event) -> Result:
        """What `read` makes of the server's reply, in the middle of a run. Raises TeacherError."""
        try:
            return read(self._patient.post("completions", request, stop))
        except Failed as failure:
            if failure.again:
                raise TeacherError(
                    f"{self.location}: the server has not answered for {self._patient.patience:g} s ({failure}); start it, then give the "
                    "command again with --resume, and a longer --remote-patience if it needs one"
                ) from None
            raise TeacherError(f"{self.location}: the server refuses a request ({failure}); see the server's log") from None
        except OtherVocabulary as problem:
            raise TeacherError(
                f"{self.location}: answers with another model's vocabulary ({problem}); serve again what was served when the run began"
            ) from None
        except Unusable as problem:
            raise TeacherError(f"{self.location}: {problem}, which cannot be used; see the server's log") from None

    def _request(self, ids: list[int]) -> dict[str, Any]:
        """For vLLM, whose prompt log-probs take no notice of temperature, penalties or cuts.

        Log-probs are not cached with a prefix, and front ends of vLLM have returned stale ones: the salt keeps each request to itself.
        """
        return {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": max(1, self.k),
            "cache_salt": uuid.uuid4().hex,
        }

    def _answer_request(self, ids: list[int], max_new_tokens: int, seed: int) -> dict[str, Any]:
        """Every cut and penalty is named and off: a server may have defaults of its own, from the model's generation_config.json."""
        request = {"model": self.model, "prompt": ids, "max_tokens": max_new_tokens, "seed": seed, "temperature": 1.0, "top_p": 1.0}
        request |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        return request if self._plain else request | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}

    def _check_read(self, room: int | None) -> None:
        """Whether it returns log-probs of a prompt, in our vocabulary. Raises InputError; `_CannotScore` where it returns none."""
        probe = self._probe_ids(room)
        try:
            reply = self._probe(probe)
            read_answer(reply, probe, 1, self.k, self._vocabulary)
        except NoLogProbs as problem:
            raise self._no_log_probs(str(problem)) from None
        except OtherVocabulary as problem:
            raise self._other_vocabulary(str(problem)) from None
        except Unusable as problem:
            raise InputError(f"{self.location}: {problem}; serve the model with vLLM") from None

    def _probe_ids(self, room: int | None) -> list[int]:
        probe = self._vocabulary.probe()
        return probe[-max(2, min(len(probe), (room or len(probe) + 1) - 1)) :]

    def _check_served(self, longest: int) -> int | None:
        """The tokens that the model takes at once, if the server says so. `longest`: that the run will send and let it generate."""
        try:
            served = self._server.models()
        except Failed as failure:
            if failure.status in (401, 403):
                raise self._no_key(failure) from None
            raise InputError(
                f"{self.location}: no OpenAI-compatible server answers there ({failure}); start one, such as vllm serve"
            ) from None
        if self.model not in served:
            raise InputError(
                f"{self.location}: it serves {', '.join(served) or 'no model'}, not {self.model}; name one of those after #, "
                "or serve the adapter with --lora-modules NAME=PATH"
            )
        card = served[self.model]
        rooms = [one.get("max_model_len") for one in (card, served.get(str(card.get("parent")), {}))]
        room = next((int(found) for found in rooms if isinstance(found, int) and found > 0), None)
        if room is not None and longest > room:
            raise InputError(
                f"{self.location}: takes {room} tokens at once, where this run has up to {longest}; "
                "lower --max-new-tokens, or serve it with a larger --max-model-len"
            )
        return room

    def _probe(self, probe: list[int]) -> Any:
        """The server's answer to the probe, for as many tokens a position as it allows, which is what `k` is then."""
        while True:
            try:
                return self._server.post("completions", self._request(probe), CHECK_PATIENCE)
            except Failed as failure:
                most = MOST.search(str(failure))
                if most and 0 < int(most[1]) < self.k:
                    self._note(f"{self.location} tells {most[1]} tokens at a position, not {self.k}")
                    self.k = int(most[1])
                    continue
                if failure.status in (401, 403):
                    raise self._no_key(failure) from None
                if "out of vocabulary" in str(failure).lower():
                    raise self._other_vocabulary(str(failure)) from None
                if failure.status is not None and not failure.again:
                    raise self._no_log_probs(f"it says {failure}") from None
                raise InputError(f"{self.location}: the server fails at a first request ({failure}); see the server's log") from None

    def _no_key(self, failure: Failed) -> InputError:
        return InputError(f"{self.location}: the server does not let this run in ({failure}); set {KEY} to its key")

    def _no_log_probs(self, problem: str) -> "_CannotScore":
        return _CannotScore(
            f"{self.location}: does not return the log-probs of a prompt ({problem}), without which it cannot score what a student says; "
            "serve the model with vLLM, or learn from its samples with --method seqkd"
        )

    def _other_vocabulary(self, problem: str) -> InputError:
        return InputError(
            f"{self.location}: answers with another model's vocabulary ({problem}); serve an adapter of this run's base, with its tokenizer"
        )
