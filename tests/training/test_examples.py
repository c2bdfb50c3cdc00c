"""Rows become examples of a recipe, or are refused in one line; splits depend on texts and seed alone."""

import pytest

from gopd_merge.errors import InputError
from gopd_merge.prompts.files import Row
from gopd_merge.training import examples as examples_module
from gopd_merge.training.examples import divided, read_data, write_prompts
from gopd_merge.training.reading import Example, Rows

PROMPT = {"prompt": "1 + 1?"}
EITHER = {**PROMPT, "answer": "2", "response": "2", "chosen": "2", "rejected": "3"}


@pytest.fixture
def read(tmp_path, write, config):
    """Recipe and splits of these rows."""

    def run(rows, **options):
        data = read_data(config(tmp_path / "a.lora", write(tmp_path / "rows.jsonl", rows), **options))
        return data.recipe, data.splits

    return run


def rows_of(*columns, count=20):
    return [{"prompt": f"{i} + 1?"} | {name: EITHER[name] for name in columns} for i in range(count)]


@pytest.mark.parametrize(
    ("columns", "options", "recipe"),
    [
        (("answer",), {}, "rlvr"),
        (("answer", "response"), {}, "rlvr"),
        (("response",), {}, "sft"),
        (("chosen", "rejected"), {}, "dpo"),
        ((), {"reward_regex": "2"}, "rlvr"),
        (("answer", "response"), {"recipe": "sft"}, "sft"),
        (("response",), {"teacher": "t.lora"}, "seqkd"),
    ],
)
def test_the_recipe_is_what_the_columns_are_for_unless_it_is_named(read, columns, options, recipe):
    assert read(rows_of(*columns), **options)[0] == recipe


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        (("answer",), {"recipe": "sft"}, "has no response, which --recipe sft needs (it has prompt, answer)"),
        (("response",), {"recipe": "rlvr"}, "has no answer or cases or tests, which --recipe rlvr needs"),
        (("chosen",), {"recipe": "dpo"}, "has no rejected"),
        ((), {}, "has prompt, which no recipe takes"),
    ],
)
def test_data_without_the_needed_columns_are_refused_with_what_they_have(read, columns, options, said):
    with pytest.raises(InputError) as caught:
        read(rows_of(*columns), **options)
    assert said in str(caught.value)
    assert "line 1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "2"}, "has no prompt (it has answer)"),
        ({**PROMPT, "answer": " "}, "its answer is empty"),
        ({"prompt": " ", "answer": "2"}, "its prompt is empty"),
        ({"prompt": {"a": 1}, "answer": "2"}, "its prompt is of type dict, not a text or a list of messages"),
        ({"prompt": [{"role": "system", "content": "Be brief."}], "answer": "2"}, "its prompt begins with a system message"),
        ({"prompt": "\ud800", "answer": "2"}, "not text"),
        ({**PROMPT, "tests": "assert f()"}, "has tests but no entry_point"),
        ({**PROMPT, "cases": [{"args": 3}]}, "cases.0.args"),
    ],
)
def test_a_bad_row_is_named_with_its_line(read, row, said):
    with pytest.raises(InputError, match="line 21") as caught:
        read([*rows_of("answer"), row], recipe="rlvr")
    assert said in str(caught.value)


def test_columns_of_other_names_and_messages_are_taken_and_the_final_answer_of_gsm8k_is_found(read):
    rows = [{"question": [{"role": "user", "content": f"{i} + 1?"}], "solution": f"It is {i + 1}.\n#### {i + 1}"} for i in range(10)]
    recipe, splits = read(rows, columns={"prompt": "question", "answer": "solution"})
    examples = [example for found in splits.values() for example in found]
    assert recipe == "rlvr"
    assert {(e.prompt, e.answer) for e in examples} == {(f"{i} + 1?", str(i + 1)) for i in range(10)}


def test_conversations_and_the_columns_of_trl_are_read_alike(read):
    def turns(*texts):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    def of(row, count=3):
        return [{name: [{**t, "content": t["content"] + str(i)} for t in value] for name, value in row.items()} for i in range(count)]

    _, chats = read(of({"messages": turns("ask", "say", "more")}), recipe="sft", test_share=0)
    _, pairs = read(of({"chosen": turns("ask", "good"), "rejected": turns("ask", "bad")}), test_share=0)
    _, completions = read([{"prompt": f"ask{i}", "completion": turns("say")[:1]} for i in range(3)], recipe="sft")
    first = {name: found["train"][0] for name, found in (("chats", chats), ("pairs", pairs), ("completions", completions))}
    assert first["chats"].prompt.startswith("ask")
    assert first["chats"].response.startswith("say")
    assert (first["pairs"].chosen[:4], first["pairs"].rejected[:3], first["pairs"].prompt[:3]) == ("good", "bad", "ask")
    assert first["completions"].response == "say"


def test_rows_of_a_data_set_that_cannot_be_used_are_left_out_and_counted_and_of_a_file_they_are_refused(config, monkeypatch):
    """The data set stands for one on the Hub, whose rows its user cannot correct."""
    rows = tuple(Row(f"you/set: row {i}", {"prompt": f"{i}?"} | ({"response": "yes"} if i % 5 else {})) for i in range(20))
    found = {"you/set": Rows(rows, None, "you/set@abc", "mit"), "f.jsonl": Rows(rows, None, None, None)}
    monkeypatch.setattr(examples_module, "read_rows", found.__getitem__)
    data = read_data(config("a.lora", "you/set", recipe="sft"))
    assert sum(data.left_out.values()) == 4
    assert all("has no response" in why for why in data.left_out)
    assert (data.datasets, data.licences) == (("you/set@abc",), {"you/set@abc": "mit"})
    with pytest.raises(InputError, match="row 0: has no response"):
        read_data(config("a.lora", "f.jsonl", recipe="sft"))


def test_which_prompts_are_kept_depends_on_texts_and_seed_not_on_their_order():
    examples = [Example(prompt=f"p{i % 25}", answer=str(i)) for i in range(50)]  # every prompt twice
    shares = {"validation": 0.2, "test": 0.1}
    one, other = divided(examples, shares, 0), divided(examples[::-1], shares, 0)
    prompts = {name: {e.prompt for e in found} for name, found in one.items()}
    assert prompts == {name: {e.prompt for e in found} for name, found in other.items()}
    assert [len(prompts[name]) for name in ("train", "validation", "test")] == [18, 5, 2]
    assert not prompts["train"] & prompts["validation"]
    assert sum(map(len, one.values())) == 50  # equal prompts stay together
    assert prompts != {name: {e.prompt for e in found} for name, found in divided(examples, shares, 1).items()}


def test_nothing_is_kept_for_a_test_that_no_merge_could_grade(read, tmp_path):
    _, graded = read(rows_of("answer"))
    _, open_ended = read(rows_of("response"))
    assert (len(graded["test"]), len(open_ended["test"])) == (2, 0)
    write_prompts(tmp_path / "prompts", open_ended)
    assert sorted(path.name for path in (tmp_path / "prompts").iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_a_prompt_that_is_trained_on_and_measured_on_is_refused(read, write, tmp_path):
    rows = rows_of("answer")
    other = write(tmp_path / "validation.jsonl", rows[:3])
    with pytest.raises(InputError, match="of its prompts are in the data for train too"):
        read(rows, validation=other)


def test_data_of_which_nothing_is_left_are_refused(read):
    with pytest.raises(InputError, match="none is left to train on"):
        read(rows_of("answer", count=1))
