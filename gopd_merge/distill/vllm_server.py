"""A running `vllm serve` on which the student answers: it reads the student's adapter from disk anew whenever that has changed."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gopd_merge.distill.engines import EngineError, Sampled
from gopd_merge.distill.remote import TIMEOUT
from gopd_merge.distill.remote_answer import Unusable
from gopd_merge.errors import InputError
from gopd_merge.server import KEY, Failed, Patient, Server, api_key, lora_room

REQUESTS = 256  # at once, one a response: what a vLLM server batches unless it was told otherwise


class VllmServer:
    """One server. `check()` it before a run."""

    def __init__(
        self,
        url: str,
        rank: int,
        patience: float,
        note: Callable[[str], None] = lambda text: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is sent yet. Raises InputError for a URL that is none.

        Args:
            url: `http://host:8000/v1`. The server's key, if it asks for one, is in the environment's GOPD_REMOTE_API_KEY.
            rank: of the student, for which the server needs room.
            patience: seconds for which a request is given again before the run is given up.
            note: told that the server does not answer, from any thread; and that it does again.
            waiting: called before that, from any thread: what is held in memory alone can be saved.
        """
        self.name, self._rank = url, rank
        try:
            self._server = Server(url, max(TIMEOUT, patience), api_key(), REQUESTS)  # it is silent until a response is whole
        except Failed as failure:
            raise InputError(f"{url}: no URL ({failure}); write http://host:8000/v1") from None
        self._patient = Patient(self._server, url, patience, note, waiting)
        self._lock, self._restarts = threading.Lock(), 0
        self._folder = Path()

    def check(self, longest: int) -> None:
        """Whether it is there, serves one base, and takes `longest` tokens of prompt and response. Raises InputError."""
        try:
            served = self._server.models()
        except Failed as failure:
            if failure.status in (401, 403):
                raise InputError(f"{self.name}: the server does not let this run in ({failure}); set {KEY} to its key") from None
            raise InputError(f"{self.name}: no vLLM server answers there ({failure}); {self._how_to_start()}") from None
        room = next((card.get("max_model_len") for card in served.values() if not card.get("parent")), None)
        if isinstance(room, int) and longest > room:
            raise InputError(
                f"{self.name}: takes {room} tokens at once, where this run has up to {longest}; "
                "lower --max-new-tokens, or serve the base with a larger --max-model-len"
            )

    def load(self, adapter: str, folder: Path) -> None:
        """See Sampler."""
        self._folder = folder
        try:
            self._patient.post("load_lora_adapter", {"lora_name": adapter, "lora_path": str(folder)}, order=True)
        except Failed as failure:
            if failure.status == 400 and "already been loaded" in str(
                failure
            ):  # by another process of this run, or before an answer was lost
                return
            raise self._not_loaded(failure, folder) from None

    def unload(self, adapter: str) -> None:
        """See Sampler."""
        with suppress(Failed):  # it is gone already, or the server is; what comes next will say whether that is there
            self._server.post("unload_lora_adapter", {"lora_name": adapter}, patience=0, order=True)

    def sample(self, adapter: str, prompts: Sequence[list[int]], seeds: Sequence[int], options: dict[str, Any]) -> list[Sampled]:
        """See Sampler."""
        requests = [
            {"model": adapter, "prompt": ids, "seed": seed, "return_token_ids": True, **options}
            for ids, seed in zip(prompts, seeds, strict=True)
        ]
        return self._patient.each(min(REQUESTS, len(requests)), self._one, requests)

    def close(self) -> None:
        """Close the connections to the server."""
        self._server.close()

    def _one(self, request: dict[str, Any], stop: threading.Event) -> Sampled:
        restarts = self._restarts
        try:
            try:
                return read_sampled(self._patient.post("completions", request, stop), request["prompt"])
            except Failed as failure:
                if failure.status != 404:
                    raise
            with self._lock:  # it was started again meanwhile, and knows the student no more
                if self._restarts == restarts:
                    self.load(request["model"], self._folder)
                    self._restarts += 1
            return read_sampled(self._patient.post("completions", request, stop), request["prompt"])
        except Failed as failure:
            if failure.again:
                raise self._silent(failure) from None
            raise EngineError(f"{self.name}: the server refuses a request ({failure}); see the server's log") from None
        except Unusable as problem:
            raise EngineError(f"{self.name}: {problem}, which cannot be used; see the server's log") from None

    def _not_loaded(self, failure: Failed, folder: Path) -> EngineError:
        if failure.again:
            return self._silent(failure)
        if failure.status in (404, 405) and "adapter" not in str(failure).lower():
            return EngineError(f"{self.name}: loads no adapters while it runs ({failure}); {self._how_to_start()}")
        if failure.status == 404:
            return EngineError(
                f"{self.name}: does not see {folder}, where the student is written; run it on this machine, or write --output to a "
                "disk that both have at the same place"
            )
        return EngineError(f"{self.name}: cannot load the student ({failure}); {self._how_to_start()}")

    def _silent(self, failure: Failed) -> EngineError:
        return EngineError(
            f"{self.name}: the server has not answered for {self._patient.patience:g} s ({failure}); start it, then give the command "
            "again, with a longer --remote-patience if it needs one"
        )

    def _how_to_start(self) -> str:
        return f"start it as VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank {lora_room(self._rank)}"


def read_sampled(reply: Any, prompt: Sequence[int]) -> Sampled:
    """One response out of a server's reply to the prompt. Raises Unusable."""
    try:
        choice = reply["choices"][0]
        sent, ids, log_probs = choice["prompt_token_ids"], choice["token_ids"], choice["logprobs"]["token_logprobs"]
        reason = choice["finish_reason"]
        found = Sampled([int(i) for i in ids], [float(x) for x in log_probs], reason == "stop")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise Unusable("answers without the ids and log-probs of its tokens, as vLLM of 0.11 or newer has them") from None
    if sent != list(prompt):
        raise Unusable(f"reads {len(sent) if isinstance(sent, list) else 'other'} tokens where {len(prompt)} were sent")
    if reason not in ("stop", "length"):
        raise Unusable(f"answers with a response that ended by {reason!r}")
    return found
