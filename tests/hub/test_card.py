"""The card says what the manifest and the results say, its header holds by the Hub's own rules, and no text of an input can break it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from gopd_merge.errors import InputError
from gopd_merge.experts.licence import HEADER, licence_of
from gopd_merge.hub.card import Place, card_text
from gopd_merge.hub.licence import covers, settle
from gopd_merge.hub.picture import scores_svg
from gopd_merge.report.document import read_document
from gopd_merge.report.tables import score_table

MEASURED = Path(__file__).parents[2] / "eval" / "results" / "embedded_seeds.json"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def manifest(made):
    return json.loads((made / "merge.json").read_text())


@pytest.fixture(scope="module")
def document():
    return read_document(MEASURED)


def test_the_header_has_one_base_the_licence_and_the_scores_with_their_intervals(manifest, document, hub):
    text = card_text(manifest, document, Place("merged", "you/merged", "apache-2.0"))
    card = ModelCard(text)
    assert (card.data.base_model, card.data.base_model_relation) == ("you/base", "adapter")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("peft", "text-generation", "apache-2.0")
    assert card.data.tags == ["gopd-merge", "on-policy-distillation", "lora", "merge"]
    rows = {r.domain: r for r in document.results if r.who == document.headline.who}
    assert len(card.data.eval_results) == len(rows) == 2
    for result in card.data.eval_results:
        row = rows[result.dataset_config]
        assert result.metric_value == pytest.approx(100 * row.score, abs=0.001)
        assert f"interval {100 * row.low:.1f}"[:-1] in result.metric_name
        assert result.metric_args["n"] == row.n


def test_the_hub_takes_the_header_and_would_not_take_a_wrong_one(publish, hub, merged):
    assert publish("merged.lora", "you/merged", "--quiet").code == 0
    assert "POST /api/validate-yaml" in hub.requests
    before = hub.head("you/merged")
    done = publish("merged.lora", "you/merged", "--license", "my-own", "--overwrite", "--quiet")
    assert done.code == 2
    assert '"license" must be one of' in done.err
    assert "give another --license" in done.err
    assert hub.head("you/merged") == before


def test_the_body_has_every_part_with_the_numbers_of_the_results(manifest, document):
    text = card_text(manifest, document, Place("merged", "you/merged", "apache-2.0", picture="scores.svg"))
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [f"## {name}" for name in ("Use it", "Results", "Inputs", "Recipe", "Limits", "Licence", "Citation")]
    for row in score_table(document).rows:
        assert all(cell.text in text for cell in row.cells[1:])
    assert "![Scores of all methods with their 95 % intervals](scores.svg)" in text
    for expert in manifest["inputs"].values():
        assert f"| {expert['commit']} | {expert['sha256']} |" in text
    assert "arXiv:2602.12125" in text
    assert "1 step(s) of 4 prompts, seed 0" in text


def test_without_results_the_card_says_that_nothing_was_measured(manifest):
    text = card_text(manifest, None, Place("merged.lora"))
    assert "It was not measured." in text
    assert ModelCard(text).data.eval_results is None
    assert "Not settled" in text


def test_names_out_of_inputs_cannot_become_markup_or_header(manifest):
    evil = "x`](http://evil) <script>alert(1)</script> | y\n---\nlicense: mit"
    manifest["inputs"]["math"] |= {"name": evil, "commit": None, "licence": evil}
    manifest["environment"]["device"] = evil
    text = card_text(manifest, None, Place("merged", "you/merged", "apache-2.0"))
    assert "<script>" not in text
    assert "](http://evil)" not in text.replace("\\]", "")
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "apache-2.0"
    assert "\nlicense: mit" not in text


@pytest.mark.parametrize("base", ["/home/somebody/models/tiny-base", "models/tiny-base"])
def test_a_base_on_disk_is_called_by_its_last_name_and_is_no_base_model_of_the_hub(manifest, base):
    manifest["base"] |= {"name": base, "commit": None}
    text = card_text(manifest, None, Place("merged.lora"))
    assert base not in text
    assert '"tiny-base"' in text
    assert ModelCard(text).data.base_model is None


def test_a_base_without_a_chat_template_is_asked_in_plain_text(manifest):
    text = card_text(manifest, None, Place("merged", "you/merged", chats=False))
    assert "apply_chat_template" not in text
    assert "llm.generate(" in text
    assert "apply_chat_template" in card_text(manifest, None, Place("merged", "you/merged"))  # the control


def test_every_score_is_in_the_picture_at_its_place(document):
    """The place of a dot follows from its label and the axis' ticks, which are read off the picture."""
    root = ElementTree.fromstring(scores_svg(document))
    panels = root.findall(f"{SVG}g")
    assert len(panels) == len(document.suites)
    for panel, suite in zip(panels, document.suites, strict=True):
        texts = panel.findall(f"{SVG}text")
        ticks = [
            (float(t.text), float(t.get("x"))) for t in texts if t.get("text-anchor") == "middle" and t.text.replace(".", "").isdigit()
        ]
        (v0, x0), (v1, x1) = ticks[0], ticks[-1]
        found = sorted(v0 + (float(dot.get("cx")) - x0) * (v1 - v0) / (x1 - x0) for dot in panel.findall(f"{SVG}circle"))
        scores = sorted(100 * r.score for r in document.results if r.key == suite.key)
        assert found == pytest.approx(scores, abs=0.1)
        assert all(v0 <= value <= v1 for value in found)
        assert sum(t.get("font-weight") == "bold" and t.get("text-anchor") == "end" for t in texts) == 1


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["apache-2.0", "apache-2.0", "apache-2.0"], "apache-2.0"),
        (["mit", "apache-2.0", "cc0-1.0"], "apache-2.0"),
        (["apache-2.0", "cc-by-nc-4.0", "mit"], "cc-by-nc-4.0"),
        (["llama3.2", "apache-2.0", "mit"], "llama3.2"),
        (["cc-by-4.0", "cc-by-sa-4.0", "mit"], "cc-by-sa-4.0"),
        (["gpl-3.0", "apache-2.0", "agpl-3.0"], "agpl-3.0"),
        (["gpl-2.0", "apache-2.0", "mit"], None),
        (["llama3.2", "gemma", "mit"], None),
        (["cc-by-sa-4.0", "cc-by-nc-4.0", "mit"], None),
        (["mit", None, "mit"], None),
    ],
)
def test_the_licence_is_the_strictest_of_the_inputs_or_asked_for(licences, expected):
    inputs = dict(zip(("the base", "the math expert", "the code expert"), licences, strict=True))
    if expected:
        assert settle(inputs, None) == expected
    else:
        with pytest.raises(InputError, match="give --license"):
            settle(inputs, None)
    assert settle(inputs, "agpl-3.0" if "gpl-3.0" in licences else "other") in ("agpl-3.0", "other")


