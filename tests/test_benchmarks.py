"""The contenders of eval/benchmarks do the same work: on a tiny random model each finds our loss and our gradient."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "eval" / "benchmarks"
pytest.importorskip("trl")


@pytest.fixture(scope="module")
def benchmarks():
    """benchmarks(name): a module of eval/benchmarks."""

    def load(name):
        sys.path.insert(0, str(FOLDER))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(FOLDER))

    return load


@pytest.fixture(scope="module")
def folder(benchmarks, tmp_path_factory):
    """A tiny random base with an expert and a student."""
    folder = tmp_path_factory.mktemp("tiny")
    models = benchmarks("models")
    models.make_model(models.SHAPES["tiny"], folder)
    return folder


@pytest.fixture(scope="module")
def questions(benchmarks):
    return benchmarks("recorded").make_questions(benchmarks("models").SHAPES["tiny"], "ragged")


@pytest.fixture(scope="module")
def ours(benchmarks, folder):
    return benchmarks("rivals").Ours(folder)


@pytest.fixture(scope="module")
def recorded(ours, questions):
    return ours.record(questions)


@pytest.mark.parametrize(
    ("rival", "label", "options"),
    [
        ("A", "A, λ = 1", {}),
        ("A", "A, λ = 1", {"checkpointing": True}),
        ("A′", "A′", {"alpha": 1.5}),
        ("A′", "A′", {"alpha": 1.5, "compact": True}),
        ("B", "B", {"alpha": 1.5}),
        ("ours", "ours, lean", {"alpha": 1.5, "lean": True}),
    ],
    ids=["trl", "trl with checkpointing", "trl on one base", "trl on one base, compacted", "dense", "ours, lean"],
)
def test_every_rival_finds_our_loss_and_gradient(benchmarks, folder, ours, recorded, rival, label, options):
    """Other micro-batches, too; the tolerance is that of the benchmark, which is not timed where this fails."""
    theirs = benchmarks("rivals").CONTENDERS[rival](folder).gradient(recorded, micro_batch=4, **options)
    alpha = options.get("alpha", 1.0)
    mine = ours.gradient(recorded, micro_batch=2, alpha=alpha)
    gaps = benchmarks("parity").check_parity({"ours, λ = 1" if alpha == 1 else "ours": mine, label: theirs})
    assert gaps.keys() == {label}
    assert gaps[label]["gradient"] < 1e-5
    # The control: a target of another λ is another loss and gradient.
    other = ours.gradient(recorded, micro_batch=2, alpha=alpha + 0.01)
    with pytest.raises(SystemExit, match="different work"):
        benchmarks("parity").check_parity({"ours, λ = 1" if alpha == 1 else "ours": other, label: theirs})


def test_in_4_bits_too(benchmarks, folder, recorded):
    """trl rounds the student of a quantised base to bfloat16, which is undone, so that the precision is the same."""
    mine, theirs = (
        benchmarks("rivals").CONTENDERS[f"{who}, NF4"](folder).gradient(recorded, micro_batch=4, alpha=1.5) for who in ("ours", "A′")
    )
    assert benchmarks("parity").check_parity({"ours": mine, "A′": theirs}).keys() == {"A′"}


def test_responses_have_the_planned_lengths_whoever_samples(benchmarks, folder, recorded, questions):
    """So that whole steps of different samplers can be compared."""
    assert tuple(map(len, recorded.responses)) == questions.response_lengths
    assert len(set(questions.response_lengths)) > 4
    models, rivals = benchmarks("models"), benchmarks("rivals")
    dense = rivals.Dense(folder)
    with benchmarks("recorded").planned(dense.student.get_base_model(), questions):
        _, _, response_mask = dense._answer(questions)
    assert tuple(response_mask.sum(1).tolist()) == questions.response_lengths
    ended = [row[-1] == models.EOS for row in recorded.responses]
    assert ended == [length < questions.limit for length in questions.response_lengths]


@pytest.mark.parametrize("rival", ["ours", "A", "A′", "B"])
def test_a_whole_step_is_timed_by_phase(benchmarks, folder, questions, rival):
    options = {} if rival == "A" else {"alpha": 1.5}
    seconds = benchmarks("rivals").CONTENDERS[rival](folder).whole(questions, micro_batch=4, **options)
    assert set(seconds) == {"rollout", "scoring and update"}
    assert min(seconds.values()) > 0


def test_useful_operations_are_those_that_torch_counts(benchmarks, folder):
    """Of a λ = 1 step without padding, in one micro-batch; torch counts attention in full, and not the masked half."""
    from torch.utils.flop_counter import FlopCounterMode

    recorded, models = benchmarks("recorded"), benchmarks("models")
    shape = models.SHAPES["tiny"]
    ours = benchmarks("rivals").Ours(folder)
    full = ours.record(recorded.make_questions(shape, "full"))
    with FlopCounterMode(display=False) as counted:
        ours.gradient(full, micro_batch=shape.prompts, alpha=1.0)
    useful = shape.useful_flops(full.questions.lengths, scored_roles=1)
    assert useful == pytest.approx(counted.get_total_flops(), rel=0.2)
