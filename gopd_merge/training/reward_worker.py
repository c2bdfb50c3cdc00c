"""Runs a user's reward function, or searches a regular expression: one JSON line in, one out. `isolated.py` runs this file by itself.

It has a process of its own because the function may hang, crash or print, and a pattern may take for ever. What it prints is dropped.
"""

import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(file: str, name: str) -> Callable[..., Any]:
    """The function of that name; other files beside its own can be imported by it."""
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018 - a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise AttributeError(f"{path.name} has no function {name}")
    return given_what_it_takes(function)


def given_what_it_takes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called with those of the columns that it names, or with all if it has **columns."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return function
    names = {parameter.name for parameter in parameters}
    return lambda **columns: function(**{name: value for name, value in columns.items() if name in names})


def searching(pattern: str) -> Callable[..., float]:
    """1 for a response that has the pattern in it, else 0."""
    compiled = re.compile(pattern)
    return lambda response, **_: float(compiled.search(response) is not None)


def failure(error: BaseException, path: str) -> str:
    """Its kind, where in the user's file it was raised, and what it says."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path and Path(frame.filename).resolve() == Path(path).resolve()
    ]
    where = f" in line {lines[-1]}" if lines else ""
    return f"raised {type(error).__name__}{where}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def answered(function: Callable[..., Any], columns: dict[str, Any], path: str) -> dict[str, Any]:
    """{"reward": number}, or {"failure": text}."""
    try:
        value = function(**columns)
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            return {"reward": float(value)} if isinstance(value, bool) else {"failure": f"returned {type(value).__name__}, not a number"}
        value = float(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"failure": failure(error, path)}
    return {"reward": value} if abs(value) < float("inf") else {"failure": f"returned {value}, not a finite number"}


def serve(kind: str, what: str, name: str) -> None:
    """Answers until there is nothing more to read. The first line out says that it is ready, or why not."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    path = what if kind == "function" else ""
    try:
        function = load(what, name) if kind == "function" else searching(what)
    except BaseException as error:
        replies.write(json.dumps({"failure": failure(error, path)}) + "\n")
        return
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        replies.write(json.dumps(answered(function, json.loads(line), path)) + "\n")


if __name__ == "__main__":
    serve(*sys.argv[1:4])
