"""Merges in several processes against the same ones in one: adapters, metrics, a shared base; started by the real `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gopd_merge import MergeConfig, merge
from gopd_merge.casting import load_backbone
from gopd_merge.comparison.training import renew_student
from gopd_merge.plan import read_inputs

TOLERANCE = 1e-4  # of an update's norm: the processes sum in another order, and Adam enlarges what that changes
CONTROL = 0.1  # what every control differs by, and more
LAUNCH = ["launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
FREE = ("tokens_per_second", "memory_bytes")  # of the metrics, what may differ

SHORT = {"steps": 3, "batch_size": 8, "max_new_tokens": 16, "eval": False, "quantize": "none", "device": "cpu"}
CASES = {
    "plain": {},
    "nf4": {"quantize": "nf4"},
    "odd": {"batch_size": 6, "micro_batch_size": 2, "alpha": 2.0, "adaptive": "run", "steps": 6},  # three prompts of each domain
    "few": {"experts": ["math"], "batch_size": 3},  # three prompts on four processes
    "balance": {"batch_size": 6, "balance": True},
}
ON_FOUR, ON_TWO = ("nf4", "odd", "few", "balance"), ("plain", "nf4")


@pytest.fixture(scope="module")
def options_of(adapters):
    """options_of(name): a short merge's, as JSON holds them."""

    def options(name, **changes):
        own = SHORT | CASES[name] | changes
        return own | {"experts": {domain: str(adapters / f"{domain}.lora") for domain in own.get("experts", ["code", "math"])}}

    return options


@pytest.fixture(scope="module")
def alone(options_of, tmp_path_factory):
    """alone(name): the folder of that merge in one process."""
    made, backbones = {}, {}

    def run(name, **changes):
        key = (name, *changes.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("alone") / f"{name}.lora"
            config = MergeConfig(output=made[key], **options_of(name, **changes))
            inputs, kind = read_inputs(config), (config.quantize, *config.experts)
            if kind in backbones:
                renew_student(backbones[kind], inputs, config.seed)
            else:
                backbones[kind] = load_backbone(config, inputs)
            merge(config, None, inputs, backbones[kind])
        return made[key]

    return run


def launch(count, cases):
    command = [Path(sys.executable).with_name("accelerate"), *LAUNCH, "--num_processes", str(count)]
    return subprocess.run(
        [*command, Path(__file__).with_name("merging.py"), json.dumps(cases)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )


@pytest.fixture(scope="module")
def four(options_of, tmp_path_factory):
    """The folder of the merges in four processes."""
    folder = tmp_path_factory.mktemp("four")
    cases = [[str(folder / f"{name}.lora"), options_of(name, track="tensorboard" if name == "few" else "none"), None] for name in ON_FOUR]
    cases += [[str(folder / f"{fault}.lora"), options_of("plain"), fault] for fault in ("sum", "check")]
    launch(4, cases)
    return folder


def test_the_first_of_four_processes_alone_tracks_the_run(four):
    (run,) = four.glob("runs/*")
    assert run.name.startswith("few.lora-")
    found = EventAccumulator(str(run)).Reload()
    assert [event.step for event in found.Scalars("kl_to_target")] == [1, 2, 3]


@pytest.fixture(scope="module")
def two(options_of, adapters, tmp_path_factory):
    """The folder of the merges in two processes, and what the launch printed."""
    folder = tmp_path_factory.mktemp("two")
    cases = []
    for name, thrifty in zip(ON_TWO, (False, True), strict=True):
        options = options_of(name, shard_base=True, activation_checkpointing=thrifty)
        cases.append([str(folder / f"shared-{name}.lora"), options, None])
    cases += [[str(folder / f"{name}.lora"), options_of(name), None] for name in ON_TWO]
    experts = [str(adapters / f"{domain}.lora") for domain in ("code", "math")]
    short = ["--steps", "1", "--batch-size", "2", "--max-new-tokens", "8", "--eval-prompts", "2", "--device", "cpu", "--json"]
    cases.append([str(folder / "command.lora"), ["--experts", *experts, *short], "command"])
    cases.append([str(folder / "probe"), ["probe", "--experts", *experts], "command"])
    return folder, launch(2, cases)


def numbers_in(folder):
    return sum(tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values())


def update(folder):
    """B A of all modules in one row: what the adapter adds to the base, but for a common factor."""
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    return torch.cat([(tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]).flatten() for name in modules])


def distance(folder, other):
    """The norm of the difference of two adapters' updates, in parts of the second one's."""
    one, two = update(folder), update(other)
    return float((one - two).norm() / two.norm())


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in FREE} for row in rows]


