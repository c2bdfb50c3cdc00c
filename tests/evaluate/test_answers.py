"""What was answered is on disk, whole batches of it, and never mixed with answers to something else."""

import json

import pytest

from gopd_merge.errors import InputError
from gopd_merge.evaluate.answers import Answer, AnswerFile

HEADER = {"suite": "s", "questions": 5, "samples": 1, "stop": ("\n",)}


def batch(*ids, text="t"):
    return [Answer(id, 0, text, 1.0, 3, False, 0.1) for id in ids]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "answers" / "a.jsonl"
    file = AnswerFile(path, HEADER, batch_size=2)
    file.append(batch("a", "b"))
    file.append(batch("c", "d"))
    return path


def test_what_was_appended_is_read_back(path):
    assert [answer.id for answer in AnswerFile(path, HEADER, 2).answers] == ["a", "b", "c", "d"]
    AnswerFile(path, HEADER, 2).append(batch("e"))
    assert len(AnswerFile(path, HEADER, 2).answers) == 5  # the last batch is short, and whole


@pytest.mark.parametrize("lost", range(1, 90, 7))
def test_a_batch_that_was_cut_off_at_any_byte_is_asked_again_and_the_file_is_sound_after_it(path, lost):
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    file = AnswerFile(path, HEADER, 2)
    assert [answer.id for answer in file.answers] == ["a", "b"]
    file.append(batch("c", "d"))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("text", ["", "\u2028 line \x85 ends \r\n", "\ud800 half a pair", "x" * 100_000, '"}{', "\x00"])
def test_any_text_survives(path, text):
    AnswerFile(path, HEADER, 2).append(batch("e", text=text))
    assert AnswerFile(path, HEADER, 2).answers[-1].text == text


@pytest.mark.parametrize("change", [{"questions": 6}, {"stop": ()}, {"more": None}])
def test_answers_to_something_else_are_refused_by_what_differs(path, change):
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"answers a run with {next(iter(change))} .* this one has .*--overwrite"):
        AnswerFile(path, {**HEADER, **change} if "more" not in change else {**HEADER, "more": 1}, 2)
    with pytest.raises(InputError, match="batch_size 2, this one has 3"):
        AnswerFile(path, HEADER, 3)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"\n", b"\xff\n", b"[1]\n", b"not json\n", json.dumps(HEADER).encode() + b'\n{"id": 1}\n'])
def test_what_is_no_file_of_answers_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl: not a file of answers") as refused:
        AnswerFile(path, HEADER, 2)
    assert "--overwrite" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b'{"suite": "s", "ques'])
def test_a_file_that_was_cut_off_in_its_first_line_begins_anew(path, content):
    path.write_bytes(content)
    AnswerFile(path, HEADER, 2).append(batch("a", "b"))
    assert [answer.id for answer in AnswerFile(path, HEADER, 2).answers] == ["a", "b"]
