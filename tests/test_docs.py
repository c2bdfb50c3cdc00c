"""docs/method.md and CONTRIBUTING.md say what is true, and links lead somewhere. tests/docs/ runs the commands of the other pages."""

import importlib.util
import inspect
import re
import shlex
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch

from gopd_merge.cli import build_app, main
from gopd_merge.cli.publishing import publish
from gopd_merge.config import METHOD_OPTIONS, MergeConfig, make_config
from gopd_merge.distill.objective import ESTIMATORS, estimator_of
from gopd_merge.errors import InputError
from gopd_merge.plan import read_inputs

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


METHOD = (DOCS / "method.md").read_text()
GROUPS = ("Method", "Reward scale", "Teachers")  # of MergeConfig: what method.md is about
SERVER = "http://localhost:8000/v1"  # in the page's examples
LARGER = DOCS.parent / "adapters" / "big-math.lora"  # an expert that does not come with every checkout


def commands(page: str) -> list[str]:
    """The lines of a page's bash blocks."""
    return [line for language, source in BLOCK.findall(page) if language == "bash" for line in source.splitlines()]


LINES = commands(METHOD)
MERGES = [line for line in LINES if line.startswith("gopd-merge --")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which the commands of a page run as in the repository's."""
    (tmp_path / "adapters").symlink_to(DOCS.parent / "adapters")
    monkeypatch.chdir(tmp_path)
    for line in LINES:
        if not line.startswith("gopd-merge"):
            subprocess.run(line, shell=True, check=True)
    return tmp_path


def options_of(line: str) -> dict:
    """What the command line makes of a merge's flags."""
    _, bound, _ = build_app().parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    return bound.kwargs


def needs_what_is_missing(line: str) -> bool:
    """Whether an adapter that it names does not come with this checkout."""
    return LARGER.name in line and not LARGER.is_dir()


@pytest.mark.parametrize("line", MERGES, ids=lambda line: shlex.split(line)[-1])
def test_what_a_merge_of_the_method_page_reads_is_there_and_fits(line, here):
    config = make_config(options_of(line) | {"eval": False})
    if not needs_what_is_missing(line):  # then its options fit together, and no more is known
        assert len(read_inputs(config).prompts) == len(config.experts)


@pytest.mark.parametrize("line", MERGES[::8], ids=lambda line: shlex.split(line)[-1])
def test_some_of_the_merges_are_planned_as_well(line, here, capsys):
    """A plan takes seconds, and tests/test_plan.py looks at what it says."""
    if not needs_what_is_missing(line):
        assert main([*shlex.split(line)[1:], "--dry-run", "--no-eval"]) == 0
        assert "peak" in capsys.readouterr().out


def test_a_command_that_cannot_run_is_noticed(here, capsys):
    line = "gopd-merge --experts adapters/math.lora adapters/code.lora --rotate all --alpha math=1 code=2"
    with pytest.raises(InputError, match="takes one --alpha"):
        make_config(options_of(line))
    assert main(shlex.split("--experts adapters/maths.lora --dry-run")) == 2
    assert "adapters/maths.lora" in capsys.readouterr().err


REMOTE = "--experts math=http://h/v1#math"  # in place of the two experts
REFUSED = {  # by heading of method.md: what it says is refused, as flags
    "`full` (the default)": [REMOTE],
    "`sampled`": [f"--estimator sampled --method {method}" for method in ("rkl", "seqkd", "sft")],
    "`topk`": [f"--estimator topk --method {method}" for method in ("seqkd", "sft")],
    "`forward`": [f"--estimator forward {other}" for other in (REMOTE, "--method seqkd", "--method sft")],
    "`hidden` (experimental)": [
        f"--estimator hidden {other}" for other in ("--bound 1", "--teacher-base a --base b", REMOTE, "--method seqkd", "--method sft")
    ],
    "Against what: `--reference` and `--kl-reference`": [
        "--alpha auto --reference teacher",
        "--alpha auto --kl-reference adapters/math.lora",
        "--rotate all --reference teacher",
        *(f"--method {method} --{which} base" for method in ("seqkd", "sft") for which in ("reference", "kl-reference")),
    ],
    "`--kl-reference`": ["--reference teacher --kl-reference base", f"{REMOTE} --estimator topk --kl-reference student-start"],
    "One number, or one for each domain: `--alpha`": [
        "--rotate all --alpha math=1 code=2",
        *(f"--method {method} --alpha 2" for method in ("opd", "seqkd", "sft")),
    ],
    "Chosen before training: `--alpha auto`, `probe`, `sweep`": [
        f"--alpha auto {other}"
        for other in (
            *("--alpha-from 1", "--adaptive run", "--reference student-start", "--teacher-base a --base b", "--rotate all"),
            f"{REMOTE} --estimator topk",
        )
    ],
    "On a line: `--alpha-from`": [
        f"--alpha-from 1 {other}" for other in ("--alpha auto", "--adaptive run", *(f"--method {m}" for m in ("opd", "seqkd", "sft")))
    ],
    "By token: `--adaptive token`": [
        f"--adaptive token {other}"
        for other in (f"{REMOTE} --estimator topk", *(f"--method {m}" for m in ("opd", "seqkd", "sft")), "--reference teacher")
    ],
    "By what the run shows: `--adaptive run`": [
        f"--adaptive run {other}"
        for other in (
            *("--alpha 0.5", "--alpha 2 --alpha-max 1.5", "--alpha auto", "--alpha-from 1"),
            *(f"--method {method}" for method in ("opd", "seqkd", "sft")),
        )
    ],
    "Guards: `--deterministic` and `--bound`": [
        "--bound 1 --estimator hidden",
        "--deterministic 0.9 --method opd",
        *(
            f"{guard} {other}"
            for guard in ("--bound 1", "--deterministic 0.9")
            for other in (f"{REMOTE} --estimator topk", "--method seqkd", "--method sft", "--reference teacher")
        ),
    ],
    "Who teaches when: `--rotate`": [
        *(f"--rotate {r} --method {m}" for r in ("step", "all") for m in ("alternate", "seqkd", "sft", "rkl")),
        *("--rotate step --balance", "--rotate all --balance", "--rotate all --alpha auto"),
        *("--rotate all --alpha math=1 code=2", "--rotate all --reference teacher", f"--rotate all {REMOTE} --estimator topk"),
    ],
    "How much of each: `--weights`": [
        f"--weights math=0.5 {other}" for other in (f"{REMOTE} --estimator topk", "--method seqkd", "--method sft")
    ],
    "No teacher drowns the others: `--balance`": [f"--balance {o}" for o in ("--rotate step", "--rotate all", "--method alternate")],
    "From 2 to 16 experts, with as many prompts as each has": ["--batch-size 1"],
    "Where the student begins: `--start`": ["--start ties --teacher-base a --base b"],
    "Only the beginning: `--horizon`": ["--horizon 97", "--horizon 9 --max-new-tokens 8"],
    "Strong to weak: `--teacher-base`": [
        f"--teacher-base a {other}" for other in ("", "--base b --alpha auto", "--base b --estimator hidden", "--base b --start ties")
    ],
    "Experts behind a server": [
        f"{REMOTE} --estimator topk {other}"
        for other in (
            *("--adaptive token", "--bound 1", "--deterministic 0.9", "--rotate all", "--weights math=1", "--alpha auto", "--method rkl"),
            *("--kl-reference student-start", "--reference teacher"),
        )
    ],
    "What it is compared with: `--method`": [
        "--method alternate --steps 1",
        "--method alternate --balance",
        "--method rkl --estimator sampled",
    ],
}


@pytest.mark.parametrize("heading", REFUSED)
def test_what_the_method_page_says_is_refused_is_refused_in_one_line(heading):
    section = re.split(r"\n##", METHOD.split(f"# {heading}\n", maxsplit=1)[1], maxsplit=1)[0]
    assert "efused" in section
    for flags in REFUSED[heading]:
        experts = "" if REMOTE in flags else "--experts adapters/math.lora adapters/code.lora"
        with pytest.raises(InputError) as refused:
            make_config(options_of(f"gopd-merge {experts} {flags}"))
        assert len(refused.value.lines) == 1, flags


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("gopd-merge") and line not in MERGES])
def test_another_command_of_the_method_page_has_options_that_exist(line, here, capsys):
    if line.startswith("gopd-merge plan"):
        assert main(shlex.split(line)[1:]) == 0
        assert "code: 200 of few.jsonl, asked " in capsys.readouterr().out
    else:
        command, bound, _ = build_app().parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
        assert command.__name__ in ("probe", "sweep")
        assert bound.kwargs["experts"] == ["adapters/math.lora", "adapters/code.lora"]


