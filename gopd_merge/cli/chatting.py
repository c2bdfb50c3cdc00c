"""`gopd-merge chat`: a conversation on the terminal, or one answer."""

import math
import signal
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from json import dumps as dump_json
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from gopd_merge.cli.quiet import import_libraries, quieten_libraries
from gopd_merge.errors import InputError, Interrupted

if TYPE_CHECKING:
    from gopd_merge.chat import Chat

HELLO = "/new begins again, /exit or ^D ends, ^C stops an answer"
Tell = Callable[[int, str], None]
Ask = Callable[[Tell, str], list[str]]


def chat(
    adapter: str,
    *,
    others: Annotated[list[str] | None, Parameter(name="--with", consume_multiple=(1, None), negative=())] = None,
    prompt: str | None = None,
    system: str | None = None,
    base: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    seed: int = 0,
    quantize: Literal["nf4", "none"] = "nf4",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Talk to a merged adapter, beside its experts or the base.

    Parameters
    ----------
    adapter
        adapter folder or Hub id
    others
        adapters of the same base that answer beside it; the word base is the base without any
    prompt
        ask this and end; without a terminal the prompt is what comes on standard input
    system
        message of the system before the conversation
    base
        folder or Hub id of the base model (default: the one that the adapter names)
    max_new_tokens
        longest answer in tokens
    temperature
        1 = the distribution that was trained and measured, 0 = always the likeliest token
    seed
        of the sampling; all that answer draw with the same random numbers
    quantize
        precision of the base in memory
    device
        where to run
    json
        print the answers as one JSON document
    """
    names = [adapter, *(others or ())]
    if len(set(names)) < len(names):
        raise InputError(f"--with {' '.join(names[1:])}: each adapter can answer once; name others")
    if not 0 <= temperature < math.inf or max_new_tokens < 1:
        raise InputError(f"--temperature {temperature} --max-new-tokens {max_new_tokens}: out of range; use 0 or more, and 1 or more")
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is not None and not prompt.strip():
        raise InputError("there is nothing to answer; give --prompt TEXT, or text on standard input")
    if json and prompt is None:
        raise InputError("--json prints one answer; give --prompt TEXT")
    try:
        talk = _loaded(names, base, quantize, device, system)

        def ask(tell: Tell, text: str) -> list[str]:
            return talk.ask(text, max_new_tokens, temperature, seed, tell)

        if prompt is None:
            _converse(talk, names, ask)
        elif json:
            answers = ask(lambda *_: None, prompt)
            print(dump_json({"schema": 1, "prompt": prompt, "answers": dict(zip(names, answers, strict=True))}, ensure_ascii=False))
        else:
            _show(names, prompt, ask)
    except KeyboardInterrupt:
        raise Interrupted("stopped", signal.SIGINT) from None


def _loaded(names: Sequence[str], base: str | None, quantize: str, device: str, system: str | None) -> "Chat":
    quieten_libraries()
    from rich.console import Console

    with Console(stderr=True).status("loading the base"):
        import_libraries()
        from gopd_merge.chat import load_chat

        return load_chat(names, base, quantize, device, system)


def _converse(talk: "Chat", names: Sequence[str], ask: Ask) -> None:
    """Until the person ends it."""
    print(HELLO, file=sys.stderr)
    with suppress(ImportError):
        import readline  # noqa: F401 - its import gives input() a history and keys to edit with
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/exit":
            return
        if text == "/new":
            talk.begin()
        elif text:
            try:
                _show(names, text, ask)
            except KeyboardInterrupt:
                print("\n(stopped, and forgotten)")
            except InputError as error:
                print(f"{error}: /new", file=sys.stderr)


def _show(names: Sequence[str], text: str, ask: Ask) -> None:
    """The answers as they grow: one alone as text, several side by side; where there is no terminal, one after the other."""
    if len(names) == 1:
        shown = 0

        def tell(_: int, answer: str) -> None:
            nonlocal shown
            answer = harmless(answer)
            print(answer[shown:], end="", flush=True)
            shown = len(answer)

        ask(tell, text)
        print()
        return
    if not sys.stdout.isatty():
        for name, answer in zip(names, ask(lambda *_: None, text), strict=True):
            print(f"{name}:\n{harmless(answer)}\n")
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    so_far = [""] * len(names)

    def table() -> Table:
        columns = Table(expand=True)
        for name in names:
            columns.add_column(Text(name), ratio=1, overflow="fold")
        columns.add_row(*(Text(answer) for answer in so_far))
        return columns

    with Live(table(), console=Console(), vertical_overflow="visible") as live:

        def grow(number: int, answer: str) -> None:
            so_far[number] = harmless(answer)
            live.update(table())

        ask(grow, text)


def harmless(text: str) -> str:
    """Without control characters, of which some steer a terminal: a model may write anything."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
