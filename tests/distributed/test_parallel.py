"""One of several processes: its rows, sums over all, and what it does when another one ends. Groups here are of gloo, on one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gopd_merge.errors import GopdError, InputError, Unspoken
from gopd_merge.parallel import ALONE, Processes, deal, launched

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU")


def batch(shares, seed=0):
    """Domains of a shuffled step with so many prompts of each, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    domains = [name for name, share in shares.items() for _ in range(share)]
    order = torch.randperm(len(domains), generator=generator).tolist()
    return [domains[i] for i in order], torch.randint(10, 400, (len(domains),), generator=generator).tolist()


def spread(counts):
    return max(counts) - min(counts)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shares", [{"a": 8, "b": 8}, {"a": 5, "b": 5, "c": 5}, {"a": 3}, {"a": 1, "b": 1}, {"a": 9, "b": 2}])
def test_every_row_is_one_process_s_and_every_domain_is_balanced(shares, count):
    domains, lengths = batch(shares)
    dealt = deal(domains, lengths, count)
    assert sorted(row for rows in dealt for row in rows) == list(range(len(domains)))
    assert all(rows == sorted(rows) for rows in dealt)
    assert spread([len(rows) for rows in dealt]) <= 1
    for domain in shares:
        assert spread([sum(domains[row] == domain for row in rows) for rows in dealt]) <= 1


def test_processes_get_like_amounts_of_text():
    """The control deals the same rows in turns, as they come."""
    balanced, as_they_come = [], []
    for seed in range(50):
        domains, lengths = batch({"a": 16, "b": 16}, seed)
        loads = [sum(lengths[row] for row in rows) for rows in deal(domains, lengths, 4)]
        balanced.append(spread(loads) / max(loads))
        loads = [sum(lengths[start::4]) for start in range(4)]
        as_they_come.append(spread(loads) / max(loads))
    assert sum(balanced) / 50 < 0.05
    assert sum(as_they_come) / 50 > 0.2


def test_dealing_does_not_depend_on_who_asks():
    domains, lengths = batch({"a": 5, "b": 5})
    own = [Processes(rank, 3).rows(domains, lengths) for rank in range(3)]
    assert own == deal(domains, lengths, 3)
    assert ALONE.rows(domains, lengths) == list(range(10))


@pytest.fixture
def environment(monkeypatch):
    """environment(**values): the variables of a launcher, and no others of theirs."""

    def set_to(**values):
        for name in ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_a_launcher_says_which_process_this_is(environment):
    environment(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4", MASTER_PORT="29500")
    assert launched() == Processes(5, 8, 1, 4)
    environment()
    assert launched() == ALONE


def test_a_launcher_that_starts_one_process_of_many_is_refused(environment):
    """`accelerate launch --cpu --num_processes 4` sets these variables and starts a single process."""
    environment(ACCELERATE_USE_CPU="True", MASTER_PORT="29500")
    with pytest.raises(InputError, match="--multi_gpu"):
        launched()
    environment(ACCELERATE_USE_CPU="True", MASTER_PORT="29500", RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", LOCAL_WORLD_SIZE="4")
    assert launched().count == 4  # the control: so does mpirun's


def test_one_process_alone_touches_no_group():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = gradient = torch.ones(3)
    saved = []
    with ALONE.joined("cpu") as processes, processes.saved_by_one(lambda: saved.append(1)):
        assert processes.gather("mine") == ["mine"]
        processes.sum_gradients([parameter])
        processes.check_same([parameter])
    assert parameter.grad is gradient
    assert saved == [1]
    assert not torch.distributed.is_initialized()
    with pytest.raises(GopdError, match="its own"), ALONE.joined("cpu") as processes:
        with processes.saved_by_one(lambda: saved.append(2)):
            raise GopdError("its own")
    assert saved == [1, 2]


@pytest.mark.parametrize(("local_rank", "raised"), [(0, InputError), (1, Unspoken)])
def test_what_is_wrong_for_all_is_said_once_a_machine(local_rank, raised):
    with pytest.raises(raised) as caught, Processes(local_rank, 2, local_rank, 2).one_voice():
        raise InputError("no such file")
    assert caught.value.exit_code == 2
    assert str(caught.value) == ("no such file" if local_rank == 0 else "")


def test_a_process_ends_with_its_launcher(tmp_path):
    """The launcher starts each process in a session of its own, where nothing else would reach it."""
    child = "import time; from gopd_merge.parallel import _end_with_the_launcher as e; e(); print('ready', flush=True); time.sleep(60)"
    start = f"p = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    parent = f"import subprocess, sys; {start}; print(p.pid, flush=True); p.wait()"
    launcher = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True)
    pid = int(launcher.stdout.readline())
    assert launcher.stdout.readline() == "ready\n"
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not is_alive(pid))


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


