"""Whatever a model's program tries, its own case fails, with the reason that says so, and the rest of the batch never notices.

Without bubblewrap these tests fail: `.ci/run` installs it, and `apt-get install bubblewrap` does.
"""

import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gopd_merge.evaluate.sandbox import Limits, Program, _Sandbox, run_programs

spec = importlib.util.spec_from_file_location("attacks", Path(__file__).with_name("attacks.py"))
attacks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(attacks)

LIMITS = Limits(seconds=4)
TESTS = "assert f(2) == 4"
GOOD = [
    Program("def f(x): return x * x", "f", TESTS),
    Program(  # needs a thread, a file and some memory
        "import threading\n"
        "def f(x):\n"
        "    open('/tmp/mine', 'x').close()\n"
        "    held, results = bytearray(1 << 26), []\n"
        "    thread = threading.Thread(target=lambda: results.append(x * x))\n"
        "    thread.start(); thread.join()\n"
        "    return results[0]",
        "f",
        TESTS,
    ),
]
FORGED_BUT_NOT_BY_A_SHARED_PROCESS = {
    "atexit",
    "assertion_error_of_its_own",
    "never_asked",
    "tests_found_by_gc",
    "stop_iteration",
    "no_assertion_error",
}
POSSIBLE_OUTSIDE = {"network", "environment_of_every_process", "secret_file", "secret_file_by_symlink", "passwords", "kills_the_parent"}
POSSIBLE_OUTSIDE |= {"sees_other_processes", "compiler", "shared_memory_segments", "memory_that_knows_no_address_space"}
POSSIBLE_OUTSIDE |= {"processes_by_number", "descriptors_of_other_processes"}
POSSIBLE_OUTSIDE |= {"capabilities_by_the_kernels_word"} if os.geteuid() == 0 else set()


def by_name(chosen):
    return pytest.mark.parametrize("attack", chosen, ids=[attack.name for attack in chosen])


def sandboxed_processes():
    """Ids of the processes that belong to a sandbox."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"inside.pyc" in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            pass
    return found


@pytest.fixture
def started(monkeypatch):
    """The processes of sandboxes, with their roles, in the order in which they started."""
    found, start = [], _Sandbox.start

    def noted(self, role, *arguments):
        found.append((role, start(self, role, *arguments)))
        return found[-1][1]

    monkeypatch.setattr(_Sandbox, "start", noted)
    return found


@by_name(attacks.ATTACKS)
def test_an_attack_fails_its_own_case_and_no_other_and_ends_nothing_that_others_use(attack, aimed, started):
    batch = [*GOOD, Program(aimed(attack.source), "f", TESTS), *GOOD]
    verdicts = run_programs(batch, LIMITS, workers=1)
    assert [v.reason for i, v in enumerate(verdicts) if i != 2] == ["passed"] * 4, verdicts
    assert verdicts[2].reason in attack.reasons, verdicts[2]
    assert not verdicts[2].passed
    assert [role for role, _ in started].count("candidate") == 1  # tests that a result keeps busy may need another judge


def test_a_zygote_that_is_lost_costs_one_case_and_is_started_again(started):
    """The control of the attacks on it: had one worked, this is what would be seen."""
    slow = Program("import time\ndef f(x):\n    time.sleep(2)\n    return x * x", "f", TESTS)
    with ThreadPoolExecutor(1) as pool:
        verdicts = pool.submit(run_programs, [GOOD[0], slow, *GOOD], LIMITS, 1)
        time.sleep(1)
        started[1][1].kill()
        assert [v.reason for v in verdicts.result()] == ["passed", "crashed", "passed", "passed"]
    assert [role for role, _ in started] == ["judge", "candidate", "candidate"]


@by_name(attacks.RESIDUES)
def test_what_one_program_leaves_the_next_does_not_find(attack, started):
    sources = (attack.leaves, attack.finds, attack.both)  # the last is the control: the second half is right about how to find it
    verdicts = run_programs([*(Program(source, "f", TESTS) for source in sources), *GOOD], LIMITS, workers=1)
    assert [v.reason for v in verdicts] == ["passed", "wrong", "passed", "passed", "passed"], verdicts
    assert [role for role, _ in started] == ["judge", "candidate"]


def memory(process):
    """Everything that a process has in writable memory, and whether any of it is shared with others."""
    data, shared = [], False
    with open(f"/proc/{process}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{process}/maps").read_text().split("\n"):
            places, rights, *_ = f"{line}- -".split(" ", 2)
            if rights.startswith("rw"):
                shared = shared or rights[3] == "s"
                begin, end = (int(place, 16) for place in places.split("-"))
                memory.seek(begin)
                data.append(memory.read(end - begin))
    return b"".join(data), shared


def descendants(process):
    """The numbers of a process's children, their children and so on."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [number for child in children for number in (int(child), *descendants(int(child)))]


def test_nothing_of_a_program_is_in_the_zygotes_memory(started):
    marker = "left-in-memory"
    source = f"import time\nmark = '{marker}'\ndef f(x):\n    time.sleep(2)\n    return x * x"
    with ThreadPoolExecutor(1) as pool:
        verdicts = pool.submit(run_programs, [Program(source, "f", TESTS)] * 2, LIMITS, 1)
        time.sleep(3)  # the first has ended and the second runs
        zygote, warden, first, program = descendants(started[1][1].pid)[1:]
        found = {process: memory(process) for process in (zygote, warden, first, program)}
        assert [v.reason for v in verdicts.result()] == ["passed", "passed"]
    assert [marker.encode() in data for data, _ in found.values()] == [False, False, False, True]
    assert not any(shared for _, shared in found.values())


