"""The page as text: what is in it before a browser sees it."""

import json
import re
import subprocess
import sys

import plotly.graph_objects
import pytest
from plotly.offline import get_plotlyjs

from gopd_merge.report import plots, training
from gopd_merge.report.document import Tuned, read_document
from gopd_merge.report.page import SECTIONS, html_page, visible
from gopd_merge.report.scale import scale_of, scale_plots
from gopd_merge.report.tables import tuning_tables

RGB = "rgb(1, 2, 3)"


@pytest.fixture(scope="module")
def page(document) -> str:
    return html_page(document)


def all_figures(document) -> list[dict]:
    groups = [plots.score_plots(document), plots.difference_plots(document), plots.alpha_plots(document), plots.length_plots(document)]
    groups += [scale_plots(scale_of(document))]
    groups += [plots.cost_plots(document), [plots.retention_plot(document)], *(run.plots for run in training.runs(document))]
    return [plot.figure for group in groups for plot in group]


def with_colors(figure: dict) -> dict:
    """The figure as the page draws it, with some colour for each of the theme's."""
    return json.loads(re.sub(r'"@[a-z0-9]+"', json.dumps(RGB), json.dumps(figure)))


def test_every_figure_is_one_that_plotly_accepts(document):
    figures = all_figures(document)
    assert len(figures) == 2 + 2 + 2 + 2 + 2 + 2 + 1 + 6 * 5
    for figure in figures:
        plotly.graph_objects.Figure(with_colors(figure))
    with pytest.raises(ValueError, match="Invalid property"):
        plotly.graph_objects.Figure({"data": [{"type": "scatter", "error_z": {}}]})


def test_every_colour_of_a_figure_is_one_that_the_style_sheet_has_for_both_themes(document, page):
    used = {name for figure in all_figures(document) for name in re.findall(r'"@([a-z0-9]+)"', json.dumps(figure))}
    defined = set(re.findall(r"--([a-z0-9]+): light-dark\(", page))
    assert used <= defined
    assert {"headline", "band", "ink"} <= used


def test_error_bars_span_the_interval_of_the_document(document):
    rows = [r for r in document.results if r.domain == "math"]
    seen = set()
    for trace in plots.score_plots(document)[0].figure["data"]:
        for y, x, up, down in zip(trace["y"], trace["x"], trace["error_x"]["array"], trace["error_x"]["arrayminus"], strict=True):
            seen.add(y)
            assert (x, x + up, x - down) == pytest.approx((100 * rows[y].score, 100 * rows[y].high, 100 * rows[y].low), abs=0.01)
    assert seen == set(range(13))


def test_lambda_is_plotted_only_where_two_were_run(make_document, written, document):
    assert len(plots.alpha_plots(document)) == 2
    assert plots.alpha_plots(read_document(written(make_document(alphas=(1.5,))))) == []
    assert "Score against λ" not in html_page(read_document(written(make_document(alphas=(1.5,)))))


def test_the_page_has_every_section_in_order(page):
    places = [page.index(f'<section class="panel" id="{section.name}"') for section in SECTIONS]
    assert places == sorted(places)
    assert page.index('id="verdict"') < places[0]


def test_a_page_of_the_least_document_says_what_is_missing(make_document, written):
    data = make_document()
    for name in ("comparisons", "tuning", "curves", "samples", "scale", "inputs", "base", "seconds", "environment"):
        data[name] = type(data[name])()
    data |= {"config": None, "command": None, "output": None, "results": data["results"][-2:], "methods": []}
    data["headline"] = {"method": "exopd", "alpha": 2.0}
    text = html_page(read_document(written(data)))
    assert text.count('<p class="empty">') == 7
    assert "was not compared with a rival, so nothing can be said" in text
    assert "Score against α" not in text


def test_hostile_text_is_escaped_wherever_it_stands(hostile_document):
    text = html_page(hostile_document)
    assert text.count("<script") == 3  # the data, the page's own, plotly
    assert "<img src=x" not in text
    assert "\x00" not in text
    assert text.count("&lt;/script&gt;&lt;script&gt;window.pwned = 1") > 50
    assert "\\u003c/script\\u003e" not in text.split('id="figures">')[1].split("</script>")[0]  # labels are entities inside the data


def test_what_cannot_be_seen_is_written_out_and_what_scripts_need_stays():
    assert visible("a\x00b\x1b[31m\u202ec") == "a\\x00b\\x1b[31m\\u202ec"
    assert visible("one\r\ntwo\tthree\u00a0four") == "one\ntwo\tthree\u00a0four"
    assert visible("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"


def test_besides_plotly_the_page_is_small(document, page):
    assert len(page.encode()) - len(get_plotlyjs().encode()) < 300_000  # 13 methods, six runs, 156 answers


def test_without_a_report_neither_torch_nor_plotly_nor_jinja_is_imported():
    code = "import sys, gopd_merge.report.{0}; print(*sorted({{'torch', 'plotly', 'jinja2', 'pydantic'}} & set(sys.modules)))"
    for module, expected in (("terminal", ""), ("page", "pydantic"), ("text", "pydantic"), ("combination", "pydantic")):
        found = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True).stdout
        assert found.strip() == expected


def test_a_rival_chosen_at_the_edge_of_its_grid_is_said_to_be_so(document):
    grid = [(0.5, 0.4), (1.0, 0.5), (1.5, 0.6)]

    def note(best):
        points = [
            Tuned(method="ties", parameters={"coefficient": c, "density": 1.0}, suite="own", domain="math", n=9, score=s, chosen=c == best)
            for c, s in grid
        ]
        ((_, table),) = tuning_tables(document.model_copy(update={"tuning": tuple(points)}))
        return table.note

    assert note(1.0) is None
    assert note(1.5) == "The chosen coefficient is at the edge of what was tried: a wider grid might find a better one."
