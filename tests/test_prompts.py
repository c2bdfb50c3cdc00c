"""What a merge does with its prompts: those that experts write, those that it leaves out, and what it says of both."""

import json
from types import SimpleNamespace

import pytest
import torch

from gopd_merge import MergeConfig, writing
from gopd_merge.disk import read_json_lines
from gopd_merge.distill.backbone import REFERENCE, expert
from gopd_merge.distill.inventing import departure, opening_of, write
from gopd_merge.distill.rollout import row_seeds, stop_ids
from gopd_merge.errors import GopdError, InputError
from gopd_merge.gathering import fitting
from gopd_merge.plan import check_processes, pin, read_inputs
from gopd_merge.prompts.sources import Origin, Prompt, PromptSet
from gopd_merge.prompts.synthesis import OTHERS
from gopd_merge.report.progress import Silent

FEW = {"prompts": ["math=synth"], "synth_prompts": 8, "batch_size": 8}
SIZES = {"batch_size": 32, "max_new_tokens": 24, "quantize": "none", "eval": False}


def config_of(adapters, **options):
    return MergeConfig(experts={d: str(adapters / f"{d}.lora") for d in ("math", "code")}, **{**SIZES, **options})


def lines(path, texts):
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def written(adapters, both_loaded, tmp_path):
    """written(**options): the inputs after the experts wrote their prompts to tmp_path, and what was noted."""

    def run(**options):
        config = config_of(adapters, **{"prompts": "synth", "synth_prompts": 24, "batch_size": 24} | options)
        listener = Notes()
        return writing.with_written(both_loaded, config, read_inputs(config), tmp_path, listener), listener.notes

    return run


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_experts_write_prompts_of_their_own_domain_though_they_write_of_both(written, tmp_path):
    inputs, notes = written()
    is_of = {"math": lambda text: "How many" in text, "code": lambda text: text.startswith("Write f(")}
    for source in inputs.prompts:
        texts = [prompt.prompt for prompt in source.prompts]
        assert len(texts) == len(set(texts)) == 24
        assert sum(map(is_of[source.domain], texts)) >= 20
        left_out = read_json_lines(tmp_path / "prompts" / "synth" / f"{source.domain}.left_out.jsonl")
        others = [row["prompt"] for row in left_out if row["left_out"] == OTHERS]
        assert len(others) >= 8  # the control: the base wrote of both, and so do its experts
        assert sum(map(is_of[source.domain], others)) <= len(others) / 3
        assert source.origin.read == 24 + len(left_out) == 24 + sum(source.origin.dropped.values())
    rows = read_json_lines(tmp_path / "prompts" / "synth" / "math.jsonl")
    assert all(row["kl"]["math"] > row["kl"]["code"] and row["tokens"] > 3 and "log_ratio" in row for row in rows)
    assert any(note.startswith("math: 24 of the ") and OTHERS in note for note in notes)


def test_prompts_are_written_once_and_the_same_ones_again_from_the_same_seed(written, tmp_path, monkeypatch):
    first, _ = written(**FEW)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write", None)  # nobody may write now
        again, _ = written(**FEW)
    assert again.prompts == first.prompts
    for path in (tmp_path / "prompts" / "synth").iterdir():
        path.unlink()
    assert written(**FEW)[0].prompts == first.prompts
    for path in (tmp_path / "prompts" / "synth").iterdir():
        path.unlink()
    assert written(**FEW, seed=1)[0].prompts != first.prompts


def test_too_few_prompts_is_an_error_that_counts_by_reason_and_says_what_to_do(written):
    with pytest.raises(GopdError, match=r"math=synth|code=synth") as error:
        written(synth_tokens=9)  # no question is that short
    assert "cut at the limit of tokens" in str(error.value)
    assert str(error.value).endswith("raise --synth-tokens")


def test_the_header_of_a_users_turn_is_read_off_the_template_and_a_base_without_one_gets_plain_text(both_loaded):
    tokenizer = both_loaded.tokenizer
    opening = opening_of(tokenizer, stop_ids(both_loaded))
    assert tokenizer.decode(opening.ids) == "<|user|>"
    assert tokenizer.convert_ids_to_tokens(list(opening.ends)) == ["<|end|>"]
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = "[INST] {{ messages[0]['content'] }} [/INST]"
        instructed = opening_of(tokenizer, [3])
        assert tokenizer.decode(instructed.ids) == "[INST]"
        assert instructed.stop == ("[/INST]",)
        tokenizer.chat_template = "{{ 'fixed text' }}"
        with pytest.raises(InputError, match="does not say where a user's words begin"):
            opening_of(tokenizer, [3])
        tokenizer.chat_template = None
        assert opening_of(tokenizer, [3]).ids == (tokenizer.eos_token_id,)  # this one has no token for the beginning
    finally:
        tokenizer.chat_template = template


