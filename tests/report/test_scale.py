"""Score against α: the picture of the terminal, the plots and the tables say what the points say."""

import json
import re

import plotly.graph_objects
import pytest

from gopd_merge.errors import InputError
from gopd_merge.report.page import html_page
from gopd_merge.report.scale import checked_scale, read_scale, scale_in, scale_of, scale_plots, scale_tables, scale_text
from gopd_merge.report.text import markdown_text, terminal_text


def point(alpha=1.0, score=0.5, **values):
    return {
        "domain": "math",
        "suite": "own",
        "alpha": alpha,
        "learning_rate": None,
        "steps": None,
        "seed": 0,
        "n": 300,
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
        "metric": "math_answer",
        "length_mean": 31.25,
        "length_capped": 0.0125,
        "entropy": None,
        **values,
    }


def document(points, made_by="probe", **values):
    return {"schema": 1, "kind": "scale", "made_by": made_by, "points": points, "chosen": {}, "why": {}, **values}


@pytest.fixture
def probed():
    points = [point(0.0, 0.4), point(1.5, 0.7), point(3.0, 0.55), point(1.0, 0.3, domain="code", n=200)]
    why = {"math": "α = 1.5 scores best", "code": "it was the only one"}
    return document(points, chosen={"math": 1.5, "code": 1.0}, why=why)


def test_each_point_has_a_row_with_its_score_and_interval(probed):
    code, math, why = scale_text(probed).split("\n\n")
    assert code.startswith("code: the target itself, sampled without a student; 200 validation questions of own")
    title, head, *rows = math.splitlines()
    assert title == "math: the target itself, sampled without a student; 300 validation questions of own, 95 % intervals"
    assert head.split() == ["α", "score", "(%)", "tokens", "cut"]
    assert [row.split()[:5] for row in rows] == [
        ["0", "40.0", "(30.0–50.0)", "31.2", "1.2%"],
        ["1.5", "70.0", "(60.0–80.0)", "31.2", "1.2%"],
        ["3", "55.0", "(45.0–65.0)", "31.2", "1.2%"],
    ]
    assert [row.endswith("chosen") for row in rows] == [False, True, False]
    assert why == "code: it was the only one\nmath: α = 1.5 scores best"
    assert all(len(line) <= 80 for line in [*code.splitlines()[1:], *math.splitlines()[1:]])


def test_the_line_spans_the_interval_on_an_axis_that_all_rows_share(probed):
    rows = scale_text(probed).split("\n\n")[1].splitlines()[2:]
    start = min(row.index("─") for row in rows)  # of the axis, at 0.3
    drawn = [(row.index("─") - start, row.index("●") - start, row.rindex("─") - start) for row in rows]
    scores = [(0.3, 0.4, 0.5), (0.6, 0.7, 0.8), (0.45, 0.55, 0.65)]
    for places, values in zip(drawn, scores, strict=True):
        assert places == pytest.approx([26 * (value - 0.3) / 0.5 for value in values], abs=0.51)


def test_points_without_a_spread_and_reward_that_is_no_share_are_drawn_too():
    same = point(1.0, 0.5, low=0.5, high=0.5)
    assert "●" in scale_text(document([same]))
    open_ended = point(2.0, -0.25, metric="expert_reward", low=-0.5, high=0.125)
    text = scale_text(document([open_ended], why={"math": "α is not chosen"}))
    assert "expert_reward" in text
    assert "−0.250 (−0.500 to 0.125)" in text
    assert "math: α is not chosen" in text


