"""What cannot be trained is refused in one line that says what to do, before the base is loaded where that can be seen."""

import pytest

from gopd_merge.cli import main
from gopd_merge.errors import GopdError, InputError
from gopd_merge.report.training_progress import SilentTraining
from gopd_merge.training import inputs as inputs_module
from gopd_merge.training.course import IDLE, Signal


class Notes(SilentTraining):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def refused(capsys, sums, tmp_path):
    """refused(*words): the one line with which the command ends, exit code 2."""

    def run(*words: str, code: int = 2) -> str:
        given = ["train-expert", "--output", str(tmp_path / "a.lora"), *words, "--quiet"]
        given += [] if "--data" in words else ["--data", sums]
        given += [] if {"--base", "--start"} & set(words) else ["--base", "adapters/tiny-base"]
        assert main(given) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "a.lora").exists()
        assert not (tmp_path / "a.lora.partial").exists()
        return line

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "none.jsonl"], "none.jsonl: cannot be read (No such file or directory)"),
        (["--recipe", "seqkd"], "learns the answers of a teacher, and there is none; name an adapter with --teacher"),
        (["--recipe", "sft", "--teacher", "adapters/math.lora"], "--recipe sft learns from no teacher"),
        (["--reward", "mine.py"], "is not of the form FILE.py:FUNCTION"),
        (["--reward-regex", "("], "is no regular expression"),
        (["--reward-regex", "a", "--recipe", "sft"], "--recipe sft has no reward"),
        (["--columns", "question=prompt"], "question is no column that is used"),
        (["--targets", "q_proj,none"], "has no such linear layer"),
        (["--start", "adapters/math.lora", "--lora-rank", "4"], "the rank is that of --start"),
        (["--domain", "my math"], "cannot name a domain"),
        (["--base", "none"], "none: no such folder"),
        (["--validation-share", "0.6", "--test-share", "0.5"], "leave nothing to train on"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--max-new-tokens", "5000"], "are longer than the 512 tokens that the context of adapters/tiny-base has room for"),
    ],
)
def test_bad_options_and_data_are_refused_in_a_line(refused, words, said):
    assert said in refused(*words)


def test_without_trl_it_says_what_to_install(refused, monkeypatch):
    monkeypatch.setattr(inputs_module.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'gopd-merge[train]'" in refused()


@pytest.mark.parametrize(("pattern", "said"), [("never this", "rewarded with 0"), ("", "rewarded with 1")])
def test_a_reward_that_is_always_the_same_is_found_before_training(refused, pattern, said):
    line = refused("--reward-regex", pattern, "--max-new-tokens", "8", "--generations", "2")
    assert f"all of 64 answers are {said}" in line
    assert "data" in line


def test_a_training_in_which_no_group_differs_any_more_is_told_from_one_that_never_did():
    signal = Signal()
    assert not any(signal.is_idle([0, 0, 1, 1], 2) for _ in range(IDLE - 1))
    assert signal.is_idle([0, 0, 1, 1], 2)
    assert not signal.has_learned
    assert not signal.is_idle([0, 1, 1, 1], 2)
    assert signal.has_learned


def test_a_reward_that_tells_no_answer_of_a_prompt_from_another_ends_the_training(train, sums, tmp_path):
    """It differs from prompt to prompt, so that a first sample shows nothing."""
    file = tmp_path / "mine.py"
    file.write_text("def of_the_prompt(prompt):\n    return len(prompt)\n")
    options = {"steps": IDLE + 2, "batch_size": 2, "generations": 2, "max_new_tokens": 4, "validation_share": 0}
    with pytest.raises(GopdError, match=f"step {IDLE}: for {IDLE} steps all answers to a prompt had the same reward"):
        train(tmp_path / "b.lora", sums, reward=f"{file}:of_the_prompt", **options)


def test_a_function_that_fails_everywhere_ends_the_run_and_one_that_fails_at_times_does_not(
    refused, train, sums, tmp_path, manifest, metrics
):
    file = tmp_path / "mine.py"
    file.write_text("def always(response):\n    return 1 / 0\n\ndef at_times(response):\n    return 1 / (len(response) % 2)\n")
    line = refused("--reward", f"{file}:always", "--max-new-tokens", "8", code=1)
    assert "all of 8 calls in a row failed: raised ZeroDivisionError in line 2" in line
    output = train(tmp_path / "b.lora", sums, reward=f"{file}:at_times", steps=1, max_new_tokens=8)
    (kind,) = manifest(output)["reward_failures"]
    assert kind == "raised ZeroDivisionError in line 5: division by zero"
    assert 0 < metrics(output)[0]["reward_failures"][kind] < 16
    assert manifest(output)["reward_failures"][kind] < manifest(output)["reward_calls"]


def test_examples_longer_than_the_context_are_left_out_and_counted(train, config, write, tmp_path, manifest):
    from gopd_merge.training.inputs import read_training
    from gopd_merge.training.planning import plan

    rows = [{"prompt": f"Say {i}.", "response": "yes " * (1 if i % 4 else 400)} for i in range(40)]
    given = config(tmp_path / "a.lora", write(tmp_path / "long.jsonl", rows), recipe="sft", validation_share=0)
    document = plan(given, read_training(given))
    assert (document["dropped"]["train"], document["examples"]["train"]) == (10, 30)
    assert "10 example(s) are longer than the context of adapters/tiny-base and are left out" in document["notes"]


def test_a_base_without_a_chat_template_is_trained_on_plain_text_and_it_is_said_once(train, sums, tmp_path, adapters):
    base = tmp_path / "plain-base"
    base.mkdir()
    for path in (adapters / "tiny-base").iterdir():
        if path.name not in ("chat_template.jinja", "README.md"):
            (base / path.name).symlink_to(path)
    notes = Notes()
    output = train(tmp_path / "plain.lora", sums, base=str(base), recipe="sft", steps=1, listener=notes)
    assert [said for said in notes.said if "no chat template" in said] == [
        "the base has no chat template: prompts are plain text, as they will be in a merge"
    ]
    assert (output / "training.json").is_file()


def test_gradients_that_are_not_finite_change_nothing_and_end_the_run_after_five(train, sums, tmp_path):
    with pytest.raises(GopdError, match="not finite"):
        train(tmp_path / "a.lora", sums, recipe="sft", steps=8, learning_rate=1e30, warmup_steps=0, validation_share=0)


def test_a_dry_run_shows_the_plan_and_loads_no_base(capsys, sums, tmp_path, monkeypatch):
    from gopd_merge.experts import base

    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("loaded"))
    assert main(["train-expert", "--base", "adapters/tiny-base", "--data", sums, "--output", str(tmp_path / "a.lora"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "rlvr: 100 steps × 16 prompts, 8 answers each" in shown
    assert "train 48 · validation 6 · test 6" in shown
    assert not (tmp_path / "a.lora").exists()


def test_an_input_error_is_one_of_the_project(config):
    with pytest.raises(InputError, match="none given; name a file"):
        config("a.lora")
