"""One self-contained HTML page: styles, script, plotly and all numbers are in it, and it can load nothing. No torch.

Every text is escaped by the template engine; data for the plots travels as JSON in which no tag can end. Besides, a content security policy
names the hashes of the two scripts, so that no other one runs, and forbids every request.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gopd_merge.report import answers, plots, provenance, scale, tables, training
from gopd_merge.report.document import Document
from gopd_merge.report.figures import Plot
from gopd_merge.report.lines import headline_of, lines_of
from gopd_merge.report.verdict import verdict_of

TEMPLATES = Path(__file__).parent / "templates"
READABLE = "\n\t\u00a0\u200c\u200d"  # besides printable characters: breaks, and joiners that scripts and emoji need


@dataclass(frozen=True)
class Section:
    """One tab: its template is `<name>.html.jinja`."""

    name: str
    tab: str
    title: str


SECTIONS = (
    Section("scores", "Scores", "Scores"),
    Section("scale", "Choice of α", "Score against α"),
    Section("training", "Training", "Training curves"),
    Section("retention", "Retention", "What each domain kept and lost"),
    Section("length", "Length", "Length and entropy"),
    Section("cost", "Cost", "Cost against quality"),
    Section("tuning", "Tuning", "How the rivals were tuned"),
    Section("answers", "Answers", "Sample answers side by side"),
    Section("inputs", "Inputs", "Inputs, benchmarks, and how to repeat it"),
)


def html_page(document: Document, title: str | None = None) -> str:
    """The page. `title` replaces the name that it has from the merge."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    scripts = {"app": (TEMPLATES / "page.js").read_text(), "plotly": get_plotlyjs().replace("\r\n", "\n")}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    context = _context(document)
    figures = {plot.name: plot.figure for plot in _all_plots(context)}
    return environment.get_template("page.html.jinja").render(
        **context,
        title=title or context["name"],
        sections=[section for section in SECTIONS if section.name != "scale" or document.scale],
        figures=figures,
        style=(TEMPLATES / "page.css").read_text(),
        scripts=scripts,
        hashes=[b64encode(sha256(text.encode()).digest()).decode() for text in scripts.values()],
    )


def visible(text: str) -> str:
    """The text with what cannot be seen written out: control characters, and those that turn the direction of what follows."""
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c in READABLE else c.encode("unicode_escape").decode() for c in text)


def _context(document: Document) -> dict[str, Any]:
    """Everything that the templates show."""
    lines = lines_of(document)
    headline = headline_of(lines)
    asked = answers.questions(document)
    return {
        "document": document,
        "name": f"{document.output or 'A merge'}: {headline.label if headline else document.headline.method}",
        "verdict": verdict_of(document),
        "scores": tables.score_table(document),
        "seeds": tables.seeds_table(document),
        "comparisons": tables.comparison_table(document),
        "score_plots": plots.score_plots(document),
        "difference_plots": plots.difference_plots(document),
        "alpha_plots": plots.alpha_plots(document),
        **_scale_context(document),
        "runs": training.runs(document),
        "entropy": training.entropy_table(document),
        "retention": tables.retention_table(document),
        "retention_plot": plots.retention_plot(document),
        "lengths": tables.length_table(document),
        "length_plots": plots.length_plots(document),
        "costs": tables.cost_table(document),
        "cost_plots": plots.cost_plots(document),
        "tuning": tables.tuning_tables(document),
        "questions": asked,
        "divided": sum(q.divided for q in asked),
        "inputs": provenance.inputs_table(document),
        "suites": provenance.suites_table(document),
        "environment": provenance.pairs_table("Software and machine of the comparison", document.environment),
        "seconds": provenance.pairs_table("Seconds by phase", document.seconds),
        "config": provenance.pairs_table("Options of the merge", document.config or {}),
    }


def _scale_context(document: Document) -> dict[str, Any]:
    """What was known about α before the merge."""
    known = scale.scale_of(document)
    return {
        "scale_about": scale.MEASURED[known.made_by] if known else "",
        "scale_why": sorted(known.why.items()) if known else [],
        "scale_plots": scale.scale_plots(known) if known else [],
        "scale_tables": scale.scale_tables(known) if known else [],
    }


def _all_plots(context: Mapping[str, Any]) -> Sequence[Plot]:
    named = [context[name] for name in ("score_plots", "difference_plots", "alpha_plots", "scale_plots", "length_plots", "cost_plots")]
    named += [run.plots for run in context["runs"]] + [[context["retention_plot"]] if context["retention_plot"] else []]
    return [plot for group in named for plot in group]


def _shown(value: Any) -> Any:
    """What the template engine does to every value that a template writes; escaping follows. Finished markup stays."""
    return visible(value) if type(value) is str else value
