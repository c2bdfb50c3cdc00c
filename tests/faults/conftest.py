"""The command as a process that can be killed, on the embedded base, and where the long versions leave their counts."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gopd_merge import MergeConfig, merge
from gopd_merge.artefacts import environment
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.training import renew_student
from gopd_merge.disk import write_json
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent

spec = importlib.util.spec_from_file_location("faults_harness", Path(__file__).with_name("harness.py"))
_harness = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_harness)
SOAK = os.environ.get("GOPD_SOAK")  # the file for the counts; without it the long versions are left out


def pytest_collection_modifyitems(config, items):
    if not SOAK:
        config.hook.pytest_deselected(items=[item for item in items if item.path.name == "test_soak.py"])
        items[:] = [item for item in items if item.path.name != "test_soak.py"]


@pytest.fixture(scope="session")
def record():
    """record(name, counts): keep what a long version found; with `add` beside what is there under that name."""

    def keep(name, counts, add=False):
        file = Path(SOAK)
        document = json.loads(file.read_text()) if file.exists() else {}
        known = document.get(name, {}) if add else {}
        about = {"schema": 1, "command": "make soak", "environment": environment(torch.device("cpu"))}
        write_json(file, {**document, **about, name: {**known, **counts}})

    return keep


@pytest.fixture(scope="session")
def harness():
    """The module beside this one."""
    return _harness


@pytest.fixture
def where():
    """where(output): how far the run there is."""
    return _harness.Where


@pytest.fixture(scope="session")
def fork(tmp_path_factory, adapters):
    """fork(*arguments, cwd=…, die_at=…, room=…, **env): the command as a process that has imported its libraries already; one at a time."""
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    starter = subprocess.Popen(
        [sys.executable, "-I", Path(__file__).with_name("starter.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    files, count = tmp_path_factory.mktemp("streams"), itertools.count()

    def run(*arguments, cwd, die_at=0, room=0, **env):
        out, err = (files / f"{next(count)}" for _ in range(2))
        job = {"argv": words(adapters, arguments), "cwd": str(cwd), "stdout": str(out), "stderr": str(err), "env": env}
        job |= {"die_at": die_at, "room": room}
        starter.stdin.write(json.dumps(job) + "\n")
        starter.stdin.flush()
        return _harness.Run(int(starter.stdout.readline()), lambda: int(starter.stdout.readline()), out, err)

    yield run
    starter.stdin.close()
    starter.wait(timeout=30)


def words(adapters, arguments):
    """`EXPERTS` stands for the embedded ones, `CODE` for the one whose answers are graded within a second."""
    known = {"EXPERTS": ["--experts", adapters / "math.lora", adapters / "code.lora"], "CODE": ["--experts", adapters / "code.lora"]}
    known["MATH"] = ["--experts", adapters / "math.lora"]
    return [str(word) for argument in arguments for word in known.get(argument, [argument])]


@pytest.fixture
def start(fork, tmp_path):
    """start(*arguments): the same, in the test's folder."""
    return lambda *arguments, **options: fork(*arguments, **{"cwd": tmp_path, **options})


@pytest.fixture
def command(tmp_path, adapters):
    """command(*arguments): the same with an interpreter of its own, as a user starts it."""

    def run(*arguments):
        argv = [Path(sys.executable).with_name("gopd-merge"), *words(adapters, arguments)]
        out, err = tmp_path / "stdout", tmp_path / "stderr"
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(argv, cwd=tmp_path, stdout=stdout, stderr=stderr)
        return _harness.Run(process.pid, process.wait, out, err)

    return run


@pytest.fixture(scope="session")
def unbroken(fork, tmp_path_factory):
    """unbroken(*options): the folder of a run of CODE with these options that nothing disturbs, or of EXPERTS with --no-eval."""
    made = {}

    def run(*options):
        if options not in made:
            folder = tmp_path_factory.mktemp("unbroken")
            done = fork("EXPERTS" if "--no-eval" in options else "CODE", *options, "--quiet", cwd=folder)
            assert done.code == 0, done.lines
            made[options] = folder / "merged.lora"
        return made[options]

    return run


@pytest.fixture(scope="session")
def small_run(adapters):
    """small_run(output, resume, overwrite): a run of two steps with a checkpoint after each, on a base that is loaded once."""
    experts = {"math": str(adapters / "math.lora")}
    sizes = {"steps": 2, "batch_size": 2, "max_new_tokens": 4, "checkpoint_every": 1, "quantize": "none", "eval": False}
    inputs = read_inputs(MergeConfig(experts=experts, **sizes))
    backbone = load_backbone(MergeConfig(experts=experts, **sizes), inputs)

    def run(output, resume=False, overwrite=False):
        renew_student(backbone, inputs, 0)
        merge(MergeConfig(experts=experts, output=output, overwrite=overwrite, **sizes), Silent(), inputs, backbone, resume=resume)

    return run
