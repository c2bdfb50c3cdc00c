"""The comparison document: what is refused, in which words, and what may be combined."""

import json

import pytest

from gopd_merge.errors import InputError
from gopd_merge.report.combination import build_report, combine
from gopd_merge.report.document import json_document, read_document
from gopd_merge.report.lines import lines_of


def message(error) -> str:
    (line,) = error.value.lines
    return line


def test_a_document_comes_back_from_json_as_it_was(document, written):
    assert read_document(written(json.loads(json_document(document)))) == document
    assert len(document.results) == 26


def test_what_the_models_do_not_name_is_kept(make_document, written):
    data = make_document()
    data["results"][0]["spread"] = 0.125
    again = json.loads(json_document(read_document(written(data))))
    assert again["results"][0]["spread"] == 0.125


def test_the_folder_of_a_merge_is_read_at_its_place(make_document, tmp_path):
    place = tmp_path / "merged.lora" / "evaluation" / "results.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(make_document()))
    assert read_document(tmp_path / "merged.lora") == read_document(place)


@pytest.mark.parametrize(
    ("change", "found", "remedy"),
    [
        (lambda d: d.update(kind="inspection"), "its kind is 'inspection'", "name the results.json"),
        (lambda d: d.pop("kind"), "its kind is None", "name the results.json"),
        (lambda d: d.update(schema=2), "schema 2, this program reads up to 1", "update gopd-merge"),
        (lambda d: d["results"][3].pop("score"), "results.3.score: Field required", "write it again"),
        (lambda d: d["results"][0].update(low=float("nan")), "results.0.low: Input should be a finite number", "write it again"),
        (lambda d: d.update(results=[]), "results: Tuple should have at least 1 item", "write it again"),
        (lambda d: [row.pop("n") for row in d["comparisons"]], "comparisons.0.n: Field required (and 9 more)", "write it again"),
    ],
)
def test_a_document_with_a_fault_is_refused_in_one_line(make_document, written, change, found, remedy):
    data = make_document()
    read_document(written(data))  # it is the change that is refused
    change(data)
    path = written(data)
    with pytest.raises(InputError) as error:
        read_document(path)
    assert str(path) in message(error)
    assert found in message(error)
    assert remedy in message(error)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "not a JSON document"),
        (b"\xff\xfe", "not a JSON document"),
        (b"[" * 100_000, "not a JSON document"),
        (b"[]", "its kind is 'list'"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(tmp_path, content, found):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_document(path)
    assert found in message(error)


def test_a_missing_file_is_named_with_what_makes_one(tmp_path):
    with pytest.raises(InputError) as error:
        read_document(tmp_path / "none.json")
    assert "none.json: No such file or directory; measure the merge first with gopd-merge compare" in message(error)


def test_half_a_surrogate_pair_becomes_a_replacement_character(make_document, tmp_path):
    data = make_document()
    data["output"] = "half"
    text = json.dumps(data).replace('"half"', '"\\ud800 \\ud83d\\ude00"')
    path = tmp_path / "results.json"
    path.write_text(text)
    assert read_document(path).output == "\N{REPLACEMENT CHARACTER} 😀"


def test_runs_at_several_alphas_become_one_table_in_which_the_first_is_the_headline(make_document, written):
    paths = [written(make_document(alpha=a, alphas=(a,)), f"{a}.json") for a in (2.0, 1.0, 1.5)]
    document = build_report(paths)
    assert document.headline.alpha == 2.0
    lines = lines_of(document)
    assert [line.alpha for line in lines if line.alpha] == [2.0, 1.0, 1.5]
    assert len(lines) == 13  # base, experts and rivals, in all three files, appear once
    assert {c.alpha for c in document.comparisons} == {1.0, 1.5, 2.0}
    assert [line.label for line in lines if line.headline] == ["merged, α = 2"]


def test_one_measurement_with_two_results_is_refused(make_document, written):
    data = make_document()
    same = {"a": read_document(written(data)), "b": read_document(written(data))}
    assert combine(same).results == same["a"].results  # equal rows collapse
    data["results"][0]["score"] += 0.001
    with pytest.raises(InputError) as error:
        combine(same | {"b": read_document(written(data))})
    assert "a scores base on embedded/math 0." in message(error)
    assert message(error).endswith("both for seed 0; leave one of the files out")


def test_other_seeds_of_a_method_stand_in_lines_of_their_own(make_document, written):
    documents = {}
    for seed in (0, 1):
        data = make_document()
        data["results"] = [row | {"seed": seed, "seeds": [seed], "seed_sd": None} for row in data["results"] if row["method"] == "exopd"]
        documents[str(seed)] = read_document(written(data))
    labels = [line.label for line in lines_of(combine(documents))]
    assert labels == ["merged, α = 1.5, seed 0", "merged, α = 1.5, seed 1", "merged, α = 2, seed 0", "merged, α = 2, seed 1"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda d: d["suites"][0].update(version="77cd" * 16),
            "a.json holds embedded/math version 12ab12ab12ab…, b.json version 77cd77cd77cd…",
        ),
        (lambda d: d["suites"][1].update(k=1), "a.json holds embedded/code k 4, b.json k 1"),
        (lambda d: d["suites"][1].update(temperature=0.0), "a.json holds embedded/code temperature 1.0, b.json temperature 0.0"),
        (lambda d: d["inputs"]["math"].update(sha256="f" * 64), "a.json has the math expert ab12ab12ab12…, b.json ffffffffffff…"),
        (lambda d: d["base"].update(quantization="none"), "a.json has the base's quantization nf4, b.json none"),
    ],
)
def test_what_was_measured_otherwise_is_not_put_side_by_side(make_document, written, change, found):
    data = make_document()
    first = read_document(written(data))
    change(data)
    with pytest.raises(InputError) as error:
        combine({"a.json": first, "b.json": read_document(written(data))})
    assert message(error).startswith(found)
    assert "cannot be compared" in message(error)


def test_the_first_files_answers_win_and_others_are_added(make_document, written):
    one, two = make_document(alpha=1.0, alphas=(1.0,)), make_document(alpha=2.0, alphas=(2.0,))
    two["samples"][0]["answers"][0]["text"] = "another answer of the base"
    document = combine({"a": read_document(written(one)), "b": read_document(written(two))})
    answers = document.samples[0].answers
    assert [a.text for a in answers if a.method == "base"] == [one["samples"][0]["answers"][0]["text"]]
    assert {a.alpha for a in answers} == {None, 1.0, 2.0}
