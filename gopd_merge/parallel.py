"""Several processes as one run: which rows are whose, what is summed over all, and what happens when one of them ends.

`accelerate launch` starts equal processes and tells each its number. All of them hold the same student: each samples, scores and learns
its own rows of a step, the gradients are summed, and the same optimiser step follows everywhere. One process alone needs none of this,
and does none of it. No torch before there is a group.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from gopd_merge.errors import GopdError, InputError, Interrupted, ProcessLost, Unspoken
from gopd_merge.stopping import deaf

if TYPE_CHECKING:
    from psutil import Process
    from torch import Tensor
    from torch.nn import Parameter

WAITING = timedelta(hours=1)  # longest that one process may be behind another
SAVING = timedelta(seconds=5)  # within which the first process has saved what it holds, if it is alive: the launcher kills after 30
AT_ONCE = timedelta(milliseconds=10)
SPEAKING = timedelta(seconds=5)  # within which the first process meets an error that all of them meet
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
# What the processes tell each other when the run fails: who saves the student, who has saved it, that something was said.
SAVING_IT, SAVED, SPOKEN = "saving", "saved", "spoken"
FIRST = "first"  # under which the first process leaves its number in its machine's table
_groups = count()


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them. Without a group there is one."""

    rank: int = 0  # this one, from 0
    count: int = 1
    local_rank: int = 0  # among those of this machine
    local_count: int = 1
    store: Any = field(default=None, repr=False, compare=False)  # torch's, while there is a group: a few words that outlive a process
    first: "Process | None" = field(default=None, repr=False, compare=False)  # rank 0, where it is another process of this machine

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, prints and measures."""
        return self.rank == 0

    def rows(self, domains: Sequence[str], lengths: Sequence[int]) -> list[int]:
        """The rows of a step that are this process's, ascending. `lengths` are the prompts' in any unit."""
        return deal(domains, lengths, self.count)[self.rank]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in their order. Small things only: they travel pickled. Raises ProcessLost."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        with _losses():
            return list(gather_object([value]))

    def summed(self, tensors: Sequence["Tensor"]) -> list["Tensor"]:
        """The sums over all processes of float tensors of the same shapes everywhere, in one message. Raises ProcessLost."""
        if self.count == 1:
            return list(tensors)
        import torch
        from accelerate.utils import reduce

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _losses():
            flat = cast("Tensor", reduce(flat, "sum"))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def sum_gradients(self, parameters: Sequence["Parameter"]) -> None:
        """Put the sum over all processes in the place of each gradient. One that had nothing to learn from adds nothing."""
        if self.count == 1:
            return
        import torch

        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter, gradient in zip(parameters, self.summed(gradients), strict=True):
            parameter.grad = gradient

    def check_same(self, parameters: Sequence["Parameter"]) -> None:
        """Raises GopdError unless all processes hold the same values: their sums, in float64, are compared."""
        if self.count == 1:
            return
        sums = self.gather([float(p.detach().double().sum()) for p in parameters])
        if other := [rank for rank, found in enumerate(sums) if found != sums[0]]:
            raise GopdError(
                f"process {other[0]} of {self.count} holds another student than the first one; use machines of one kind with the same "
                "packages and the same files, and report it if they are"
            )

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Before there is a group: what is wrong with options and files is wrong for all of a machine, and the first of them says it."""
        try:
            yield
        except GopdError as error:
            if self.local_rank > 0:
                raise Unspoken(error.exit_code) from error
            raise

    def take_device(self, device: str) -> None:
        """Each process of a machine has the GPU of its own number there. Raises InputError where there are too few."""
        if self.count == 1 or device != "cuda":
            return
        import torch

        gpus = torch.cuda.device_count()
        if self.local_count > gpus:
            raise InputError(f"--device cuda: {self.local_count} processes on this machine, and {gpus} GPU(s); start one for each GPU")
        torch.cuda.set_device(self.local_rank)

    @contextmanager
    def joined(self, device: str, patience: float = 0) -> Iterator["Processes"]:
        """The group of all processes, for as long as the block lasts. `device` is `cpu` or `cuda`.

        A process that fails leaves it, and the others meet ProcessLost at once or at their next exchange: a process may be behind by an
        hour and `patience` seconds, not more. One of them says why: all but one raise Unspoken. Raises InputError.
        """
        if self.count == 1:
            yield self
            return
        import torch.distributed as dist
        from accelerate import PartialState
        from torch.distributed.rendezvous import rendezvous

        if dist.is_initialized():
            raise InputError(
                f"process {self.rank}: torch.distributed has a process group already; call merge() before anything that makes one, or in "
                "one process"
            )
        _end_with_the_launcher()
        number = next(_groups)  # a second run in the same program must not meet what the first one left in the store
        options = {"rank": self.rank, "world_size": self.count, "timeout": WAITING + timedelta(seconds=patience)}
        with _losses():
            store = dist.PrefixStore(  # type: ignore[attr-defined]
                f"gopd_merge/{number}", next(rendezvous("env://", self.rank, self.count, timeout=options["timeout"]))[0]
            )
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"  # small things travel from the host's memory on any machine
            PartialState(cpu=device == "cpu", backend=backend, store=store, **options)
            together = replace(self, store=store, first=self._find_first(store))
        try:
            yield together
        except (GopdError, Interrupted) as error:
            if self.rank > 0:
                _leave()
            if not together._speaks(error):
                raise Unspoken(error.exit_code) from error
            raise
        finally:
            _leave()

    @contextmanager
    def saved_by_one(self, save: Callable[[], None]) -> Iterator[None]:
        """`save` is called when the block is left, however that is: by the first process, or by another where that one is dead."""
        try:
            yield
        except BaseException as error:
            if self.count == 1:
                with suppress(OSError):  # what ended the block may be the disk
                    save()
                raise
            with deaf():
                if self.is_first or (_follows(error) and self._must_replace_the_first()):
                    with suppress(OSError):
                        save()
                    self._tell(SAVED)
            raise
        if self.is_first:
            save()

    def _find_first(self, store: Any) -> "Process | None":
        """The first process, for those on its machine. None if it is dead already."""
        import psutil

        if self.is_first:
            store.set(FIRST, str(os.getpid()))
        elif self.rank == self.local_rank:
            with suppress(psutil.NoSuchProcess):
                return psutil.Process(int(store.get(FIRST)))
        return None

    def _must_replace_the_first(self) -> bool:
        """Whether the first process is dead, and it falls to this one to do its part.

        On its machine that is seen. Elsewhere it is dead if it does not say within `SAVING` that it has saved.
        """
        _leave()  # where it is alive it has to notice that the run ends
        end = time.monotonic() + SAVING.total_seconds()
        while time.monotonic() < end and not self._sees_the_first_dead():
            if self._hears(SAVED, AT_ONCE) is not None:
                return False
            time.sleep(0.05)
        if self.first and not self._sees_the_first_dead():
            return False  # it is busy; at the latest when this process is gone it notices
        try:
            return bool(self.store.add(SAVING_IT, 1) == 1)
        except RuntimeError:  # it is gone with the machine that the first process was on
            return self.rank == self.local_count

    def _sees_the_first_dead(self) -> bool:
        import psutil

        try:
            return self.first is not None and self.first.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
        except psutil.NoSuchProcess:
            return True

    def _speaks(self, error: GopdError | Interrupted) -> bool:
        """Whether it is this process that explains the end of the run."""
        if self.is_first:
            if not _follows(error):
                self._tell(SPOKEN)
            return True
        if _follows(error):
            return self._hears(SAVED, AT_ONCE) == self.rank  # in the place of the first
        return self._hears(SPOKEN, SPEAKING) is None

    def _tell(self, word: str) -> None:
        """Leave a word, with the number of this process, for the others."""
        with suppress(RuntimeError):  # nobody is left to hear it
            self.store.set(word, str(self.rank))

    def _hears(self, word: str, within: timedelta) -> int | None:
        """The process that left the word; None where none does in that time."""
        with suppress(RuntimeError):
            self.store.wait([word], within)
            return int(self.store.get(word))
        return None


