"""The pages under docs/ print what they show: their Python runs, block by block, in one namespace per page."""

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if "```python" in path.read_text())
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def check(page: str) -> int:
    """Run every python block; what it prints is the text block that follows it. Returns the number of blocks that ran."""
    namespace: dict[str, object] = {}
    blocks = BLOCK.findall(page)
    ran = 0
    for (language, source), following in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, f"python block {ran + 1}", "exec"), namespace)
        shown = following[1] if following[0] == "text" else ""
        assert printed.getvalue() == shown, f"block {ran + 1} printed:\n{printed.getvalue()}"
        ran += 1
    return ran


@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_a_page_prints_what_the_page_shows(name, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    assert check((DOCS / name).read_text()) >= 1


def test_theory_has_a_case_for_each_of_its_claims():
    assert "theory.md" in PAGES
    languages = [language for language, _ in BLOCK.findall((DOCS / "theory.md").read_text())]
    assert languages == ["python", "text"] * 6


@pytest.mark.parametrize("shown", ["```text\n3\n```", "", "```text\n2\n2\n```"])
def test_a_page_that_shows_something_else_is_noticed(shown):
    page = "```python\na = 1\n```\n\n```python\nprint(a + 1)\n```\n\n"
    assert check(page + "```text\n2\n```\n") == 2
    with pytest.raises(AssertionError, match="block 2 printed"):
        check(page + shown + "\n")
