"""SIGINT and SIGTERM: what was computed is saved, the command says how to go on, and nothing is left half done."""

import signal
import subprocess
import sys

import pytest

from gopd_merge.errors import Interrupted
from gopd_merge.stopping import SIGNALS, deaf, stop_on_signals, undisturbed

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def stopping():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_what_is_going_on_at_once(stopping, number, code):
    with pytest.raises(Interrupted) as stopped:
        signal.raise_signal(number)
    assert stopped.value.exit_code == code
    assert not isinstance(stopped.value, Exception)  # nothing on the way takes it for an error


def test_a_signal_waits_for_the_end_of_what_must_not_be_left_half_done(stopping):
    done = []

    def work():
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            done.append("the rest")
        done.append("what follows")

    with pytest.raises(Interrupted):
        work()
    assert done == ["the rest"]


def test_without_a_signal_everything_is_as_before(stopping):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with undisturbed(), deaf():
        assert [signal.getsignal(number) for number in SIGNALS] != handlers
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_what_is_deaf_hears_nothing(stopping):
    with deaf():
        signal.raise_signal(signal.SIGTERM)


BEGIN = "from signal import raise_signal as s; from gopd_merge.stopping import *; stop_on_signals()"
TWICE = {
    "while it is saved": "\ntry:\n s(15)\nexcept Interrupted:\n with undisturbed():\n  s(15)",
    "in a block that waits": "\nwith undisturbed():\n s(15); s(15)",
    "each once": "\ntry:\n with undisturbed():\n  s(2); s(15)\nexcept Interrupted as e:\n exit(e.exit_code)",  # as a launcher does it
}


@pytest.mark.parametrize(("how", "code"), [("while it is saved", -15), ("in a block that waits", -15), ("each once", 130)])
def test_the_same_signal_again_ends_the_process_at_once(how, code):
    assert subprocess.run([sys.executable, "-Ic", BEGIN + TWICE[how]], check=False).returncode == code


def test_stopped_in_a_step_and_while_it_is_measured_it_goes_on_with_nothing_lost(start, unbroken, where, harness, tmp_path):
    at, short = where(tmp_path / "merged.lora"), (*harness.SHORT, "--quantize", "none")
    run = start("CODE", *short, "--quiet")
    assert run.send_when(lambda: at.steps == 2, signal.SIGINT, after=0.05)
    assert run.code == 130
    (line,) = run.lines
    assert line in [
        f"gopd-merge: stopped at step {step}; everything is saved. Go on with: gopd-merge resume merged.lora" for step in (2, 3)
    ]
    assert at.saved[-1] == f"step-00000{at.steps}"
    assert not at.output.exists()

    run = start("resume", "merged.lora", "--quiet")
    assert run.send_when(lambda: at.answers > 2, signal.SIGTERM)
    assert run.code == 143
    assert run.lines == ["gopd-merge: stopped at step 4; everything is saved. Go on with: gopd-merge resume merged.lora"]

    run = start("resume", "merged.lora", "--json")
    assert run.code == 0, run.lines
    assert (at.output / WEIGHTS).read_bytes() == (unbroken(*short) / WEIGHTS).read_bytes()
    assert [path.name for path in tmp_path.glob("merged*")] == ["merged.lora"]
