"""An OpenAI-compatible server: what is served there, and requests that are given again until one is answered. No torch."""

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gopd_merge.errors import InputError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a request is given again; each pause is twice the last
TOO_EARLY = (408, 425, 429)  # what a server says that would answer later, as it does with 5xx
AWAY = (*TOO_EARLY, 502, 503, 504)  # what says of a request nothing at all: 500 may mean that it cannot be done
KEY = "GOPD_REMOTE_API_KEY"  # the environment variable
Item = TypeVar("Item")
Result = TypeVar("Result")
REASON_LENGTH = 160  # characters of what a server says that end up in a message


class Failed(Exception):
    """A request without an answer: why, in a few words."""

    def __init__(self, reason: str, status: int | None = None, again: bool = False, after: float = 0.0) -> None:
        """`again`: it may be answered later, in `after` seconds if the server said when. `status` is None where nothing came back."""
        super().__init__(reason)
        self.status, self.again, self.after = status, again, after


def is_remote(location: str) -> bool:
    """Whether an expert is behind a server."""
    return re.match(r"https?://", location, re.IGNORECASE) is not None


def lora_room(rank: int) -> int | None:
    """The smallest rank for which vLLM makes room that holds this one; None where there is none."""
    return next((room for room in (8, 16, 32, 64, 128, 256, 320, 512) if room >= rank), None)


def split_location(location: str) -> tuple[str, str]:
    """`http://host:8000/v1#name` as the server's URL and the name under which it serves the model. Raises InputError."""
    shown, is_whole, fragment = _parts(location, "http://host:8000/v1#name")
    if not (is_whole and fragment):
        raise InputError(f"{shown}: names no model on a server; write http://host:8000/v1#name, with a name that /v1/models lists")
    return location.partition("#")[0], fragment


def check_url(location: str) -> None:
    """Raises InputError unless it is a server's URL and nothing more."""
    shown, is_whole, fragment = _parts(location, "http://host:8000/v1")
    if not is_whole or fragment:
        raise InputError(f"{shown}: is not the URL of a server; write http://host:8000/v1, without #name")


def _parts(location: str, form: str) -> tuple[str, bool, str]:
    """A location as a message may show it, whether a server can be there, and what follows #. Raises InputError."""
    shown = re.sub("//[^/#]*@", "//", location)  # a message must not repeat a password
    try:
        parts = urlsplit(location)
        is_whole = bool(parts.hostname and not parts.query and parts.port != 0)
    except ValueError as error:
        raise InputError(f"{shown}: no URL ({error}); write {form}") from None
    if parts.username is not None:
        raise InputError(f"{shown}: was given with a user or password; leave them out, and put the server's key into {KEY}")
    return shown, is_whole, parts.fragment


