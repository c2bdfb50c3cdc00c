"""The fuzzer's target on its seeds, and on every input that once broke it, without the fuzzer."""

import importlib.util
from pathlib import Path

import pytest

from gopd_merge.errors import InputError
from gopd_merge.experts import intake

ROOT = Path(__file__).resolve().parents[2]
FINDS = sorted((Path(__file__).parent / "finds").glob("*.bin"))


@pytest.fixture(scope="module")
def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz_intake", ROOT / "eval" / "fuzz_intake.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(fuzzer):
    with fuzzer.workplace() as folder:
        yield folder


def test_an_input_without_edits_is_the_embedded_expert(fuzzer, adapters):
    assert fuzzer.unpack(fuzzer.SEEDS[0], fuzzer.VALUES) == tuple(
        (adapters / "code.lora" / name).read_bytes() for name in (fuzzer.CONFIG, fuzzer.WEIGHTS)
    )


def test_the_seeds_are_taken_or_refused_and_not_all_alike(fuzzer, folder):
    refusals = [fuzzer.run_one(folder, *fuzzer.unpack(data, fuzzer.VALUES)) for data in fuzzer.SEEDS]
    assert 5 <= refusals.count(None) < len(refusals)


def test_five_hundred_mutations_are_taken_or_refused(fuzzer, folder):
    """What the fuzzer does, without its guidance. Among the refusals are those that only readable files get."""
    data, refusals = fuzzer.SEEDS[0], []
    for number in range(500):
        data = fuzzer.mutate(data, number, lambda part, number=number: part[: number * 37 % (len(part) + 1)])
        refusals.append(fuzzer.run_one(folder, *fuzzer.unpack(data, fuzzer.VALUES)))
    assert refusals.count(None) > 50
    assert sum("adapter_config.json: " in (text or "") and "not valid JSON" not in (text or "") for text in refusals) > 50


@pytest.mark.parametrize("path", FINDS, ids=lambda path: path.stem)
def test_what_once_broke_it_does_so_no_more(fuzzer, folder, path):
    config, weights = fuzzer.unpack(path.read_bytes(), fuzzer.VALUES)
    fuzzer.run_one(folder, config, weights)


def test_the_target_notices_a_crash_and_a_message_that_steers_the_terminal(fuzzer, folder, monkeypatch):
    """The control."""
    files = fuzzer.unpack(fuzzer.SEEDS[0], fuzzer.VALUES)
    monkeypatch.setattr(intake, "check_settings", lambda content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuzzer.run_one(folder, *files)

    def refuse(content):
        error = InputError("x; y")
        error.args = ("a\x1b[2Jb; c",)
        raise error

    monkeypatch.setattr(intake, "check_settings", refuse)
    with pytest.raises(AssertionError, match="not printable"):
        fuzzer.run_one(folder, *files)
