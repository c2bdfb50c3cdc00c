"""Where memory does not last the micro-batch is halved, and what is learnt stays the same."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gopd_merge import MergeConfig, distillation, merge
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.training import renew_student
from gopd_merge.distill import update as distill_update
from gopd_merge.distill.room import Room, is_out_of_memory
from gopd_merge.errors import GopdError
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent

WEIGHTS = "adapter_model.safetensors"


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def run(adapters, tmp_path_factory):
    """run(output, **options): a short merge in one micro-batch of 8, and the notes that were heard."""
    made = {}

    def merged(output, resume=False, **options):
        sizes = {"steps": 3, "batch_size": 8, "max_new_tokens": 8, "micro_batch_size": 8, "quantize": "none", "eval": False}
        config = MergeConfig(experts={d: str(adapters / f"{d}.lora") for d in ("math", "code")}, output=output, **sizes | options)
        inputs, listener = read_inputs(config), Notes()
        backbone = made.setdefault("backbone", None) or made.update(backbone=load_backbone(config, inputs)) or made["backbone"]
        renew_student(backbone, inputs, config.seed)
        merge(config, listener, inputs, backbone, resume=resume)
        return listener.notes

    return merged


@pytest.fixture
def small(monkeypatch):
    """small(rows): memory lasts for passes of so many rows; returns the sizes that were tried in the update."""
    accumulate = distillation.accumulate_gradient

    def limited(rows):
        tried = []

        def update(cast, rollout, target, estimator, micro_batch_size, *options, **named):
            tried.append(micro_batch_size)
            if micro_batch_size > rows:
                for parameter in cast.backbone.student_parameters():  # what an attempt leaves behind must not count
                    parameter.grad = torch.ones_like(parameter)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return accumulate(cast, rollout, target, estimator, micro_batch_size, *options, **named)

        for module in (distillation, distill_update):  # plain and balanced steps
            monkeypatch.setattr(module, "accumulate_gradient", update)
        return tried

    return limited


@pytest.mark.parametrize(("balance", "sizes"), [(False, [8, 4, 2, 2, 2]), (True, [8, 4, 2, 2, 2, 2, 2, 2])], ids=["plain", "balanced"])
def test_the_step_is_done_again_in_smaller_pieces_and_the_maths_is_the_same(run, small, tmp_path, balance, sizes):
    run(tmp_path / "whole.lora", balance=balance)
    tried = small(2)
    notes = run(tmp_path / "halved.lora", balance=balance)
    assert tried == sizes
    assert [note.rpartition(": ")[2] for note in notes] == ["going on with micro-batches of 4", "going on with micro-batches of 2"]
    whole, halved = (load_file(tmp_path / name / WEIGHTS) for name in ("whole.lora", "halved.lora"))
    for name, tensor in whole.items():
        torch.testing.assert_close(halved[name], tensor, rtol=1e-3, atol=1e-5)


def test_after_three_halvings_the_run_ends_with_a_checkpoint_and_advice(run, small, tmp_path):
    small(8)
    run(tmp_path / "out.lora", steps=2)
    tried = small(0)
    with pytest.raises(
        GopdError, match=r"even for micro-batches of 1 .*--resume --micro-batch-size 1 --chunk-tokens 64, or ask gopd-merge plan"
    ):
        run(tmp_path / "none.lora")
    assert tried == [8, 4, 2, 1]
    tried.clear()
    with pytest.raises(GopdError, match="even for micro-batches of 2 "):
        run(tmp_path / "none2.lora", micro_batch_size=16)
    assert tried == [16, 8, 4, 2]


@pytest.mark.slow
def test_a_process_that_may_not_have_more_memory_halves_the_micro_batch(start, tmp_path):
    """A real limit (RLIMIT_AS), and real allocations that fail: what is learnt by heart needs no sampling."""
    rows = [{"prompt": f"{number} + {number}", "response": "one two three four five six seven " * 12} for number in range(256)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"steps": 1, "batch-size": 256, "micro-batch-size": 256, "max-new-tokens": 96, "chunk-tokens": 100_000}
    options = [word for name, size in sizes.items() for word in (f"--{name}", size)] + ["--method", "sft", "--no-eval"]
    run = start("MATH", "--prompts", "math=long.jsonl", *options, room=900)
    assert run.code == 0, run.lines
    assert [line for line in run.lines if line.startswith("note     memory did not last") and "going on with micro-batches of " in line]
    free = start("MATH", "--prompts", "math=long.jsonl", *options, "--overwrite")  # the control
    assert free.code == 0
    assert not [line for line in free.lines if "memory did not last" in line]


def test_other_errors_are_not_taken_for_it(run, monkeypatch, tmp_path):
    monkeypatch.setattr(distillation, "accumulate_gradient", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("on purpose")))
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path / "out.lora")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
            ),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (OSError("Cannot allocate memory"), False),
    ],
)
def test_what_counts_as_memory_that_does_not_last(error, expected):
    assert is_out_of_memory(error) == expected


def test_a_run_that_goes_on_does_not_try_again_what_failed():
    def fails_above(rows):
        def attempt(size):
            if size > rows:
                raise MemoryError
            return size

        return attempt

    room = Room(32, 1024, lambda text: None)
    assert room.fit(fails_above(8)) == 8
    later = Room(32, 1024, lambda text: None)
    later.load_state_dict(room.state_dict())
    assert later.micro_batch_size == 8
    smaller = Room(4, 1024, lambda text: None)  # less was given now
    smaller.load_state_dict(room.state_dict())
    assert smaller.micro_batch_size == 4