ALONE = Processes()


def launched() -> Processes:
    """This process, as `accelerate launch` or torchrun started it; ALONE without them. Raises InputError."""
    env = os.environ
    if "WORLD_SIZE" not in env and "MASTER_PORT" in env and env.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise InputError(
            "accelerate launch --cpu starts one process whatever --num_processes says; write --multi_gpu in its place, and --device cpu "
            "behind gopd_merge"
        )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Processes(*(int(env.get(name, default)) for name, default in zip(names, (0, 1, 0, 1), strict=True)))


def deal(domains: Sequence[str], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Each row to one of `count` processes: of every domain, and of all together, no process has two rows more than another.

    Within that the longest rows go where least is. Every process finds the same.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for domain in sorted(set(domains)):
        rows = sorted((row for row, other in enumerate(domains) if other == domain), key=lambda row: (-lengths[row], row))
        for start in range(0, len(rows), count):
            turn = rows[start : start + count]
            takers = sorted(range(count), key=lambda process: (len(dealt[process]), load[process], process))[: len(turn)]
            for row, process in zip(turn, sorted(takers, key=lambda process: (load[process], process)), strict=True):
                dealt[process].append(row)
                load[process] += lengths[row]
    return [sorted(rows) for rows in dealt]


def _follows(error: BaseException) -> bool:
    """Whether it is the consequence of what happened to another process, or to all."""
    return isinstance(error, ProcessLost | Interrupted)


def _leave() -> None:
    """Leave the group, if that has not happened: the others meet ProcessLost at their next exchange."""
    import torch.distributed as dist
    from accelerate import PartialState

    if dist.is_initialized():
        dist.destroy_process_group()
        PartialState._reset_state()


@contextmanager
def _losses() -> Iterator[None]:
    """What torch says of a process that is gone, in one line."""
    try:
        yield
    except RuntimeError as error:
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        raise ProcessLost(
            "another process of this run does not answer; the run ends"
            if late
            else "another process of this run has ended, so the run ends"
        ) from error


def _end_with_the_launcher() -> None:
    """Linux sends SIGTERM to this process when the launcher is killed, which cannot do it then. No-op on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
