"""How a run in several processes ends before its time: one of them dies, or the launcher is asked to stop. Nothing is left running."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

SECONDS = 20  # within which all have ended; what is stated in docs/scaling.md
LAUNCH = ["launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
ENDLESS = ["--no-eval", "--steps", "100000", "--batch-size", "4", "--max-new-tokens", "8", "--device", "cpu"]


@pytest.fixture
def running(adapters, tmp_path):
    """A merge in two processes that has done some steps: the launcher, its processes by number, and where it writes."""
    output, told = tmp_path / "merged.lora", tmp_path / "stderr"
    command = [Path(sys.executable).with_name("accelerate"), *LAUNCH, "--num_processes", "2", "-m", "gopd_merge", *ENDLESS]
    experts = [adapters / "math.lora", adapters / "code.lora"]
    with told.open("w") as stderr:
        launcher = subprocess.Popen(
            [*command, "--experts", *experts, "--output", output],
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    log = tmp_path / "merged.lora.partial" / "metrics.jsonl"
    workers = {}
    try:
        until(lambda: log.is_file() and log.read_text().count("\n") > 3, 120, told)
        workers = {
            int(worker.environ()["RANK"]): worker for worker in psutil.Process(launcher.pid).children() if "RANK" in worker.environ()
        }
        yield launcher, workers, output, told
    finally:
        for process in (launcher, *workers.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.wait()


def until(holds, seconds, told):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, told.read_text()
        time.sleep(0.1)


def has_ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def assert_ended_with_the_student(running, said):
    launcher, workers, output, told = running
    until(lambda: launcher.poll() is not None and all(map(has_ended, workers.values())), SECONDS, told)
    assert launcher.stdout.read() == ""
    assert not output.exists()
    partial = output.with_name("merged.lora.partial")
    last = max((partial / "checkpoints").glob("step-*"))
    assert all(tensor.isfinite().all() for tensor in load_file(last / "adapter_model.safetensors").values())
    assert len((last / "metrics.jsonl").read_text().splitlines()) == int(last.name.removeprefix("step-"))
    lines = [line for line in told.read_text().splitlines() if line.startswith("gopd-merge")]
    assert len(lines) == 1
    assert said in lines[0]
    assert lines[0].endswith(f"o on with: gopd-merge resume {output}")


@pytest.mark.slow
def test_the_death_of_the_first_process_ends_the_run_with_the_student_on_disk(running):
    launcher, workers, *_ = running
    workers[0].kill()
    assert_ended_with_the_student(running, "gopd-merge, process 1: ")
    assert launcher.returncode == 1


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_with_the_student_on_disk(running):
    """What Ctrl-C does: the launcher alone gets it, and passes it on."""
    launcher, *_ = running
    launcher.send_signal(signal.SIGINT)
    assert_ended_with_the_student(running, "stopped")
    assert launcher.returncode == 1  # what accelerate makes of it; the processes' own are 130


@pytest.mark.slow
def test_what_two_processes_were_stopped_in_they_go_on_with_to_the_same_bytes(adapters, tmp_path):
    options = ["--no-eval", "--steps", "6", "--batch-size", "4", "--max-new-tokens", "8", "--device", "cpu", "--quantize", "none"]
    begin = [*options, "--experts", adapters / "math.lora", adapters / "code.lora"]
    launch = [Path(sys.executable).with_name("accelerate"), *LAUNCH, "--num_processes", "2", "-m", "gopd_merge"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

    def start(*words):
        return subprocess.Popen([*launch, *words], env=environment, stdout=subprocess.DEVNULL, stderr=(tmp_path / "stderr").open("w"))

    assert start(*begin, "--output", tmp_path / "whole.lora").wait() == 0
    stopped = start(*begin, "--output", tmp_path / "merged.lora")
    log = tmp_path / "merged.lora.partial" / "metrics.jsonl"
    until(lambda: log.is_file() and log.read_text().count("\n") > 1, 120, tmp_path / "stderr")
    stopped.terminate()
    assert stopped.wait() != 0
    saved = max((tmp_path / "merged.lora.partial" / "checkpoints").iterdir()).name
    assert start("resume", tmp_path / "merged.lora").wait() == 0, (tmp_path / "stderr").read_text()
    assert f"note     going on after step {int(saved.removeprefix('step-'))}" in (tmp_path / "stderr").read_text()
    merged, whole = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("merged.lora", "whole.lora"))
    assert merged == whole