def test_of_a_sweep_what_tells_points_apart_has_a_column_and_options_are_part_of_the_choice():
    points = [point(a, 0.5 + a / 10, learning_rate=r, steps=20, seed=3) for a in (1.0, 2.0) for r in (0.001, 0.002)]
    swept = document(points, "sweep", chosen={"math": 2.0}, chosen_options={"learning_rate": 0.002, "steps": 20})
    title, head, *rows = scale_text(swept).splitlines()
    assert "short merges" in title
    assert head.split()[:2] == ["α", "rate"]  # steps and seed are the same for all
    assert [row.split()[:2] for row in rows] == [["1", "0.001"], ["2", "0.001"], ["1", "0.002"], ["2", "0.002"]]
    assert [row.endswith("chosen") for row in rows] == [False, False, False, True]
    (plot,) = scale_plots(checked_scale(swept))
    assert [trace["name"] for trace in plot.figure["data"]] == ["rate 0.001, 20 steps", "rate 0.002, 20 steps", "chosen"]


def test_the_plot_has_the_points_and_the_chosen_one_has_a_ring(probed):
    code, math = scale_plots(checked_scale(probed))
    line, ring = math.figure["data"]
    assert (line["x"], line["y"]) == ([0.0, 1.5, 3.0], [40.0, 70.0, 55.0])
    assert (line["error_y"]["array"], line["error_y"]["arrayminus"]) == ([10.0] * 3, [10.0] * 3)
    assert line["mode"] == "lines+markers"
    assert (ring["name"], ring["x"], ring["y"]) == ("chosen", [1.5], [70.0])
    for figure in (code.figure, math.figure):
        plotly.graph_objects.Figure(json.loads(re.sub(r'"@[a-z0-9]+"', '"rgb(1, 2, 3)"', json.dumps(figure))))
    assert [row.cells[0].text for row in math.table.rows] == ["0", "1.5", "3"]
    assert [row.marked for row in math.table.rows] == [False, True, False]
    repeated = checked_scale(document([point(1.0, 0.4, seed=0), point(1.0, 0.6, seed=1)]))
    assert scale_plots(repeated)[0].figure["data"][0]["mode"] == "markers"  # no line through two runs of one α


def test_the_report_shows_it_where_the_comparison_holds_it(document, make_document, written):
    from gopd_merge.report.document import read_document

    page, markdown, text = html_page(document), markdown_text(document), terminal_text(document)
    assert "Score against α" in page
    for shown in (page, text):
        assert "α = 1.5 scores best, so says the synthetic probe" in shown
    captions = [table.caption for table in scale_tables(scale_of(document))]
    assert captions[0] == "code: the target itself, sampled without a student; 300 validation questions of own, 95 % intervals"
    assert captions[0] in markdown
    data = make_document()
    for name in ("scale", "scale_made_by", "chosen", "chosen_options", "why"):
        del data[name]
    without = read_document(written(data))
    assert "Score against α" not in html_page(without)
    assert captions[0] not in terminal_text(without)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"kind": "comparison"}, "its kind is 'comparison', expected 'scale'"),
        ({"schema": 2}, "schema 2, this program reads up to 1; update gopd-merge"),
        ({"points": []}, "points: Tuple should have at least 1 item"),
        ({"points": [point(-1.0)]}, "points.0.alpha: Input should be greater than or equal to 0"),
        ({"points": [point(score=float("nan"))]}, "points.0.score: Input should be a finite number"),
        ({"made_by": "hand"}, "made_by: Input should be 'probe' or 'sweep'"),
    ],
)
def test_another_document_is_refused_in_a_line(probed, tmp_path, change, found):
    (tmp_path / "scale.json").write_text(json.dumps(probed | change))
    with pytest.raises(InputError) as error:
        scale_in(tmp_path)
    (line,) = error.value.lines
    assert line.startswith(f"{tmp_path / 'scale.json'}: ")
    assert found in line


def test_a_scale_is_read_where_it_is(probed, tmp_path):
    assert scale_in(tmp_path) is None
    assert scale_in(None) is None
    with pytest.raises(InputError, match="make it with gopd-merge probe"):
        read_scale(tmp_path / "scale.json")
    (tmp_path / "scale.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON document"):
        read_scale(tmp_path / "scale.json")
    (tmp_path / "scale.json").write_text(json.dumps(probed))
    assert scale_in(tmp_path).chosen == {"math": 1.5, "code": 1.0}