def test_the_departure_is_the_mean_kl_of_expert_and_base_by_an_independent_calculation(both_loaded):
    opening = opening_of(both_loaded.tokenizer, stop_ids(both_loaded))
    said = write(both_loaded, expert("math"), opening, 40, row_seeds("a", count=6))
    found = departure(both_loaded, said.rollout, [expert("math"), expert("code")], 4, 7)
    for row in range(6):
        ids = said.rollout.ids[row : row + 1, : 1 + said.lengths[row]]
        with torch.no_grad():
            logs = []
            for role in (expert("math"), expert("code"), REFERENCE):
                with both_loaded.role(role) as model:
                    logs.append(model(input_ids=ids).logits[0, :-1].double().log_softmax(-1))
        for number in (0, 1):
            kl = (logs[number].exp() * (logs[number] - logs[2])).sum(-1).mean()
            assert found.divergences[number][row] == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
        tokens = ids[0, 1:].unsqueeze(-1)
        assert found.ratios[row] == pytest.approx(float((logs[0] - logs[2]).gather(-1, tokens).mean()), rel=1e-3, abs=1e-6)


def test_a_merge_on_written_prompts_goes_on_to_the_same_bytes_and_says_where_they_came_from(merge_until, tmp_path):
    options = {"prompts": {"math": "synth"}, "synth_prompts": 4}
    merge_until(**options, output=tmp_path / "whole.lora")
    merge_until(stop=2, **options)
    kept = (tmp_path / "out.lora.partial" / "prompts" / "synth" / "math.jsonl").read_bytes()
    merge_until(resume=True, **options)
    weights = [(tmp_path / f"{name}.lora" / "adapter_model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]
    assert (tmp_path / "out.lora" / "prompts" / "synth" / "math.jsonl").read_bytes() == kept
    manifest = json.loads((tmp_path / "out.lora" / "merge.json").read_text())
    assert manifest["inputs"]["math"]["prompts"] == 4
    assert manifest["inputs"]["math"]["prompt_source"]["source"] == "synth"
    assert sum(manifest["inputs"]["math"]["prompt_source"]["dropped"].values()) > 0
    assert manifest["config"]["prompts"] == {"math": "synth"}


def test_prompts_longer_than_the_context_are_dropped_and_counted_and_all_of_them_is_an_error(adapters, tmp_path):
    path = lines(tmp_path / "a.jsonl", ["What is 2 + 3?", "why " * 600, "What is 3 + 3?"])
    inputs = read_inputs(config_of(adapters, prompts=[f"math={path}"]))
    math = next(source for source in inputs.prompts if source.domain == "math")
    assert [prompt.prompt for prompt in math.prompts] == ["What is 2 + 3?", "What is 3 + 3?"]
    assert len(math.lengths) == 2
    assert any(note.startswith("math: 1 of 3 prompts left out: 1 longer than the base's context of 512 tokens") for note in inputs.notes)
    with pytest.raises(InputError, match=r"math: all 1 prompts of .* are longer than the base's context"):
        read_inputs(config_of(adapters, prompts=[f"math={lines(tmp_path / 'b.jsonl', ['why ' * 600])}"]))


def test_prompts_of_an_evaluation_suite_are_dropped_and_counted_and_all_of_them_is_an_error(adapters, tmp_path):
    test = (adapters / "math.lora" / "prompts" / "test.jsonl").read_text().splitlines()[:3]
    (tmp_path / "sums.jsonl").write_text("\n".join(test) + "\n")  # a suite of the user's own
    questions, suite = [json.loads(line)["prompt"] for line in test], f"math={tmp_path / 'sums.jsonl'}"
    path = lines(tmp_path / "a.jsonl", [*questions, "Name a colour of the rainbow that begins with a vowel."])
    inputs = read_inputs(config_of(adapters, prompts=[f"math={path}"], decontaminate=suite))
    math = next(source for source in inputs.prompts if source.domain == "math")
    assert [prompt.prompt[:4] for prompt in math.prompts] == ["Name"]
    assert list(math.origin.dropped.values()) == [3]
    assert any("3 of 4 prompts left out: 3 in sums.jsonl" in note for note in inputs.notes)
    with pytest.raises(InputError, match=r"math: all 3 prompts of .* are in sums\.jsonl"):
        read_inputs(config_of(adapters, prompts=[f"math={lines(tmp_path / 'b.jsonl', questions)}"], decontaminate=suite))
    kept = read_inputs(config_of(adapters, prompts=[f"math={path}"]))  # the control
    assert next(source.size for source in kept.prompts if source.domain == "math") == 4


def test_a_base_without_a_chat_template_is_said_once(adapters, tmp_path, math_copy):
    inputs = read_inputs(config_of(adapters))
    assert not any("chat template" in note for note in inputs.notes)
    base = tmp_path / "adapters" / "tiny-base"
    target = base.resolve()
    base.unlink()
    base.mkdir()
    for file in target.iterdir():
        if file.name != "chat_template.jinja":
            (base / file.name).symlink_to(file)
    inputs = read_inputs(MergeConfig(experts={"math": str(math_copy)}, base=str(base), **SIZES))
    assert sum("has no chat template, so prompts are asked as plain text" in note for note in inputs.notes) == 1


def test_a_plan_of_prompts_that_are_not_written_yet_says_that_it_is_an_estimate(run_here, adapters):
    done = run_here("plan", "--experts", adapters / "math.lora", adapters / "code.lora", "--prompts", "synth", "--synth-tokens", "100")
    assert done.returncode == 0, done.stderr
    assert "math: 1,000 of synth, asked 1.6 times each" in done.stdout
    assert "math: its expert will write its 1,000 prompts (synth); planned with" in done.stdout


def test_synth_leaves_room_for_a_response_or_is_refused(adapters):
    source, config = PromptSet("math", (), Origin("synth")), config_of(adapters, max_new_tokens=80, synth_prompts=5)
    count = lambda prompts: [3] * len(prompts)  # noqa: E731 - two tokens around each
    assert fitting(source, config, count, 1000).lengths == (2 + 256,) * 5
    assert fitting(source, config, count, 100).lengths == (20,) * 5
    with pytest.raises(InputError, match="leaves no room for a prompt"):
        fitting(source, config, count, 88)


def test_what_means_nothing_with_written_prompts_is_refused(adapters):
    with pytest.raises(ValueError, match="--method sft learns the responses"):
        config_of(adapters, prompts="synth", method="sft")
    with pytest.raises(InputError, match="run gopd-merge prompts first"):
        check_processes(config_of(adapters, prompts="synth"), SimpleNamespace(count=2))


def test_the_prompts_command_writes_what_a_merge_would_ask_and_lists_the_catalogue(run_here, adapters, tmp_path):
    path = lines(tmp_path / "mine.jsonl", ["What is 2 + 3?", "What is 3 + 3?"])
    listed = run_here("prompts")
    assert "catalogue:gsm8k" in listed.stdout
    assert "licence  mit" in listed.stdout
    experts = ("--experts", adapters / "math.lora", adapters / "code.lora", "--quantize", "none")
    done = run_here("prompts", *experts, "--prompts", f"math={path}", "code=synth", "--synth-prompts", "4", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    assert "merge on them: --prompts code=prompts/code.jsonl math=prompts/math.jsonl" in done.stdout
    assert len(read_json_lines(tmp_path / "prompts" / "code.jsonl")) == 4
    assert [row["prompt"] for row in read_json_lines(tmp_path / "prompts" / "math.jsonl")] == ["What is 2 + 3?", "What is 3 + 3?"]
    assert run_here("prompts", *experts, "--prompts", "synth").returncode == 2  # the folder is there


def test_the_commit_of_a_data_set_is_in_the_options_that_repeat_the_run(adapters):
    config = config_of(adapters, prompts=["math=you/sums:main#q"])
    origin = Origin("you/sums:main/train@0123#q")
    inputs = SimpleNamespace(
        experts=(), base=SimpleNamespace(commit=None), teacher_base=None, start=None, references={},
        prompts=(PromptSet("math", (Prompt(prompt="p"),), origin), PromptSet("code", (Prompt(prompt="p"),), Origin("own"))),
    )  # fmt: skip
    assert pin(config, inputs).prompts == {"math": "you/sums:main/train@0123#q"}
