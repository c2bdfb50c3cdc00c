"""The page in Debian's Chromium: it opens, loads nothing, sorts, switches, prints, and holds hostile text."""

import os
import re
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from gopd_merge.report.page import SECTIONS, html_page
from gopd_merge.report.text import markdown_text, terminal_text

TABS = [section.name for section in SECTIONS]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has no sandbox for root
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="module")
def page_file(document, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_page(document, title="Synthetic numbers, nothing was measured"))
    return path


class Heard:
    """What a page asked for and complained of."""

    def __init__(self, page: Page) -> None:
        self.requests, self.errors = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None)


@pytest.fixture
def opened(browser, page_file):
    """Open the page: opened(viewport=…, color_scheme=…) gives (page, what it asked for and complained of)."""
    contexts = []

    def open_page(path: Path = page_file, **options):
        context = browser.new_context(**{"viewport": DESK, "color_scheme": "light"} | options)
        contexts.append(context)
        page = context.new_page()
        heard = Heard(page)
        page.goto(path.as_uri())
        return page, heard

    yield open_page
    for context in contexts:
        context.close()


def sections_shown(page: Page) -> list[str]:
    return page.eval_on_selector_all(".panel", "all => all.filter(p => p.checkVisibility()).map(p => p.id)")


def test_it_opens_without_a_complaint_and_asks_for_nothing_but_itself(opened, page_file):
    page, heard = opened()
    for tab in TABS:
        page.click(f"#tab-{tab}")
        expect(page.locator(f"#{tab} .plot:visible:not([data-drawn])")).to_have_count(0)
    assert heard.errors == []
    assert heard.requests == [page_file.as_uri()]


def test_a_request_that_leaves_the_page_would_be_noticed_and_is_forbidden(opened, page_file, tmp_path):
    loading = '<img src="http://127.0.0.1:9/pixel.png">'
    text = page_file.read_text().replace("<footer>", f"<footer>{loading}")
    with_policy, without = tmp_path / "policy.html", tmp_path / "none.html"
    with_policy.write_text(text)
    without.write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    _, heard = opened(with_policy)
    assert any("violates the following Content Security Policy" in error for error in heard.errors)
    _, heard = opened(without)
    assert "http://127.0.0.1:9/pixel.png" in heard.requests


def test_plots_are_drawn_when_they_are_first_seen(opened):
    page, _ = opened()
    page.wait_for_selector("#scores .js-plotly-plot")
    assert page.locator(".js-plotly-plot").count() == page.locator("#scores .plot").count() == 6
    page.click("#tab-training")
    page.wait_for_selector("#training .js-plotly-plot")
    assert page.locator(".js-plotly-plot").count() == 6 + 5  # one run of six
    page.select_option("#run", "run-2")
    assert page.locator(".js-plotly-plot").count() == 6 + 5 + 5
    assert page.locator("#run-0").is_hidden()
    assert page.locator("#run-2 .main-svg").first.is_visible()


def test_every_plot_has_its_data_as_a_table(opened):
    page, _ = opened()
    assert page.locator("figure .plot").count() == page.locator("figure details table").count() == 43
    assert page.eval_on_selector_all("figure details table", "all => all.every(t => t.tBodies[0].rows.length > 0 && t.caption)")


def rows_of(page: Page, table: int) -> list[list[str]]:
    """The cells of a sortable table's body, as they stand."""
    read = "rows => rows.map(r => [...r.cells].map(c => c.textContent.replace('●', '').trim()))"
    return page.eval_on_selector_all(f"table.sortable >> nth={table} >> tbody tr", read)


def number(text: str) -> float:
    return float(re.match(r"[<+−]?[\d.,]+", text)[0].replace("−", "-").replace("<", "").replace(",", ""))


@pytest.mark.parametrize(("table", "place"), [(0, 1), (2, 3)])  # scores in math; differences, of which +16 is more than +4
def test_sorting_reorders_by_number_and_says_so(opened, table, place):
    page, _ = opened()
    heading = page.locator("table.sortable").nth(table).locator("thead th").nth(place)
    before = rows_of(page, table)
    for by, direction in (("click", "descending"), ("Enter", "ascending"), ("Space", "descending")):
        if by == "click":
            heading.locator("button").click()
        else:
            heading.locator("button").press(by)
        assert heading.get_attribute("aria-sort") == direction
        values = [number(row[place]) for row in rows_of(page, table)]
        assert values == sorted(values, reverse=direction == "descending")
        texts = [row[place] for row in rows_of(page, table)]
        assert table == 0 or texts != sorted(texts, reverse=direction == "descending")  # as texts they would stand otherwise
    assert rows_of(page, table) != before
    assert sorted(rows_of(page, table)) == sorted(before)
    page.locator("table.sortable").nth(table).locator("thead th button").first.click()
    assert heading.get_attribute("aria-sort") == "none"


def test_page_terminal_and_markdown_show_the_same_numbers(opened, document):
    page, _ = opened()
    shown = rows_of(page, 0)
    assert len(shown) == 13
    terminal = [re.split(r"  +", line.strip()) for line in terminal_text(document).splitlines()]
    markdown = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in markdown_text(document).splitlines()]
    for row in shown:
        assert row in terminal
        assert row in markdown
    math = {f"{r.score * 100:.1f} ({r.low * 100:.1f}–{r.high * 100:.1f})" for r in document.results if r.domain == "math"}
    assert {row[1] for row in shown} == math
    assert [*shown[0][:1], "0.0", *shown[0][2:]] not in terminal


