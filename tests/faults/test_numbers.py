"""A gradient that is not finite costs its step and nothing else; five in a row, or a run that diverges, end it in good order."""

import json

import pytest
import torch

from gopd_merge import MergeConfig, distillation, merge
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.training import renew_student
from gopd_merge.distill.checkpoint import load_optimizer, save_optimizer
from gopd_merge.distill.watch import Watch
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
def loaded(adapters):
    config = MergeConfig(experts={"math": str(adapters / "math.lora")}, quantize="none", eval=False)
    return load_backbone(config, read_inputs(config))


@pytest.fixture
def run(adapters, loaded, tmp_path):
    """run(resume=…, **options): a short merge to out.lora on the loaded base; the notes that were heard."""

    def merged(resume=False, **options):
        sizes = {"steps": 8, "batch_size": 4, "max_new_tokens": 8, "quantize": "none", "eval": False, "output": tmp_path / "out.lora"}
        config = MergeConfig(experts={"math": str(adapters / "math.lora")}, **sizes | options)
        inputs, listener = read_inputs(config), Notes()
        renew_student(loaded, inputs, config.seed)
        try:
            merge(config, listener, inputs, loaded, resume=resume)
        finally:
            merged.notes = listener.notes
        return listener.notes

    return merged


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(steps): the gradient of these steps (from 1) is not finite, by the second row's first token."""
    accumulate = distillation.accumulate_gradient

    def poison(steps):
        calls = iter(range(1, 1000))

        def spoilt(cast, rollout, *options, **named):
            statistics = accumulate(cast, rollout, *options, **named)
            if next(calls) in steps:
                statistics.squared_gradient[int(rollout.response_mask[0].sum())] = float("nan")
                cast.backbone.student_parameters()[3].grad.view(-1)[0] = float("inf")
            return statistics

        monkeypatch.setattr(distillation, "accumulate_gradient", spoilt)

    return poison


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return (folder / WEIGHTS).read_bytes()


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(run, poisoned, tmp_path):
    poisoned({3, 5})
    assert [note for note in run(checkpoint_every=1, keep_checkpoints=True) if "finite" in note] == [
        "step 3: its gradient is not finite, so it was left out",
        "step 5: its gradient is not finite, so it was left out",
    ]
    found = rows(tmp_path / "out.lora")
    assert [row["skipped"] for row in found] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert (found[2]["grad_norm"], found[2]["kl_to_target"], found[2]["domains"]) == (None, None, {})
    assert found[3]["learning_rate"] != found[2]["learning_rate"]  # the schedule is the same for whoever counts steps
    at = [tmp_path / "out.lora" / "checkpoints" / f"step-00000{step}" for step in range(1, 9)]
    assert weights(at[1]) == weights(at[2]) != weights(at[3]) == weights(at[4]) != weights(at[5])


def test_five_in_a_row_end_the_run_with_what_repeats_them(run, poisoned, adapters, tmp_path):
    poisoned(range(2, 9))
    with pytest.raises(
        GopdError, match=r"not finite in 5 steps in a row, up to step 6, whose prompts are in offending.json beside its checkpoint"
    ):
        run()
    partial = tmp_path / "out.lora.partial"
    assert sorted(path.name for path in (partial / "checkpoints").iterdir()) == ["offending.json", "step-000006"]
    offence = json.loads((partial / "checkpoints" / "offending.json").read_text())
    assert (offence["step"], offence["seed"]) == (6, 0)
    (prompt,) = offence["prompts"]
    assert (prompt["domain"], prompt["teacher"], prompt["alpha"]) == ("math", "expert-math", 1.25)
    known = (adapters / "math.lora" / "prompts" / "train.jsonl").read_text()
    assert prompt["prompt"] in [json.loads(line)["prompt"] for line in known.splitlines()]
    assert all(isinstance(token, int) for token in prompt["response_ids"])
    poisoned(set())  # whatever it was has passed
    assert run(resume=True) == ["going on after step 6"]
    assert rows(tmp_path / "out.lora")[-1]["skipped"] == 5


def test_four_in_a_row_do_not(run, poisoned, tmp_path):
    poisoned({2, 3, 4, 5, 7})
    run()
    assert rows(tmp_path / "out.lora")[-1]["skipped"] == 5


def test_an_optimiser_that_never_stepped_is_saved_too(tmp_path):
    """As where the first step was left out."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    save_optimizer(optimizer, tmp_path)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    load_optimizer(other, tmp_path)
    assert other.state_dict() == {
        **optimizer.state_dict(),
        "param_groups": [optimizer.state_dict()["param_groups"][0] | {"betas": [0.9, 0.999]}],
    }


FINE = {"response_length": 40.0, "capped": 0.0, "entropy": 1.0, "reward": 0.02, "drift": 0.02, "alpha": 2.0, "clipped_share": None}


@pytest.mark.parametrize(
    ("changes", "diverges"),
    [
        ({"kl_to_target": 0.5}, True),
        ({"entropy": 0.1}, True),
        ({"capped": 1.0}, True),
        ({"capped": 0.7}, False),
        ({"response_length": 90}, False),
    ],
    ids=str,
)
def test_what_is_a_divergence_and_what_only_a_warning(changes, diverges):
    watch, signs = Watch(20), []
    for step in range(1, 11):
        metrics = FINE | {"kl_to_target": 0.01 * (1 + 0.01 * (-1) ** step)} | (changes if step > 5 else {})
        signs += watch.look({"step": step, "domains": {"math": metrics}})
    assert len(signs) == 1
    assert signs[0].diverges == diverges


def test_a_run_that_diverges_is_ended_where_that_is_asked_for(run, tmp_path):
    said = "math: 100% of the responses end at the limit of their length; raise --max-new-tokens"
    with pytest.raises(GopdError, match="ended by --stop-on-divergence after step 5"):
        run(stop_on_divergence=True, max_new_tokens=2)
    assert run.notes == [said]
    assert [path.name for path in (tmp_path / "out.lora.partial" / "checkpoints").iterdir()] == ["step-000005"]
    assert run(resume=True, stop_on_divergence=True, max_new_tokens=2) == ["going on after step 5"]  # it was told, and goes on
    assert run(max_new_tokens=2, output=tmp_path / "told.lora") == [said]  # the control: by default it is only told
