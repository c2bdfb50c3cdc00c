"""A source of prompts is a file, a data set, an entry of the catalogue, or a word; what is wrong with it is said in one line."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from gopd_merge import MergeConfig
from gopd_merge.errors import InputError
from gopd_merge.prompt_source import parse_source
from gopd_merge.prompts.catalogue import ENTRIES
from gopd_merge.prompts.conversation import LeftOut, asked
from gopd_merge.prompts.files import Row
from gopd_merge.prompts.rows import read_columns
from gopd_merge.prompts.sources import _listed, read_source, training_prompts

TEXTS = ["What is 2 + 3?", "Name a colour.", "Hoe heet je?"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(found):
    return [prompt.prompt for prompt in found.prompts]


@pytest.mark.parametrize(
    "text",
    [
        "a.jsonl",
        "b/a.parquet#question",
        "openai/gsm8k",
        "openai/gsm8k:main/train#question",
        "a/b/train[500:]+test[:9]@main#q",
        "own",
        "synth",
    ],
)
def test_a_source_is_written_again_as_it_was_read(text):
    assert str(parse_source(text)) == text


@pytest.mark.parametrize("text", ["gsm8k", "a/b/c/d", "./folder", "a/b#", "a/b/train[9:3]", "catalogue:", "a b/c"])
def test_a_text_of_no_form_is_refused_in_one_line_with_what_can_be_written(text):
    with pytest.raises(InputError) as error:
        parse_source(text)
    assert len(error.value.lines) == 1
    assert text.partition("#")[0] in str(error.value)
    assert "write" in str(error.value)


def test_the_same_prompts_come_out_of_every_kind_of_file(tmp_path):
    rows = [{"prompt": text} for text in TEXTS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("prompt\n" + "".join(f'"{text}"\n' for text in TEXTS))
    write(tmp_path / "a.jsonl", rows)
    for kind in ("jsonl", "json", "csv", "parquet"):
        assert texts(read_source("math", str(tmp_path / f"a.{kind}"))) == TEXTS


def test_a_column_is_named_after_the_source_and_those_that_are_there_are_named_where_it_is_not(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": text, "answer": "5"} for text in TEXTS])
    assert texts(read_source("math", f"{path}#question")) == TEXTS
    with pytest.raises(InputError, match=r"has no column prompt; its columns are question, answer: .* such as .*a\.jsonl#question"):
        read_source("math", path)
    with pytest.raises(InputError, match="has no column quesiton; its columns are question, answer"):
        read_source("math", f"{path}#quesiton")


def test_of_a_conversation_the_first_user_turn_is_asked_and_its_answer_is_the_response(tmp_path):
    one = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}, {"role": "user", "content": "Why?"}]
    sharegpt = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, {"role": "assistant", "content": "Ho."}]
    for chat in (one, sharegpt, parts):
        assert asked(chat) == ("Hi?", "Ho.")
    path = write(tmp_path / "a.jsonl", [{"messages": one}])
    (prompt,) = read_source("math", path).prompts
    assert (prompt.prompt, prompt.response) == ("Hi?", "Ho.")


@pytest.mark.parametrize(
    ("chat", "why"),
    [
        ([{"role": "system", "content": "Be rude."}, {"role": "user", "content": "Hi?"}], "system"),
        ([{"role": "assistant", "content": "Ho."}], "no user turn"),
        ([{"role": "user", "content": [{"type": "image"}]}], "more than text"),
        ([], "empty"),
        ([{"role": "user", "content": " "}], "empty"),
    ],
)
def test_what_cannot_be_asked_of_a_conversation_is_left_out_with_the_reason(chat, why):
    with pytest.raises(LeftOut, match=why):
        asked(chat)


def test_what_is_left_out_is_counted_and_all_left_out_is_an_error(tmp_path):
    system = {"messages": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "Hi?"}]}
    path = write(tmp_path / "a.jsonl", [system, {"messages": [{"role": "user", "content": "Hi?"}]}, system])
    found = read_source("math", path)
    assert texts(found) == ["Hi?"]
    assert found.origin.dropped == {"begins with a system message": 2}
    assert found.origin.read == 3
    with pytest.raises(InputError, match=r"none of its 1 rows is a prompt \(1 begins with a system message\)"):
        read_source("math", write(tmp_path / "b.jsonl", [system]))


def test_a_bad_line_of_a_file_is_named_by_its_number(tmp_path):
    for bad, why in (({"promt": "x"}, "missing or empty"), ({"prompt": ""}, "missing or empty"), ({"prompt": {"a": 1}}, "of type dict")):
        with pytest.raises(InputError, match=f"line 2: .*{why}"):
            read_source("math", write(tmp_path / "a.jsonl", [{"prompt": "fine"}, bad]))


def test_of_more_rows_than_wanted_the_same_are_drawn_every_time_and_not_the_first(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": f"p{i}"} for i in range(100)])
    first, again = (texts(read_source("math", path, 10)) for _ in range(2))
    assert first == again == sorted(first, key=lambda text: int(text[1:]))
    assert len(first) == 10
    assert first != [f"p{i}" for i in range(10)]


def test_rows_for_others_have_the_columns_that_they_need_or_say_which_there_are(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c", "x": 1}])
    assert read_columns(path, ["prompt", "completion"]) == [{"prompt": "p", "completion": "c"}]
    with pytest.raises(InputError, match="has no column chosen; its columns are prompt, completion, x"):
        read_columns(path, ["prompt", "chosen"])


def test_a_source_without_a_domain_is_for_all_that_have_none_of_their_own():
    config = MergeConfig(experts={"math": "m", "code": "c", "law": "l"}, prompts=["synth", "law=own", "math=a/b:c/d#e"])
    assert [config.prompts_of(domain) for domain in ("code", "law", "math")] == ["synth", "own", "a/b:c/d#e"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["synth", "own"], "several sources for all domains"),
        (["math=nothing"], "--prompts math=nothing: is no source of prompts"),
        (["cod=synth"], "--prompts names the domain cod"),
    ],
)
def test_options_that_name_no_source_are_refused_before_anything_is_read(given, why):
    with pytest.raises(ValueError, match=why):
        MergeConfig(experts={"math": "m", "code": "c"}, prompts=given)


def test_an_entry_that_the_catalogue_lacks_is_refused_with_the_one_that_was_meant():
    with pytest.raises(InputError, match="did you mean catalogue:gsm8k"):
        read_source("math", "catalogue:gms8k")


def test_every_entry_is_pinned_to_a_commit_and_its_templates_fit_rows_as_the_data_set_has_them():
    rows = {
        "gsm8k": {"question": "What is 1,000 + 1?", "answer": "It is <<1000+1=1001>>1,001.\n#### 1,001"},
        "math": {"problem": "What is $1+1$?", "solution": r"$\boxed{2}$", "level": "Level 1", "type": "Algebra"},
        "mbpp": {"text": "Write a function to add.", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"]},
    }
    assert set(rows) == set(ENTRIES)
    for name, entry in ENTRIES.items():
        assert len(entry.where.revision) == 40
        prompt = _listed(Row("here", rows[name]), entry)
        assert prompt.prompt.startswith("W")
        assert prompt.response
    assert _listed(Row("here", rows["gsm8k"]), ENTRIES["gsm8k"]).answer == "1001"
    assert "assert add(1, 2) == 3" in _listed(Row("here", rows["mbpp"]), ENTRIES["mbpp"]).prompt


def test_an_adapter_without_prompts_is_told_of_both_ways_out(tmp_path):
    with pytest.raises(InputError, match=r"name some with --prompts law=FILE\.jsonl, or let the expert write them: --prompts law=synth"):
        training_prompts("law", tmp_path, None)
    with pytest.raises(InputError, match="behind a server"):
        training_prompts("law", None, "synth")
