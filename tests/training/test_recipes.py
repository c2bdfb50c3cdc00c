"""Each recipe by trl's own trainer on the embedded base: what it learns, what it writes, and that a merge takes it as it is."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from safetensors.torch import load_file

from gopd_merge.cli import main
from gopd_merge.config import make_config
from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import read_expert
from gopd_merge.experts.quantization import training_warning
from gopd_merge.plan import read_inputs
from gopd_merge.training.examples import read_data
from gopd_merge.training.reading import Example
from gopd_merge.training.scoring import response_log_probs, summed_up

SHORT = ["--steps", "1", "--batch-size", "4", "--max-new-tokens", "8", "--eval-prompts", "4"]
LOGGING = """
import json
from pathlib import Path

def reward(prompt, response, answer):
    value = sum(c in "0123456789" for c in response) + len(answer)
    with Path({log!r}).open("a") as file:
        file.write(json.dumps(value) + "\\n")
    return value
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def sft(train, sums, folder):
    return train(folder / "sums.lora", sums, recipe="sft", steps=6, learning_rate=2e-3, eval_every=3)


@pytest.fixture(scope="module")
def rlvr(train, sums, folder):
    """With a reward of the user's own that writes down what it gives: the folder, and all that it gave in order."""
    log, file = folder / "given.jsonl", folder / "mine.py"
    file.write_text(LOGGING.format(log=str(log)))
    output = train(folder / "digits.lora", sums, reward=f"{file}:reward", steps=2, eval_every=2, beta=0.01)
    return output, [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def dpo(train, sums_pairs, folder):
    return train(folder / "pairs.lora", sums_pairs, steps=4, learning_rate=2e-3)


@pytest.fixture(scope="module")
def seqkd(train, sums, folder):
    return train(folder / "copy.lora", sums, teacher="adapters/math.lora", base=None, max_new_tokens=60, steps=3, temperature=0.5)


@pytest.fixture(scope="module")
def log_probs(sft, dpo, seqkd):
    """log_probs(role, prompts, responses): log π of each response, (n,), of the base or of one of the experts."""
    model, tokenizer = load_base(Base("adapters/tiny-base", "adapters/tiny-base"), "nf4", "cpu")
    backbone = Backbone(model, tokenizer, [read_expert(path.stem, str(path)) for path in (sft, dpo, seqkd)])

    def of(role, prompts, responses):
        return torch.stack([row.sum() for row in response_log_probs(backbone, role, prompts, responses)])

    return of


def held_out(output):
    return [Example.model_validate_json(line) for line in (output / "prompts" / "validation.jsonl").read_text().splitlines()]


def test_sft_makes_responses_likelier_that_it_has_not_seen(sft, log_probs):
    examples = held_out(sft)
    prompts, responses = [e.prompt for e in examples], [e.response for e in examples]
    assert (log_probs(expert("sums"), prompts, responses) > log_probs(REFERENCE, prompts, responses)).all()


def test_dpo_moves_away_from_the_rejected_ones(dpo, log_probs):
    examples = held_out(dpo)
    prompts = [e.prompt for e in examples]
    moved = {}
    for side in ("chosen", "rejected"):
        responses = [getattr(e, side) for e in examples]
        moved[side] = log_probs(expert("pairs"), prompts, responses) - log_probs(REFERENCE, prompts, responses)
    share = (moved["chosen"] > moved["rejected"]).float().mean().item()
    best = json.loads((dpo / "training.json").read_text())["best"]
    assert best["metric"] == "preferred"
    assert share == pytest.approx(best["score"])
    assert share > 0.5


def test_seqkd_learns_what_the_teacher_answered(seqkd, log_probs):
    rows = [Example.model_validate_json(line) for line in (seqkd / "prompts" / "train.jsonl").read_text().splitlines()]
    prompts, responses = [e.prompt for e in rows], [e.response for e in rows]
    asked = {e.prompt for e in rows}
    assert all(asked)
    assert (log_probs(expert("copy"), prompts, responses) > log_probs(REFERENCE, prompts, responses)).float().mean() > 0.8


def test_the_reward_of_a_step_is_the_mean_of_what_the_function_gave(rlvr, metrics):
    output, given = rlvr
    sample, validated, answers = 32 * 4, 6, 4 * 4  # before training: a first sample, and the validation
    steps = [given[start : start + answers] for start in (sample + validated, sample + validated + answers)]
    assert [row["reward"] for row in metrics(output)] == pytest.approx([sum(step) / answers for step in steps])
    assert len(given) == sample + 2 * validated + 2 * answers
    assert "reward_failures" not in metrics(output)[0]


def test_a_validation_has_its_mean_and_interval(rlvr, manifest):
    output, given = rlvr
    first, last = manifest(output)["scores"]
    values = torch.tensor([float(value) for value in given[32 * 4 : 32 * 4 + 6]])
    half = 2.5706 * values.std() / 6**0.5  # Student's t for five degrees of freedom
    assert (first["step"], first["n"], first["metric"]) == (0, 6, "reward")
    assert first["score"] == pytest.approx(values.mean().item())
    assert [first["low"], first["high"]] == pytest.approx([float(values.mean() - half), float(values.mean() + half)], abs=1e-3)
    assert manifest(output)["best"] == last  # what was not trained is never the best


@pytest.mark.parametrize("name", ["sft", "dpo", "seqkd"])
def test_the_folder_is_what_a_merge_takes_with_no_further_options(request, name):
    output = request.getfixturevalue(name)
    inputs = read_inputs(make_config({"experts": [str(output), "adapters/code.lora"]}))
    assert {e.domain for e in inputs.experts} == {output.stem, "code"}
    assert inputs.base.name == "adapters/tiny-base"
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "prompts", "training.json",
    ]  # fmt: skip
    assert not output.with_name(output.name + ".partial").exists()


