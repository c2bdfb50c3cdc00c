"""Starts the command as a process of its own, again and again, without importing its libraries anew each time.

A line of JSON in: `argv`, `cwd`, `stdout` and `stderr` (files), `env`; `die_at`: the process kills itself at that call of fsync; `room`:
the megabytes that it may take beside those that it has.
A line out with its pid, and one with its exit status when it has ended.
"""

import json
import os
import resource
import signal
import sys

import bitsandbytes  # noqa: F401 - what a merge imports
import datasets  # noqa: F401
import evaluate  # noqa: F401
import psutil
import transformers.models.llama.modeling_llama  # noqa: F401

import gopd_merge.report.progress  # noqa: F401
from gopd_merge import pipeline
from gopd_merge.cli import main

pipeline.look_ahead = lambda *_: None  # the plan takes longer than all the rest here, and writes nothing


def die_at(count):
    calls, fsync = iter(range(1, count + 1)), os.fsync

    def last_words(descriptor):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = last_words


def run(job):
    os.chdir(job["cwd"])
    os.environ |= job["env"]
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if job["die_at"]:
        die_at(job["die_at"])
    if job["room"]:
        most = psutil.Process().memory_info().vms + (job["room"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    code = 70
    try:
        code = main(job["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
