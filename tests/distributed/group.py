"""One process of a group in which scenarios are played: `python group.py FOLDER SCENARIO…`, its number in the environment.

What each scenario says, and what it raised, is written as JSON to FOLDER/SCENARIO-RANK.json.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch

from gopd_merge import parallel
from gopd_merge.errors import GopdError, Interrupted


def exchanges(processes, say):
    """Values, sums and gradients of all; a process without a gradient adds nothing."""
    rank = processes.rank
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    if rank != 1:
        parameters[0].grad = torch.full((2, 3), float(rank + 1))
        parameters[1].grad = torch.arange(4.0) * (rank + 1)
    processes.sum_gradients(parameters)
    say("gradients", [p.grad.tolist() for p in parameters])
    say("gathered", processes.gather({"rank": rank}))
    processes.check_same(parameters)
    with torch.no_grad():
        parameters[1][2] += 1e-6 if rank == 2 else 0
    try:
        processes.check_same(parameters)
    except GopdError as error:
        say("differs", str(error))


def all_fail(processes, say):
    raise GopdError("the gradient is not finite")


def one_fails(processes, say):
    with processes.saved_by_one(lambda: say("saved", True)):
        if processes.rank == 2:
            raise GopdError("its server is gone")
        processes.gather(0)


def one_dies(processes, say, rank):
    with processes.saved_by_one(lambda: say("saved", True)):
        processes.gather(0)
        if processes.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.gather(1)


def the_last_dies(processes, say):
    one_dies(processes, say, processes.count - 1)


def the_first_dies(processes, say):
    one_dies(processes, say, 0)


def all_are_stopped(processes, say):
    with processes.saved_by_one(lambda: say("saved", True)):
        raise Interrupted("stopped", signal.SIGTERM)


def main(folder, *names):
    parallel.SAVING, parallel.SPEAKING = timedelta(seconds=5), timedelta(seconds=1)
    for name in names:
        said = {}
        processes = parallel.launched()
        try:
            with processes.joined("cpu") as together:
                globals()[name](together, said.__setitem__)
        except (GopdError, Interrupted) as error:
            said["raised"] = [type(error).__name__, str(error), error.exit_code]
        (Path(folder) / f"{name}-{processes.rank}.json").write_text(json.dumps(said))
        if name == "the_last_dies":  # the next scenario is without it
            os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(processes.count - 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