def test_there_are_forty_attacks_or_more_with_names_of_their_own():
    assert len({attack.name for attack in attacks.ATTACKS}) == len(attacks.ATTACKS) >= 40
    assert len(attacks.ATTACKS) == len(attacks.FORGERIES) + len(attacks.PROTOCOL) + len(attacks.EXHAUSTION) + len(attacks.REACH)


@pytest.mark.slow
def test_all_attacks_at_once_leave_good_programs_alone_and_nothing_running(aimed, started):
    before = set(sandboxed_processes())
    batch = [p for attack in attacks.ATTACKS for p in (Program(aimed(attack.source), "f", TESTS), GOOD[0])]
    verdicts = run_programs(batch, LIMITS, workers=4)
    assert [role for role, _ in started].count("candidate") == 4
    assert [v.reason for v in verdicts[1::2]] == ["passed"] * len(attacks.ATTACKS)
    assert not any(v.passed for v in verdicts[::2])
    left = set(sandboxed_processes()) - before
    assert not left, f"still running: {left}"


@by_name([attack for attack in attacks.FORGERIES if attack.name not in FORGED_BUT_NOT_BY_A_SHARED_PROCESS])
def test_a_forgery_works_where_program_and_tests_share_a_process(attack):
    """The control: exit code 0 means right, as in most harnesses."""
    done = subprocess.run([sys.executable, "-c", f"{attack.source}\n{TESTS}"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_exception_that_ends_a_loop_of_the_tests_works_in_a_shared_process_only():
    source, tests = "def f(x): raise StopIteration", "for value in map(f, [1, 2]): assert value == 4"
    exec(f"{source}\n{tests}", {})
    (verdict,) = run_programs([Program(source, "f", tests)], LIMITS)
    assert verdict.reason == "error"
    assert "StopIteration" in verdict.message


@by_name([attack for attack in attacks.REACH + attacks.EXHAUSTION if attack.name in POSSIBLE_OUTSIDE])
def test_without_the_sandbox_the_same_attack_reaches_what_it_wants(attack, aimed, tmp_path, request):
    """The control: the source is right about how to do it."""
    link = Path(f"/tmp/link-{os.getpid()}")
    request.addfinalizer(lambda: link.unlink(missing_ok=True))
    (verdict,) = run_programs([Program(aimed(attack.source), "f", TESTS)], LIMITS, unsafe=True)
    assert verdict.passed, verdict


def test_without_the_sandbox_forged_verdicts_still_fail():
    harmless = [a for a in attacks.FORGERIES if a.name != "never_asked"]  # that one would end this process
    verdicts = run_programs([Program(a.source, "f", TESTS) for a in harmless], LIMITS, unsafe=True)
    assert not any(v.passed for v in verdicts)
    (good,) = run_programs(GOOD[:1], LIMITS, unsafe=True)
    assert good.passed


def test_a_function_of_the_tests_that_the_program_patches_works_in_a_shared_process_only():
    source = "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return None"
    tests = "import math\nassert math.isclose(f(2) or 0, 4)"
    done = subprocess.run([sys.executable, "-c", f"{source}\n{tests}"], check=False)
    assert done.returncode == 0
    (verdict,) = run_programs([Program(source, "f", tests)], LIMITS)
    assert verdict.reason == "wrong"


def test_tests_that_swallow_exceptions_cannot_hide_that_the_program_is_gone():
    tests = "try:\n    f(2)\nexcept BaseException:\n    pass"
    verdicts = run_programs([Program(s, "f", tests) for s in ("import os\ndef f(x): os._exit(0)", "def f(x): return x")], LIMITS)
    assert [v.reason for v in verdicts] == ["crashed", "passed"]


def test_tests_that_never_have_an_answer_prove_nothing():
    verdicts = run_programs([Program("def f(x): return 4", "f", tests) for tests in ("", "def check(c): assert c(2) == 4", TESTS)], LIMITS)
    assert [v.reason for v in verdicts] == ["error", "error", "passed"]


def test_a_program_has_as_many_processes_as_its_limit_says_and_the_next_one_too():
    source = (
        "import os, time\ndef f(x):\n    try:\n        for count in range(1, 99):\n"
        "            if os.fork() == 0: time.sleep(99)\n    except OSError:\n        return count"
    )
    for processes in (1, 8):
        programs = [Program(source, "f", f"assert f(0) == {processes}")] * 2
        assert [v.reason for v in run_programs(programs, Limits(seconds=4, processes=processes), workers=1)] == ["passed"] * 2


def test_tests_that_change_python_do_not_change_it_for_the_next_case():
    poison = "import builtins\nassert f(2) == 4\nbuiltins.sum = None\nbuiltins.AssertionError = ValueError"
    verdicts = run_programs(
        [Program("def f(x): return 4", "f", poison), Program("def f(x): return 4", "f", "assert f(2) == sum([4])")], LIMITS, workers=1
    )
    assert [v.reason for v in verdicts] == ["passed", "passed"]


def test_tests_that_never_end_cost_their_own_case():
    batch = [Program("def f(x): return 4", "f", "f(2)\nwhile True: pass"), *GOOD]
    assert [v.reason for v in run_programs(batch, Limits(seconds=2), workers=1)] == ["timeout", "passed", "passed"]
