"""What the report says, and that it says no more than the numbers do."""

import pytest

from gopd_merge.evaluate.statistics import wilson_interval
from gopd_merge.report.answers import first_difference, questions, shortened
from gopd_merge.report.document import read_document
from gopd_merge.report.lines import difference_text, lines_of, minus, score_text
from gopd_merge.report.retention import kept_share, retentions
from gopd_merge.report.tables import retention_table, score_table
from gopd_merge.report.text import escaped, markdown_text, terminal_text
from gopd_merge.report.training import runs
from gopd_merge.report.verdict import verdict_of

CLEAR, NONE, LOSS = (0.06, 0.03, 0.09, 0.01), (0.02, -0.01, 0.05, 0.4), (-0.06, -0.09, -0.03, 0.01)
UNCORRECTED, NOT_EXCLUDED = (0.06, 0.01, 0.11, 0.06), (0.06, -0.001, 0.12, 0.04)


@pytest.fixture
def with_outcomes(make_document, written):
    """The document in which the two strong rivals have these (difference, low, high, p after Holm) in math, then in code."""

    def make(*outcomes):
        data = make_document()
        strong = [c for c in data["comparisons"] if c["rival_is"].startswith("best")]
        for comparison, outcome in zip(strong, outcomes, strict=True):
            comparison.update(zip(("difference", "low", "high", "p_holm"), outcome, strict=True))
        return read_document(written(data))

    return make


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ((CLEAR,) * 4, "Better"),
        ((CLEAR, CLEAR, CLEAR, NONE), "Better in part"),
        ((CLEAR, CLEAR, CLEAR, LOSS), "Better in part"),
        ((CLEAR, CLEAR, CLEAR, UNCORRECTED), "Better in part"),
        ((UNCORRECTED,) * 4, "No clear difference"),
        ((NOT_EXCLUDED,) * 4, "No clear difference"),
        ((NONE,) * 4, "No clear difference"),
        ((NONE, NONE, NONE, LOSS), "Worse"),
        ((LOSS,) * 4, "Worse"),
    ],
)
def test_better_is_said_only_where_every_strong_rival_is_clearly_beaten(with_outcomes, outcomes, word):
    verdict = verdict_of(with_outcomes(*outcomes))
    assert verdict.word == word
    assert ("is better than" in verdict.sentence) == (CLEAR in outcomes)
    assert ("is worse than" in verdict.sentence) == (LOSS in outcomes)


def test_the_verdict_names_rivals_domains_differences_and_intervals(with_outcomes):
    verdict = verdict_of(with_outcomes(CLEAR, LOSS, NONE, NONE))
    assert verdict.sentence == (
        "Merged, α = 1.5, is better than the best expert in math, "
        "shows no clear difference from the best expert and the best static merge in code and is worse than the best static merge in math."
    )
    assert verdict.findings[0].text == (
        "math, against the best expert (math expert): +6.0 points (95 % interval +3.0 to +9.0), p = 0.010 after Holm's correction, n = 400"
    )


def test_a_weak_rival_alone_decides_nothing_when_strong_ones_were_met(with_outcomes, make_document, written):
    assert verdict_of(with_outcomes(*[NONE] * 4)).word == "No clear difference"  # although the average and the base are clearly beaten
    data = make_document()
    data["comparisons"] = [c for c in data["comparisons"] if c["rival_is"] == "average"]
    assert verdict_of(read_document(written(data))).sentence == "Merged, α = 1.5, is better than the average in math and code."
    data["comparisons"] = []
    assert verdict_of(read_document(written(data))).word == "Not compared"


def test_the_kept_share_is_worked_out_by_hand():
    """Base 40, expert 60, merge 55: three quarters of the gain; the least is 1 − 0.1/0.1, the most 1 + 0.02/0.1."""
    assert kept_share((0.20, 0.10, 0.30), (-0.05, -0.10, 0.02)) == pytest.approx((0.75, 0.0, 1.2))


@pytest.mark.parametrize("gain", [(0.02, -0.01, 0.05), (0.02, 0.0, 0.04), (-0.2, -0.3, -0.1)])
def test_a_gain_that_may_be_zero_is_not_divided_by(gain):
    assert kept_share(gain, (-0.05, -0.10, 0.02)) is None


def test_the_table_says_why_a_share_is_missing(make_document, written):
    data = make_document()
    for row in data["results"]:
        if row["method"].startswith("expert:"):
            row.update(score=0.46, low=0.43, high=0.49)
    texts = [row.cells[6].text for row in retention_table(read_document(written(data))).rows]
    assert texts == ["not divided: the expert's gain may be zero"] * 2
    assert "not divided" not in " ".join(c.text for row in retention_table(read_document(written(make_document()))).rows for c in row.cells)