def test_the_examples_can_run_one_after_the_other():
    outputs = [options_of(line)["output"] for line in MERGES]
    assert len(outputs) > 20
    assert len(set(outputs)) == len(outputs)  # or the second would be refused


@pytest.mark.parametrize("line", [line for line in MERGES if SERVER in line], ids=lambda line: shlex.split(line)[-1])
def test_the_examples_with_a_server_run_against_one(line, here, capsys):
    spec = importlib.util.spec_from_file_location("remote_server", Path(__file__).with_name("remote_server.py"))
    remote_server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(remote_server)
    server = remote_server.RemoteServer(remote_server.Models(here / "adapters" / "tiny-base", {"math": here / "adapters" / "math.lora"}))
    short = ["--steps", "1", "--batch-size", "4", "--max-new-tokens", "8", "--no-eval", "--quiet"]
    try:
        assert main([*shlex.split(line.replace(SERVER, server.url))[1:], *short]) == 0, capsys.readouterr().err
    finally:
        server.stop()
    assert {request["model"] for request in server.requests} == {"math"}
    assert "written and verified" in capsys.readouterr().out


def test_every_option_of_publishing_is_on_its_page():
    page, options = (DOCS / "publishing.md").read_text(), inspect.signature(publish).parameters
    flags = [f"--{name.replace('_', '-')}" for name, p in options.items() if p.kind is p.KEYWORD_ONLY]
    assert len(flags) > 8
    assert [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", page)] == []


def unnamed(page: str) -> list[str]:
    """Options of the method that a page does not name."""
    grouped = [name for name, field in MergeConfig.model_fields.items() if field.json_schema_extra["group"] in GROUPS]
    flags = [f"--{name.replace('_', '-')}" for name in dict.fromkeys(["experts", "alpha", *METHOD_OPTIONS, *grouped, "remote_patience"])]
    return [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", page)]


def test_every_option_of_the_method_is_on_its_page():
    assert unnamed(METHOD) == []
    assert unnamed(METHOD.replace("--balance", "--balanced")) == ["--balance"]
    for name in ("estimator", "adaptive", "rotate", "method"):  # and every value of those that have some
        for value in get_args(MergeConfig.model_fields[name].annotation):
            assert value == "none" or f"`{value}`" in METHOD or f"--{name} {value}" in METHOD, f"--{name} {value}"


@pytest.mark.parametrize(
    "name", ["estimators", "alpha", "probe", "adaptive", "start", "rotate", "experts", "strong_to_weak", "methods", "horizon"]
)
def test_the_page_has_room_for_each_measured_table(name):
    begin, end = (METHOD.index(f"\n<!-- {mark}results {name} -->\n") for mark in ("", "/"))
    assert begin < end


def anchors(page: str) -> list[str]:
    """Of its headings, as GitHub makes them."""
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)]


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target.read_text()), f"{file}#{anchor}"
    assert "strong-to-weak---teacher-base" in anchors(METHOD)