def test_a_merge_of_it_runs_and_measures_its_domain(sft, tmp_path):
    printed = StringIO()
    with redirect_stdout(printed):
        code = main(["--experts", str(sft), "adapters/code.lora", "--output", str(tmp_path / "m.lora"), *SHORT, "--quiet", "--json"])
    assert code == 0
    assert {row["domain"] for row in json.loads(printed.getvalue())["results"]} == {"sums", "code"}


def test_inspect_takes_it_and_warns_of_nothing(sft):
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(["inspect", str(sft), "--json"]) == 0
    (found,) = json.loads(printed.getvalue())["experts"]
    assert (found["rank"], found["warnings"]) == (16, [])


def test_the_adapter_keeps_float32_though_trl_rounds_that_of_a_quantised_model(sft):
    tensors = load_file(sft / "adapter_model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert all((tensor != tensor.bfloat16().float()).any() for tensor in tensors)


def test_the_card_says_how_it_was_made_and_names_no_path(sft, rlvr, sums):
    for output, recipe, words in ((sft, "sft", "supervised fine-tuning"), (rlvr[0], "rlvr", "verifiable reward")):
        card = (output / "README.md").read_text()
        assert f"- {recipe}" in card
        assert words in card
        assert "bnb_4bit_quant_type: nf4" in card
        assert "license: apache-2.0" in card  # the base's
        assert not re.search(r"(^|[\s|(])/(tmp|home|root|work)", card)
        assert "![" not in card


def test_the_manifest_repeats_the_run(sft, sums, config, manifest):
    found = manifest(sft)
    options = {name: value for name, value in found["config"].items() if name != "output"}
    again = config(sft, *options.pop("data"), **options)
    assert read_data(again).recipe == "sft"
    assert found["environment"]["trl"]
    assert found["reward_failures"] == {}
    assert found["seconds"]["total"] > 0
    assert found["examples"] == {"train": 48, "validation": 6, "test": 6}


def test_rlvr_goes_on_from_an_sft_expert_with_its_rank_and_says_so(train, sft, sums, folder, manifest):
    output = train(folder / "further.lora", sums, base=None, start=str(sft), reward_regex="[0-4]$", max_new_tokens=16)
    found = manifest(output)
    assert (found["recipe"], found["student"]["rank"], found["start"]["name"]) == ("rlvr", 16, str(sft))
    assert "goes on from the adapter sums.lora" in (output / "README.md").read_text()
    before, after = (read_expert("e", str(path)).sha256 for path in (sft, output))
    assert before != after


def test_dpo_from_an_expert_is_measured_against_where_it_began(train, sft, sums_pairs, folder, manifest):
    """Against the base every response would have moved already."""
    output = train(folder / "preferring.lora", sums_pairs, base=None, start=str(sft), steps=2, learning_rate=1e-3)
    first, last = manifest(output)["scores"][0], manifest(output)["scores"][-1]
    assert first["score"] == 0.5  # nothing has moved: each pair is a tie
    assert last["score"] != 0.5


def test_a_merge_on_another_precision_warns(sft):
    assert training_warning("sums", sft, "nf4") is None
    assert "was trained on the base in 4-bit NF4" in training_warning("sums", sft, "none")


def test_scores_that_are_shares_and_those_that_are_not_have_intervals_of_their_own():
    assert summed_up(0, "accuracy", [1.0, 0.0, 1.0, 1.0]).score == 0.75
    assert summed_up(0, "accuracy", [1.0] * 10).low < 1  # Wilson: ten right answers do not prove that all are
    better, worse = summed_up(2, "loss", [1.0, 2.0]), summed_up(1, "loss", [2.0, 3.0])
    assert better.beats(worse)
    assert not worse.beats(better)
    assert summed_up(2, "accuracy", [1.0, 0.0]).beats(summed_up(1, "accuracy", [0.0, 1.0]))  # of equal ones the later