def test_tabs_open_by_click_and_by_arrow_keys(opened):
    page, _ = opened()
    assert sections_shown(page) == ["scores"]
    page.click("#tab-cost")
    assert sections_shown(page) == ["cost"]
    for key, expected in (("ArrowRight", "tuning"), ("ArrowLeft", "cost"), ("End", "inputs"), ("ArrowRight", "scores"), ("Home", "scores")):
        page.keyboard.press(key)
        assert sections_shown(page) == [expected]
        assert page.evaluate("document.activeElement.id") == f"tab-{expected}"
        selected = page.eval_on_selector_all('[role=tab][aria-selected="true"]', "all => all.map(t => [t.id, t.tabIndex])")
        assert selected == [[f"tab-{expected}", 0]]


def test_a_link_opens_its_tab(opened, page_file):
    page, _ = opened()
    page.goto(page_file.as_uri() + "#answers")
    assert sections_shown(page) == ["answers"]


def test_without_scripts_everything_can_be_read(opened):
    page, _ = opened(java_script_enabled=False)
    for tab in TABS:
        assert page.locator(f"#{tab}").is_visible()
    assert page.locator("[role=tablist]").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_switch_changes_page_and_plots_and_overrides_the_system(opened, scheme):
    page, _ = opened(color_scheme=scheme)
    page.wait_for_selector(".js-plotly-plot")
    colors = """() => [getComputedStyle(document.body).backgroundColor, document.querySelector('.js-plotly-plot .xtick text').style.fill]"""
    first = page.evaluate(colors)
    assert page.locator("#theme").get_attribute("aria-pressed") == ("true" if scheme == "dark" else "false")
    page.click("#theme")
    second = page.evaluate(colors)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert page.locator("#theme").get_attribute("aria-pressed") == ("false" if scheme == "dark" else "true")
    page.click("#theme")
    assert page.evaluate(colors) == first


def test_a_phone_never_scrolls_sideways(opened):
    page, _ = opened(viewport=PHONE, is_mobile=True, has_touch=True)
    for tab in TABS:
        page.click(f"#tab-{tab}")
        page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
        for question in page.eval_on_selector_all("#question option", "all => all.map(o => o.value)") if tab == "answers" else [None]:
            if question:
                page.select_option("#question", question)
            assert page.evaluate("document.documentElement.scrollWidth") == 360, (tab, question)
    page.evaluate("document.body.append(Object.assign(document.createElement('div'), { style: 'width: 500px; height: 1px' }))")
    assert page.evaluate("document.documentElement.scrollWidth") > 360  # it would be seen


def test_paper_shows_every_section_with_its_plots_and_no_controls_in_the_light_theme(opened):
    page, _ = opened(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.locator("#cost .plot[data-drawn]")).to_have_count(2)
    assert sections_shown(page) == TABS
    for control in ("#theme", "[role=tablist]", "#question", "#run", "#divided"):
        assert page.locator(control).is_hidden()
    assert page.locator(".question").count() == page.locator(".question:visible").count() == 12
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark
    page.emulate_media(media="screen", color_scheme="dark")
    expect(page.locator(".panel:visible")).to_have_count(1)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_it_prints_to_pages(opened):
    page, heard = opened()
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert heard.errors == []


def test_hostile_text_is_text(opened, document):
    page, heard = opened()
    page.click("#tab-answers")
    page.select_option("#question", "question-1")
    shown = page.locator("#question-1 .prompt").text_content()
    assert shown.startswith(
        "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>{{ 7 * 7 }}&amp;\\x00\\x1b[31m\\u202eright"
    )
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img").count() == 0
    assert heard.errors == []
    assert page.locator("#question-1 .card", has_text="characters are not shown").count() == 2
    assert page.locator("#question-1 .card", has_text="(empty answer)").count() == 1
    arabic = page.locator("#question-1 .card pre", has_text="الجواب")
    assert arabic.evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert page.locator("#question-1 .card pre").first.evaluate("e => getComputedStyle(e).direction") == "ltr"


def test_hostile_names_reach_tables_axes_and_legends_as_text(opened, hostile_document, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_text(html_page(hostile_document))
    page, heard = opened(path, viewport=PHONE)
    for tab in TABS:
        page.click(f"#tab-{tab}")
        expect(page.locator(f"#{tab} .plot:visible:not([data-drawn])")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, tab
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main a:not([href^='#'])").count() == 0
    assert page.locator("#scores .ytick text").first.text_content().startswith("</script><script>window")
    assert heard.errors == []


def test_questions_are_stepped_through_and_filtered(opened, document):
    page, _ = opened()
    page.click("#tab-answers")
    assert page.locator(".question:visible").evaluate_all("all => all.map(q => q.id)") == ["question-0"]
    page.click("#previous")
    assert page.locator(".question:visible").evaluate_all("all => all.map(q => q.id)") == ["question-11"]
    page.click("#next")
    page.click("#next")
    assert page.locator(".question:visible").evaluate_all("all => all.map(q => q.id)") == ["question-1"]
    page.check("#divided")
    divided = [f"question-{i}" for i, s in enumerate(document.samples) if len({a.correct for a in s.answers}) == 2]
    assert page.eval_on_selector_all("#question option", "all => all.map(o => o.value)") == divided
    page.uncheck("#divided")
    assert page.locator("#question option").count() == len(document.samples)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_tab(browser, page_file, scheme):
    context = browser.new_context(viewport=DESK, color_scheme=scheme, bypass_csp=True)  # axe is a script of its own
    page = context.new_page()
    page.goto(page_file.as_uri())
    for tab in TABS:
        page.click(f"#tab-{tab}")
        assert serious(page) == [], tab
    page.evaluate("document.querySelector('#inputs h2').style.color = '#888888'")
    page.evaluate("document.querySelector('#inputs').style.background = '#777777'")
    assert any("color-contrast" in name for name in serious(page))  # it would be found
    context.close()


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {[n['html'][:200] for n in v['nodes'][:2]]}" for v in found if v["impact"] in ("serious", "critical")]
