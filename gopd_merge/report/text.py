"""The comparison as plain text for the terminal and as Markdown for the model card, out of the page's own tables. No torch."""

import re
from collections.abc import Iterator

from gopd_merge.errors import printable
from gopd_merge.report.document import Document
from gopd_merge.report.scale import picture, scale_of, scale_tables
from gopd_merge.report.tables import Table, comparison_table, retention_table, score_table, seeds_table
from gopd_merge.report.terminal import columns
from gopd_merge.report.verdict import verdict_of


def terminal_text(document: Document) -> str:
    """The verdict and the tables, aligned; what was known about α before the merge is drawn."""
    verdict = verdict_of(document)
    blocks = [f"{verdict.word}: {printable(verdict.sentence)}"] if verdict.status != "none" else []
    for table in _tables(document):
        rows = [[title for title, _ in table.columns], *([cell.text for cell in row.cells] for row in table.rows)]
        blocks.append(f"{table.caption}\n" + columns([["  " + printable(row[0]), *map(printable, row[1:])] for row in rows]))
        blocks[-1] += f"\n  {table.note}" if table.note else ""
    known = scale_of(document)
    return "\n\n".join([*blocks, *([picture(known)] if known else [])])


def markdown_text(document: Document) -> str:
    """The verdict, what it rests on and the tables. Names no path and no command: it goes into a card that others read."""
    verdict = verdict_of(document)
    blocks = [f"**{verdict.word}.** {escaped(verdict.sentence)}"]
    if verdict.findings:
        blocks.append("\n".join(f"- {escaped(f.text)}: **{f.reading}**" for f in verdict.findings))
    known = scale_of(document)
    for table in (*_tables(document), *(scale_tables(known) if known else ())):
        blocks.append(f"**{escaped(table.caption)}**\n\n{markdown_table(table)}")
        if table.note:
            blocks.append(escaped(table.note))
    asked = [
        f"{document.title(s.key)}: suite {s.suite}, version {s.version[:12]}, {s.split} split, temperature {s.temperature:g}"
        for s in document.suites
    ]
    blocks.append("\n".join(f"- {escaped(line)}" for line in asked))
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """The text on one line, with no character that Markdown or HTML would act upon."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~$])", r"\\\1", printable(text)).replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")


def _tables(document: Document) -> Iterator[Table]:
    yield score_table(document)
    for table in (comparison_table(document), retention_table(document), seeds_table(document)):
        if table is not None and table.rows:
            yield table


def markdown_table(table: Table) -> str:
    """One of the tables as Markdown."""
    lines = ["| " + " | ".join(escaped(title) for title, _ in table.columns) + " |"]
    lines.append("|" + "|".join("--:" if number else "---" for _, number in table.columns) + "|")
    for row in table.rows:
        cells = [escaped(cell.text) for cell in row.cells]
        lines.append("| " + " | ".join([f"**{cells[0]}**", *cells[1:]] if row.marked else cells) + " |")
    return "\n".join(lines)
