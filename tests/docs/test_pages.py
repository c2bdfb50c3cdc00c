"""Every command and snippet of the README and of docs/ is run, or held against its parser, and shows what it shows."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from gopd_merge.cli import build_app, main
from gopd_merge.config import make_config
from gopd_merge.options import read_config_file
from gopd_merge.prompts.sources import Prompt

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def module(path: Path):
    """A file beside this one, or one of eval/, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


conftest, commands = module(HERE / "conftest.py"), module(HERE / "commands.py")
PAGES, blocks = conftest.PAGES, conftest.blocks
RECORDED = "docs/first-merge.md"  # whose output is that of the whole merge: `eval/first_merge.py` fills it in
ELSEWHERE = ("docs/method.md",)  # whose many merges tests/test_docs.py reads
FRESH = (RECORDED, "docs/faq.md")  # that begin where no merge is yet
PROGRAMS = ("README.md",)  # whose Python is run by tests/test_readme.py


def run_page(name: str, page: str, seen: set[str] | None = None) -> list[str]:
    """Do all that a page says, from its top to its end; returns what was done. What was `seen` on another page is not done again."""
    seen = set() if seen is None else seen
    done, namespace = [], {}
    found = blocks(page)
    for (language, source), following in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "bash" and name not in ELSEWHERE:
            for line in commands.lines(source):
                if line not in seen or "--output" in line:
                    done.append(commands.obey(line, name))
                    seen.add(line)
        elif language == "python" and name not in PROGRAMS:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(source, f"python block of {name}", "exec"), namespace)
            shown = following[1] if following[0] == "text" else ""
            assert name == RECORDED or printed.getvalue() == shown, f"{name} printed:\n{printed.getvalue()}"
            done.append("run")
        elif language == "console":
            done += [check_console(*example) for example in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", source, re.MULTILINE)]
        elif language == "yaml":
            Path("merge.yaml").write_text(source)
            assert make_config(read_config_file(Path("merge.yaml"))).experts
        elif language == "json":
            assert all(Prompt.model_validate_json(line).prompt for line in source.splitlines())
    return done


def check_console(command: str, shown: str) -> str:
    """What a command prints, on both streams, is what stands below it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        main(shlex.split(command)[1:])
    assert printed.getvalue() == shown, f"{command} printed:\n{printed.getvalue()}"
    return "run"


@pytest.fixture(scope="module")
def seen():
    """Commands that some page had already."""
    return set()


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_says_can_be_done_from_its_top_to_its_end(name, here, seen):
    if name in FRESH:
        shutil.rmtree(here / "merged.lora")
    run_page(name, PAGES[name], seen)


def test_theory_has_a_case_for_each_of_its_claims():
    languages = [language for language, _ in blocks(PAGES["docs/theory.md"])]
    assert languages == ["python", "text"] * 6


@pytest.mark.parametrize("shown", ["```text\n3\n```", "", "```text\n2\n2\n```"])
def test_a_page_that_shows_something_else_is_noticed(shown):
    page = "```python\na = 1\n```\n\n```python\nprint(a + 1)\n```\n\n"
    assert run_page("page", page + "```text\n2\n```\n") == ["run", "run"]
    with pytest.raises(AssertionError, match="page printed"):
        run_page("page", page + shown + "\n")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("gopd-merge --experts adapters/maths.lora", "no such folder"),
        ("gopd-merge --experts math.lora --alpah 2", "Unknown option"),
        ("gopd-merge inspect adapters/maths.lora", "inspect"),
        ("gopd-merge hammer merged.lora", "SHORT"),
        ("accelerate launch -m gopd_merge --experts adapters/maths.lora", "no such folder"),
        ("make nothing", "nothing"),
        ("rm -r adapters", "neither a command of ours"),
    ],
)
def test_a_command_that_cannot_be_done_is_noticed(command, reason, here):
    with pytest.raises(Exception, match=reason):
        run_page("page", f"```bash\n{command}\n```\n")


def test_an_option_of_the_page_gives_way_to_the_substitution():
    words = shlex.split("--experts a b --steps 50 --alphas 1 2 --output x")
    assert commands.shortened(words, ["--steps", "1", "--alphas", "3"]) == shlex.split("--experts a b --output x --steps 1 --alphas 3")


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(name):
    assert {language for language, _ in blocks(PAGES[name])} <= {"bash", "python", "console", "yaml", "json", "text"}
    for language, source in blocks(PAGES[name]):
        if language == "text":  # what is printed, a picture, or a server's command
            assert not source.startswith(("gopd-merge --", "python ")), source


@pytest.mark.parametrize("name", PAGES)
def test_a_command_within_a_sentence_has_options_that_exist(name):
    for text in re.findall(r"`gopd-merge ([^`…]+ [^`…]+)`", PAGES[name]):
        build_app().parse_args(shlex.split(text), exit_on_error=False, print_error=False)


def test_what_is_refused_ends_with_the_code_that_the_page_says(here, capsys):
    (source,) = (source for language, source in blocks(PAGES["docs/files.md"]) if language == "console")
    refused = re.findall(r"^\$ gopd-merge (.*)$", source, re.MULTILINE)
    assert [main(shlex.split(command)) for command in refused] == [2, 2]
    assert "\nBoth end with code 2.\n" in PAGES["docs/files.md"]


def test_the_first_merge_shows_what_was_recorded():
    first_merge = module(ROOT / "eval" / "first_merge.py")
    outputs = json.loads((ROOT / "eval" / "results" / "first_merge.json").read_text())["outputs"]
    page = PAGES[RECORDED]
    assert [source for _, source in first_merge.with_output(page)] == list(outputs)
    assert [source for language, source in blocks(page) if language == "text"] == list(outputs.values())


def test_the_numbers_of_the_pages_are_those_that_were_measured():
    sys.path.insert(0, str(ROOT / "eval"))
    numbers = module(ROOT / "eval" / "docs_numbers.py")
    for name, made in numbers.BLOCKS.items():
        for block, text in made.items():
            shown = PAGES[f"docs/{name}"].split(f"<!-- {block} -->\n")[1].split(f"\n<!-- /{block} -->")[0]
            assert shown == "\n".join(text()), block