def flat(value, path=""):
    """{path: number} of nested metrics."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in flat(part, f"{path}.{name}").items()}
    return {path: value}


def same_metrics(found, expected):
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        numbers, others = flat(row), flat(other)
        known = [name for name, value in others.items() if value is not None]
        assert [name for name, value in numbers.items() if value is not None] == known
        assert [numbers[name] for name in known] == pytest.approx([others[name] for name in known], rel=1e-3, abs=1e-5)
        for domain, values in row["domains"].items():  # whole numbers: the same answers
            assert values["response_length"] == other["domains"][domain]["response_length"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FOUR)
def test_four_processes_train_the_adapter_of_one(name, four, alone):
    assert distance(four / f"{name}.lora", alone(name)) < TOLERANCE
    same_metrics(metrics(four / f"{name}.lora"), metrics(alone(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TWO)
def test_two_processes_train_the_adapter_of_one(name, two, alone):
    assert distance(two[0] / f"{name}.lora", alone(name)) < TOLERANCE
    same_metrics(metrics(two[0] / f"{name}.lora"), metrics(alone(name)))


@pytest.mark.slow
def test_the_tolerance_would_notice_another_seed_and_a_gradient_that_is_not_summed(four, alone):
    assert distance(alone("plain", seed=1), alone("plain")) > CONTROL
    assert distance(four / "check.lora", alone("plain")) > CONTROL


@pytest.mark.slow
def test_processes_whose_students_part_are_stopped_with_the_student_on_disk(four):
    kind, text = json.loads((four / "sum.lora.raised-0.json").read_text())
    assert kind == "GopdError"
    assert "holds another student" in text
    assert not (four / "sum.lora").exists()
    assert any((four / "sum.lora.partial" / "checkpoints").glob("step-*/adapter_model.safetensors"))
    others = [json.loads((four / f"sum.lora.raised-{rank}.json").read_text()) for rank in (1, 2, 3)]
    assert others == [["Unspoken", ""]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TWO)
def test_a_shared_base_trains_the_same_adapter_and_is_held_by_halves(name, two, alone, adapters):
    folder, _ = two
    shared, whole = (folder / f"{kind}{name}.lora" for kind in ("shared-", ""))
    assert distance(shared, alone(name)) < TOLERANCE
    same_metrics(metrics(shared), metrics(alone(name)))
    layers = {k: v for k, v in load_file(adapters / "tiny-base" / "model.safetensors").items() if ".layers." in k}
    base = sum(v.numel() // 2 if name == "nf4" and v.dim() == 2 else 4 * v.numel() for v in layers.values())
    kept = 4 * sum(numbers_in(one) for one in (adapters / "math.lora", adapters / "code.lora", shared))
    for rank in (0, 1):
        assert json.loads(Path(f"{whole}.bytes-{rank}.json").read_text()) == base + kept  # the control
        assert json.loads(Path(f"{shared}.bytes-{rank}.json").read_text()) == base // 2 + kept


@pytest.mark.slow
def test_the_command_prints_one_result_and_measures_it_once(two):
    folder, done = two
    document = json.loads(done.stdout)
    assert {row["method"] for row in document["results"]} == {"base", "expert:code", "expert:math", "average", "exopd"}
    assert done.stderr.count("step 1/1") == 1
    assert [json.loads((folder / f"command.lora.code-{rank}.json").read_text()) for rank in (0, 1)] == [0, 0]


@pytest.mark.slow
def test_other_commands_are_refused_once(two):
    folder, done = two
    assert [json.loads((folder / f"probe.code-{rank}.json").read_text()) for rank in (0, 1)] == [2, 2]
    assert done.stderr.count("gopd-merge: probe runs in one process; start it without accelerate launch") == 1
    assert done.stderr.count("runs in one process") == 1