def api_key() -> str | None:
    """The key that the servers of remote experts ask for, from the environment. Raises InputError."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{KEY}: holds characters that no key has; set it again")
    return key or None


class Server:
    """One server, used from several threads. Every failure is a `Failed`, whichever library underneath it comes from."""

    def __init__(self, url: str, timeout: float, key: str | None = None, connections: int = 100) -> None:
        """`url` with or without /v1; `timeout` in seconds, of connecting and of every silence; `key` is sent as a bearer token."""
        import httpx2

        self.url = url.rstrip("/").removesuffix("/v1")
        self._key = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
            self._client = httpx2.Client(base_url=f"{self.url}/v1/", headers=headers, timeout=timeout, limits=limits)
        except Exception as error:  # what is wrong with a URL has errors of several libraries
            raise Failed(self._cause(error)) from None

    def models(self) -> dict[str, dict[str, Any]]:
        """What is served, by name: what /v1/models says of each. Raises Failed, at once."""
        reply = self._once("GET", "models", None)
        try:
            return {str(card["id"]): dict(card) for card in reply["data"]}
        except (LookupError, TypeError, ValueError):
            raise Failed("its list of models is none") from None

    def post(
        self,
        path: str,
        body: dict[str, Any],
        patience: float,
        waiting: Callable[[Failed], None] = lambda failure: None,
        stop: threading.Event | None = None,
        order: bool = False,
    ) -> Any:
        """The JSON that answers a request to /v1/`path`.

        A request that fails for now is given again after pauses that double, or after what the server's Retry-After says,
        until `patience` seconds after its first failure. Raises the last Failed then; at once where waiting cannot help, or when
        another thread sets `stop`.

        Args:
            path: such as chat/completions.
            body: sent as JSON.
            patience: seconds; 0 for one try.
            waiting: told of each failure after which it will be tried again.
            stop: ends the waiting.
            order: something is to be done; it is answered by a sentence, which is returned, and not given again after a 500.
        """
        stop = stop or threading.Event()
        pause, deadline = FIRST_PAUSE, None
        while True:
            try:
                return self._once("POST", path, body, order)
            except Failed as failure:
                now = time.monotonic()
                deadline = now + patience if deadline is None else deadline
                if not failure.again or now >= deadline:
                    raise
                waiting(failure)
                if stop.wait(min(failure.after or pause, deadline - now)):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _once(self, method: str, path: str, body: dict[str, Any] | None, order: bool = False) -> Any:
        import httpx2

        try:
            reply = self._client.request(method, path, json=body)
        except Exception as error:  # as above
            passing = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError)
            raise Failed(self._cause(error), again=isinstance(error, passing)) from None
        status = reply.status_code
        if not reply.is_success:
            again = status in AWAY if order else status in TOO_EARLY or status >= 500
            reason = f"{status} {_said(reply)}".rstrip()
            raise Failed(self._shown(reason), status, again, _retry_after(reply.headers.get("Retry-After")))
        try:
            return reply.text if order else reply.json()
        except (ValueError, RecursionError):
            raise Failed("what it answers is no JSON", status) from None

    def _cause(self, error: Exception) -> str:
        return self._shown(f"{type(error).__name__}: {error}")

    def _shown(self, reason: str) -> str:
        """On one line, short, and without the key, which a server may repeat."""
        reason = reason.replace(self._key, "***") if self._key else reason
        return " ".join(reason.split())[:REASON_LENGTH]


class Patient:
    """A server that a run waits for, and what is told of that. Used from several threads."""

    def __init__(
        self,
        server: Server,
        name: str,
        patience: float,
        note: Callable[[str], None] = lambda text: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            server: is asked.
            name: of it, in what is told.
            patience: seconds for which a request is given again.
            note: told, once in each round of requests, that the server does not answer, from any thread; and that it does again.
            waiting: called before the first of these notes, from any thread: what is held in memory alone can be saved.
        """
        self.patience = patience
        self._server, self._name, self._note, self._waiting = server, name, note, waiting
        self._lock, self._has_waited = threading.Lock(), False

    def post(self, path: str, body: dict[str, Any], stop: threading.Event | None = None, order: bool = False) -> Any:
        """As Server.post. Raises Failed when the patience is over."""
        return self._server.post(path, body, self.patience, self._waits, stop, order)

    def each(self, workers: int, task: Callable[[Item, threading.Event], Result], items: Sequence[Item]) -> list[Result]:
        """A round: each item's result, `workers` at once, as `in_threads` has it."""
        self._has_waited = False
        found = in_threads(workers, task, items)
        if self._has_waited:
            self._note(f"{self._name} answers again")
        return found

    def _waits(self, failure: Failed) -> None:
        with self._lock:
            if not self._has_waited:
                self._waiting()
                self._note(f"{self._name} does not answer ({failure}); trying again for {self.patience:g} s")
            self._has_waited = True


def in_threads(count: int, task: Callable[[Item, threading.Event], Result], items: Sequence[Item]) -> list[Result]:
    """The task's result for each item, in their order. The first error is raised at once, and ends what the others wait for.

    So does an interrupt. A request that is under way is then left to its own time-out.
    """
    from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait

    stop = threading.Event()
    errors: list[BaseException] = []

    def run(item: Item) -> Result:
        if stop.is_set():
            raise CancelledError
        try:
            return task(item, stop)
        except BaseException as error:
            errors.append(error)
            stop.set()
            raise

    pool = ThreadPoolExecutor(count, thread_name_prefix="server")
    try:
        futures = [pool.submit(run, item) for item in items]
        wait(futures, return_when=FIRST_EXCEPTION)
        if errors:
            raise errors[0]
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _said(reply: Any) -> str:
    """The message in an error's body: {"error": {"message": …}}, {"error": …}, {"message": …}, {"detail": …}, or text."""
    try:
        found = reply.json()
        for name in ("error", "message", "detail"):
            found = found[name] if isinstance(found, dict) and name in found else found
        return str(found)
    except ValueError:
        return str(reply.text)


def _retry_after(header: str | None) -> float:
    """Seconds of a Retry-After, which is a number of them or a date; 0 where it says nothing."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    import email.utils

    try:
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    except ValueError:
        return 0.0