def test_an_unpaired_difference_has_newcombes_interval(make_document, written):
    """His example of 56/70 against 48/80: 0.0524 to 0.3339."""
    data = make_document()
    data["comparisons"] = []
    for row in data["results"]:
        right, n = {"expert:math": (56, 70), "base": (48, 80)}.get(row["method"], (1, 2))
        low, high = wilson_interval(right, n)
        row.update(score=right / n, low=low, high=high)
    (math, _) = retentions(read_document(written(data)))
    assert math.gain == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert math.paired == (False, False)


def test_the_paired_comparison_is_used_where_there_is_one(document):
    (math, _) = retentions(document)
    (paired,) = [c for c in document.comparisons if (c.domain, c.rival) == ("math", "expert:math")]
    assert math.change == (paired.difference, paired.low, paired.high)
    assert math.paired == (False, True)


def test_the_mean_over_benchmarks_has_the_half_widths_added_in_squares(document):
    line = lines_of(document)[0]
    rows = list(line.rows.values())
    widths = [row.high - row.score for row in rows]
    value, low, high = line.mean
    assert value == pytest.approx((rows[0].score + rows[1].score) / 2)
    assert high - value == pytest.approx(value - low) == pytest.approx((widths[0] ** 2 + widths[1] ** 2) ** 0.5 / 2)


def test_a_score_that_is_no_share_is_written_in_its_own_unit(make_document, written):
    data = make_document()
    for part in (*data["suites"], *data["results"]):
        if part["domain"] == "code":
            part["metric"] = "log_likelihood_ratio"
    table = score_table(read_document(written(data)))
    assert [name for name, _ in table.columns] == ["method", "math (%)", "code, log_likelihood_ratio", "n", "k"]  # and no mean of both
    assert table.rows[0].cells[2].text.startswith("0.44")


def test_numbers_carry_a_real_minus_and_no_minus_zero():
    assert difference_text((-0.012, -0.04, -0.0001), share=True) == "−1.2 (−4.0 to 0.0)"
    assert score_text((-0.5, -0.75, -0.0001), share=False) == "−0.500 (−0.750 to 0.000)"
    assert minus("-0.0") == "0.0"


def test_terminal_and_markdown_show_the_scores_and_intervals_of_the_document(document):
    for text in (terminal_text(document), markdown_text(document)):
        for row in document.results:
            assert f"{row.score * 100:.1f} ({row.low * 100:.1f}–{row.high * 100:.1f})" in text
        for c in document.comparisons:
            assert f"{c.difference * 100:+.1f} ({c.low * 100:+.1f} to {c.high * 100:+.1f})".replace("-", "−") in text
    assert "99.9 (99.8–100.0)" not in terminal_text(document)


def test_nothing_in_a_name_acts_in_markdown_or_in_a_terminal(make_document, written):
    name = "evil | <script> `code` [link](x) **bold**\n# heading \x1b[31m"
    data = make_document()
    data["methods"][0]["label"] = name
    document = read_document(written(data))
    assert "\x1b" not in terminal_text(document)
    text = markdown_text(document)
    assert "<script>" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| evil")]
    assert row.replace("\\|", "").count("|") == len(score_table(document).columns) + 1
    assert escaped("plain words") == "plain words"


def test_markdown_names_no_command_and_no_path(document):
    assert document.command
    assert document.command not in markdown_text(document)
    assert str(document.output) not in markdown_text(document)


@pytest.mark.parametrize(
    ("text", "other", "marked"),
    [
        ("a b c", "a b c", ""),
        ("one 12 three\nlast", "one 13 three\nlast", "12 three"),
        ("same\nthen mine\nend", "same\nthen yours\nend", "mine"),
        ("short", "short and more", ""),
        ("short and more", "short", " and more"),
        ("", "x", ""),
    ],
)
def test_the_line_that_first_differs_is_marked_from_its_first_differing_word(text, other, marked):
    start, end = first_difference(text, other)
    assert text[start:end] == marked


def test_a_long_answer_keeps_beginning_and_end_and_says_what_is_left_out():
    text, note = shortened("a" * 5_000 + "b" * 95_000, 900)
    assert text.startswith("a" * 600)
    assert text.endswith("b" * 300)
    assert note == "99,100 of 100,000 characters are not shown"
    assert shortened("short", 900) == ("short", None)


def test_the_merges_answer_comes_first_and_mixed_questions_are_known(document):
    asked = questions(document)
    assert all(q.answers[0].headline for q in asked)
    for question, sample in zip(asked, document.samples, strict=True):
        assert question.divided == (len({a.correct for a in sample.answers}) == 2)
    assert any(q.divided for q in asked)


def test_the_training_run_of_this_merge_comes_first_and_long_ones_are_thinned(make_document, written):
    data = make_document()
    row = data["curves"][2]["rows"][0]
    data["curves"][2]["rows"] = [row | {"step": step} for step in range(1, 1001)]
    shown = runs(read_document(written(data)))
    assert [run.marked for run in shown] == [True, True, False, False, False, False]
    assert shown[0].note == "1,000 steps; the plots show every 9th"
    assert len(shown[0].plots[0].figure["data"][0]["y"]) == 112
    assert shown[1].note == "50 steps"
