"""Where the numbers come from: experts, base, benchmarks, environment. No torch."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from gopd_merge.report.document import Document, Suite
from gopd_merge.report.tables import NONE, Cell, Row, Table

HASH = re.compile("[0-9a-f]{32,}")


def inputs_table(document: Document) -> Table:
    """The base and each expert, with commit and sha256."""
    base = document.base
    rows = [_row("base", [base.get(name) for name in ("name", "commit", "quantization", "rank", "sha256")])] if base else []
    for domain, expert in document.inputs.items():
        rows.append(_row(f"{domain} expert", [expert.get(name) for name in ("name", "commit", "quantization", "rank", "sha256")]))
    rows += [_row(m.label, [m.adapter, None, None, None, m.sha256]) for m in document.methods if m.kind == "trained"]
    return Table("Models", [("", False), ("name", False), ("commit", False), ("precision", False), ("rank", True), ("sha256", False)], rows)


def suites_table(document: Document) -> Table:
    """Everything that the scores depend on, a column for each benchmark."""
    fields: list[tuple[str, Callable[[Suite], Any]]] = [
        ("suite", lambda s: s.suite),
        ("what it asks", lambda s: s.about),
        ("licence", lambda s: s.licence),
        ("version (sha256)", lambda s: s.version),
        ("metric", lambda s: s.metric),
        ("split", lambda s: s.split),
        ("questions", lambda s: f"{s.n:,}"),
        ("samples of each", lambda s: s.k),
        ("temperature", lambda s: f"{s.temperature:g}" + (" (greedy)" if s.temperature == 0 else "")),
        ("longest answer", lambda s: f"{s.max_new_tokens:,} tokens"),
        ("stop strings", lambda s: ", ".join(map(repr, s.stop)) if s.stop else None),
        ("chat template", lambda s: s.chat),
        ("rivals tuned on", lambda s: s.tuned_on),
    ]
    rows = [_row(name, [value(suite) for suite in document.suites]) for name, value in fields]
    columns = [("", False), *((document.title(s.key), False) for s in document.suites)]
    return Table("Benchmarks and how they were asked", columns, rows)


def pairs_table(caption: str, values: Mapping[str, Any]) -> Table:
    """Names and values, one a row."""
    return Table(caption, [("name", False), ("value", False)], [_row(name.replace("_", " "), [value]) for name, value in values.items()])


def _row(title: str, values: list[Any]) -> Row:
    texts = [_text(value) for value in values]
    return Row([Cell(title), *(Cell(text, code=HASH.fullmatch(text) is not None) for text in texts)])


def _text(value: Any) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