CONTRIBUTING = (DOCS.parent / "CONTRIBUTING.md").read_text()
PACKAGE = DOCS.parent / "gopd_merge"


def off_the_map(page: str) -> list[str]:
    """Modules that the map of CONTRIBUTING.md does not name where they are: a room's in its entry, the others in any outside of rooms."""
    listing = page.split("gopd_merge/\n", maxsplit=1)[1].split("adapters/ ", maxsplit=1)[0]
    entries = {entry.split(maxsplit=1)[0]: entry for entry in re.split(r"\n  (?=\S)", "\n" + listing) if entry.strip()}
    outside = " ".join(entry for name, entry in entries.items() if not name.endswith("/"))
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.parent.name
        named = outside if path.parent == PACKAGE else entries.get(f"{room}/", "")
        if not path.name.startswith("__") and not re.search(rf"(?<!\w){path.name}", named):
            missing.append(str(path.relative_to(PACKAGE)))
    return missing


def test_every_module_is_on_the_map():
    assert off_the_map(CONTRIBUTING) == []
    assert off_the_map(CONTRIBUTING.replace("halving.py", "thinning.py")) == ["halving.py"]


def test_what_contributing_says_of_an_estimator_is_true():
    names = get_args(MergeConfig.model_fields["estimator"].annotation)
    assert names == ESTIMATORS
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in names:
        assert estimator_of(name, 3)(logits, logits.flip(0).log_softmax(-1), torch.arange(5)).shape == (5,)
    tests = " ".join(path.read_text() for path in (DOCS.parent / "tests").rglob("*.py"))
    mentioned = re.findall(r"`(test_\w+)`", CONTRIBUTING)
    assert len(mentioned) >= 2
    for name in mentioned:
        assert f"def {name}(" in tests


def test_the_options_of_the_method_are_known_as_such():
    grouped = {name for name, field in MergeConfig.model_fields.items() if field.json_schema_extra["group"] in GROUPS}
    assert grouped - set(METHOD_OPTIONS) == {"method", "probe_prompts"}  # neither changes the target of ExOPD
    assert set(METHOD_OPTIONS) - grouped == {"teacher_base"}