def test_a_licence_looser_than_an_input_s_is_refused():
    with pytest.raises(InputError, match=r"--license mit: the base is under cc-by-nc-4.0, which is stricter"):
        settle({"the base": "cc-by-nc-4.0", "the math expert": None}, "mit")
    assert not covers("mit", "apache-2.0")
    assert covers("apache-2.0", "mit")


def test_the_licences_of_a_merge_are_asked_for_when_its_inputs_do_not_settle_one(publish, merged, hub):
    manifest = json.loads((merged / "merge.json").read_text())
    manifest["inputs"]["math"]["licence"] = None
    (merged / "merge.json").write_text(json.dumps(manifest))
    done = publish("merged.lora", "you/merged")
    assert done.code == 2
    assert "the licence of the math expert is not known" in done.err
    shown = json.loads(publish("merged.lora", "you/merged", "--license", "apache-2.0", "--dry-run", "--json").out)
    assert shown["licence"] == "apache-2.0"
    assert "| not known |" in shown["card"]


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense:\n- MIT\n---\n", "mit"),
        ("---\nlicense:\n- mit\n- gpl-3.0\n---\n", None),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: 3\n---\n", None),
        ("---\nlicense: [[[\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("license: mit", None),
        ("---\nlicense: " + "x" * 2_000_000 + "\n---\n", None),
    ],
)
def test_the_licence_of_an_input_is_what_its_card_s_header_says(tmp_path, card, expected):
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == expected


def test_a_card_s_header_is_what_the_hub_s_library_takes_for_it():
    assert HEADER.pattern == REGEX_YAML_BLOCK.pattern
