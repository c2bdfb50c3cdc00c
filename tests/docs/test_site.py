"""The site builds without a warning and without the network, and its reference has every option."""

import importlib.util
import logging
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from gopd_merge.cli import build_app

ROOT = Path(__file__).resolve().parent.parent.parent
spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


def warnings_of_a_build(folder: Path, **changes) -> list[str]:
    """What mkdocs warns of; with `--strict` each would end the build."""
    heard = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), **changes))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    return heard


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, made where nothing can be fetched."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setattr("socket.socket.connect", lambda *_: pytest.fail("the build asks the network"))
        assert warnings_of_a_build(folder) == []
    return folder


def test_a_link_that_leads_nowhere_and_a_page_without_a_place_are_noticed(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# A\n\n[b](b.md#c) [d](d.md) [e](#e)\n")
    (docs / "b.md").write_text("# B\n")
    changes = {"docs_dir": str(docs), "nav": ["index.md"], "hooks": [], "extra_css": []}
    heard = "\n".join(warnings_of_a_build(tmp_path / "site", **changes))
    for sign in ("#c", "d.md", "#e", 'not included in the "nav"'):
        assert sign in heard


def test_nothing_of_a_page_is_loaded_from_elsewhere(site):
    html = {path: path.read_text() for path in site.rglob("*.html")}
    assert len(html) > 15
    for path, text in html.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"|<link[^>]* href=\"([^\"]+)\"", text)
        assert not [one for one in loaded if "//" in "".join(one)], path
        assert "fonts.googleapis" not in text


def test_every_option_of_every_command_is_in_the_reference(site):
    page = (site / "reference" / "index.html").read_text()
    sections = dict(re.findall(r"<h2 id=\"(gopd-merge[^\"]*)\">(.*?)(?=<h2 id=|</article>)", page, re.DOTALL))
    commands = ["", *(name for name in build_app() if not name.startswith("-"))]
    assert list(sections) == [f"gopd-merge {name}".strip().replace(" ", "-") for name in commands]
    for command, section in zip(commands, sections.values(), strict=True):
        shown = section + (list(sections.values())[commands.index(pages.INHERITED[command])] if command in pages.INHERITED else "")
        for argument in pages.command_app(command).assemble_argument_collection():
            names = (*argument.names, argument.field_info.name.upper())
            assert any(f"<code>{name}</code>" in shown for name in names), (command, names)


@pytest.mark.parametrize("command", pages.CONFIGS)
def test_every_field_of_a_config_is_a_row_with_its_default_and_bounds(command):
    config = pages.CONFIGS[command]
    inherited = pages.section(pages.INHERITED[command]) if command in pages.INHERITED else ""
    text = f"{inherited}\n{pages.section(command)}"  # its own words win
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    for name, field in config.model_fields.items():
        if command == "sweep" and name == "alpha":
            continue  # `--alphas` stands for it
        row = rows.get(f"--{name.replace('_', '-')}") or rows[name.upper()]
        assert str(field.description).split("<")[0].replace("|", "\\|") in row
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"`{field.default}`" in row
    default = {"train-expert": ""}.get(command, "`50`")  # that is as its text says
    assert (f"| whole number, 1 or more | {default} |" in rows["--steps"]) if "--steps" in rows else True


def test_every_command_that_takes_a_config_is_known_to_the_reference():
    """One whose options come from a config that is not named there would be shown without bounds."""
    for name in build_app():
        if not name.startswith("-") and name not in pages.CONFIGS:
            groups = {one.parameter.group[0].name for one in pages.command_app(name).assemble_argument_collection()}
            assert groups <= {"Parameters", "Arguments"}, name