SCENARIOS = ("exchanges", "all_fail", "one_fails", "all_are_stopped", "the_last_dies", "the_first_dies")  # of group.py


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """By scenario: what each of four processes said; None of one that is dead."""
    folder = tmp_path_factory.mktemp("group")
    # As the launcher's agent holds it, so that it outlives the first process.
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", Path(__file__).with_name("group.py"), folder, *SCENARIOS]
    processes = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(4)]
    assert [process.wait(120) for process in processes] == [-signal.SIGKILL, 0, 0, -signal.SIGKILL]

    def read(path):
        return json.loads(path.read_text()) if path.exists() else None

    return {name: [read(folder / f"{name}-{rank}.json") for rank in range(4)] for name in SCENARIOS}


@pytest.mark.slow
def test_gradients_are_summed_and_values_gathered_everywhere(told):
    for said in told["exchanges"]:
        assert said["gradients"] == [[[8.0] * 3] * 2, [0.0, 8.0, 16.0, 24.0]]  # 1 + 3 + 4: the second had none
        assert said["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}, {"rank": 3}]


@pytest.mark.slow
def test_another_student_is_noticed_by_all_and_named(told):
    for said in told["exchanges"]:
        assert said["differs"].startswith("process 2 of 4 holds another student")


@pytest.mark.slow
def test_an_error_of_all_is_said_once_by_the_first(told):
    raised = [said["raised"] for said in told["all_fail"]]
    assert raised == [["GopdError", "the gradient is not finite", 1], *[["Unspoken", "", 1]] * 3]


@pytest.mark.slow
def test_an_error_of_one_is_said_by_it_and_the_first_saves_and_says_that_it_ended(told):
    first, second, third, fourth = told["one_fails"]
    assert third["raised"] == ["GopdError", "its server is gone", 1]
    assert first["raised"][0] == "ProcessLost"
    assert first["saved"]
    assert second == fourth == {"raised": ["Unspoken", "", 1]}
    assert "saved" not in third


@pytest.mark.slow
def test_where_another_is_dead_the_first_saves_and_speaks(told):
    first, second, third, fourth = told["the_last_dies"]
    assert (first["saved"], first["raised"][0]) == (True, "ProcessLost")
    assert second == third == {"raised": ["Unspoken", "", 1]}
    assert fourth is None


@pytest.mark.slow
def test_where_the_first_is_dead_one_of_the_others_saves_and_speaks(told):
    first, *others, _ = told["the_first_dies"]
    assert first is None
    assert sorted("saved" in said for said in others) == [False, True]
    for said in others:
        assert said["raised"][0] == ("ProcessLost" if "saved" in said else "Unspoken")


@pytest.mark.slow
def test_a_signal_to_all_keeps_its_exit_code_and_the_first_saves(told):
    assert [said["raised"][2] for said in told["all_are_stopped"]] == [143] * 4
    assert ["saved" in said for said in told["all_are_stopped"]] == [True, False, False, False]
    assert [said["raised"][0] for said in told["all_are_stopped"]] == ["Interrupted", *["Unspoken"] * 3]
