"""Merges that were made differently are different rows, whatever differs; and each is called what it is."""

import json
import shutil

import pytest

from gopd_merge.casting import load_backbone
from gopd_merge.comparison.contenders import trained
from gopd_merge.comparison.run import as_opd
from gopd_merge.comparison.training import train_on
from gopd_merge.config import make_config
from gopd_merge.errors import InputError
from gopd_merge.plan import read_inputs
from gopd_merge.report.combination import combine
from gopd_merge.report.document import Document, checked_document, read_document
from gopd_merge.report.lines import lines_of
from gopd_merge.report.page import html_page
from gopd_merge.report.progress import Silent
from gopd_merge.report.terminal import label_of

DOMAINS = ("code", "math")
LARGER = {"teacher_base": "models/big", "base": "small"}
NAMED = {  # options of a merge -> what it is called; α = 2 where nothing else is said
    "merged, α = 2": {},
    "merged, α = code 1, math 2": {"alpha": {"math": 2.0, "code": 1.0}},
    "merged, α = code 1, math 3": {"alpha": {"math": 3.0, "code": 1.0}},
    "merged, α = 2, estimator sampled": {"estimator": "sampled"},
    "merged, α = 2, estimator topk, top k 8": {"estimator": "topk", "top_k": 8},
    "merged, α = 2, reference student-start": {"reference": "student-start"},
    "merged, α = 2, reference third.lora": {"reference": "/some/where/third.lora/"},
    "merged, α = 2, reference base, kl reference teacher": {"reference": "base", "kl_reference": "teacher"},
    "merged, α = 2, adaptive token, bound 3": {"adaptive": "token", "bound": 3.0},
    "merged, α = 2, alpha from 1": {"alpha_from": 1.0},
    "merged, α = 2, deterministic 0.99": {"deterministic": 0.99},
    "merged, α = 2, rotate step": {"rotate": "step"},
    "merged, α = 2, rotate all, weights code 0.5": {"rotate": "all", "weights": {"code": 0.5}},
    "merged, α = 2, start ties, balance": {"start": "ties", "balance": True},
    "merged, α = 2, teacher base big": LARGER,
    "merged, α = 2, reference base, teacher base big": LARGER | {"reference": "base"},
    "merged, α = 1": {"alpha": 1.0},
    "merged, α = 1, estimator hidden": {"method": "opd", "alpha": 1.0, "estimator": "hidden"},
    "merged, α = 1, reference teacher": {"reference": "teacher"},
    "merged, α = 1, adaptive run": {"alpha": 1.0, "adaptive": "run"},
    "merged, α = 1, alpha from 2": {"alpha": 1.0, "alpha_from": 2.0},
    "merged, α = 1, kl reference base, teacher base big": LARGER | {"alpha": 1.0, "kl_reference": "base"},
    "merged, α = 1, weights math 0.5": {"alpha": 1.0, "weights": {"math": 0.5}},
    "merged, α = 1, rotate all": {"alpha": 1.0, "rotate": "all"},
    "merged, α = 1, bound 2": {"alpha": 1.0, "bound": 2.0},
    "merged, α = 1, start average": {"alpha": 1.0, "start": "average"},
    "sequence-level distillation": {"method": "seqkd", "alpha": 1.0},
    "sequence-level distillation, start ties": {"method": "seqkd", "alpha": 1.0, "start": "ties"},
    "fine-tuned on the data": {"method": "sft", "alpha": 1.0},
    "reverse KL on the experts' answers, α = 2": {"method": "rkl"},
    "one domain after the other, α = 2": {"method": "alternate"},
    "one domain after the other, α = 1": {"method": "alternate", "alpha": 1.0},
}
OPD = [  # every other of them with α = 1 has another target than the expert itself
    "merged, α = 1",
    "merged, α = 1, estimator hidden",
    "merged, α = 1, reference teacher",
    "merged, α = 1, start average",
]


def config_of(**options):
    return make_config({"experts": {d: f"{d}.lora" for d in DOMAINS}, "alpha": 2.0, **options})


def contender_of(**options):
    return trained(config_of(**options))


def test_a_merge_is_called_by_its_method_and_by_what_differs_from_the_default():
    found = {name: contender_of(**options) for name, options in NAMED.items()}
    assert [label_of(one.method, one.alpha, one.parameters) for one in found.values()] == list(NAMED)
    assert len({one.slug for one in found.values()}) == len(found)  # its files
    assert all("/" not in one.slug and len(one.slug) < 120 for one in found.values())
    assert [name for name, one in found.items() if one.method == "opd"] == OPD
    for name, options in NAMED.items():
        if "method" in options:
            assert found[name].method == options["method"]
    assert contender_of().slug == contender_of().slug != contender_of(seed=1).slug  # the control


# five merges, made on one base


@pytest.fixture(scope="module")
def made(adapters, tmp_path_factory):
    """made(name) -> the folder of a merge of one step."""
    folder = tmp_path_factory.mktemp("made")
    experts = {domain: str(adapters / f"{domain}.lora") for domain in DOMAINS}
    short = {"steps": 2, "batch_size": 4, "max_new_tokens": 6, "quantize": "none", "eval": False, "lora_rank": 4, "alpha": 2.0}
    kinds = {
        "plain": {},
        "sampled": {"estimator": "sampled"},
        "seqkd": {"method": "seqkd", "alpha": 1.0},
        "alternate": {"method": "alternate", "alpha_from": 1.5},
        "opd": {"method": "opd", "alpha": 1.0},
    }
    loaded = []

    def make(name):
        output = folder / f"{name}.lora"
        if not output.exists():
            config = make_config({"experts": experts, **short, **kinds[name], "output": output})
            inputs = read_inputs(config)
            loaded.append(loaded[0] if loaded else load_backbone(config, inputs))
            train_on(loaded[0], config, inputs, Silent())
        return output

    return make


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where they answer: what is there is not asked again."""
    return tmp_path_factory.mktemp("evaluation")


NAMES = ["merged, α = 2", "merged, α = 2, estimator sampled", "sequence-level distillation", "merged, α = 1"]


def test_merges_of_other_kinds_are_rows_of_their_own_in_every_part_of_a_report(compared, made, place):
    merges = [made(name) for name in ("plain", "sampled", "seqkd", "opd")]
    found = compared(*merges, limit=4, rivals=["none"], output=place)
    document = checked_document(found.document, found.folder)
    lines = [line for line in lines_of(document) if line.kind == "trained"]
    assert [line.label for line in lines] == NAMES
    assert [line.label for line in lines if line.headline] == NAMES[:1]  # one alone is what the report is about
    assert [curve.label for curve in document.curves] == NAMES
    assert len({curve.who for curve in document.curves}) == 4
    for sample in document.samples:
        assert len({answer.who for answer in sample.answers}) == len(sample.answers) == 7
    scores = {(row.method, json.dumps(row.parameters)) for row in found.results if row.domain == "math"}
    assert len(scores) == 7
    for text in (found.table, found.markdown, html_page(document)):
        assert all(name in text for name in NAMES)
    against = {(row.rival, row.rival_is) for row in found.comparisons}
    assert ("opd", "α = 1") in against
    assert ("seqkd", "sequence-level distillation") in against
    assert len(list((found.folder / "answers").glob("own.math.4.*"))) == 7


def test_reports_of_merges_that_differ_in_the_estimator_alone_stand_side_by_side(compared, made, place):
    documents = {}
    for name in ("plain", "sampled"):
        found = compared(made(name), limit=4, rivals=["none"], output=place)
        documents[name] = checked_document(found.document, found.folder)
    one = combine(documents)
    labels = [line.label for line in lines_of(one)]
    assert labels[-2:] == NAMES[:2]
    assert len({(row.key, row.who, row.rival_is) for row in one.comparisons}) == len(one.comparisons) == 4  # nobody's were lost
    assert len(one.curves) == 2
    assert len(one.samples[0].answers) == 5


def test_a_document_from_before_parameters_were_everywhere_reads_as_it_did(compared, made, place, tmp_path):
    found = compared(made("sampled"), limit=4, rivals=["none"], output=place)
    data = json.loads(json.dumps(found.document))
    for part in (data["headline"], *data["curves"], *(answer for sample in data["samples"] for answer in sample["answers"])):
        del part["parameters"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    old, new = read_document(tmp_path / "old.json"), checked_document(found.document, found.folder)
    assert isinstance(old, Document)
    assert old == new
    assert [line.label for line in lines_of(old) if line.headline] == ["merged, α = 2, estimator sampled"]


def test_a_merge_of_any_kind_says_how_opd_would_be_trained_in_its_place():
    for options in NAMED.values():
        merge = config_of(**options)
        opd = make_config(merge.model_dump() | as_opd(merge))
        assert opd.copies_experts
        assert trained(opd).method == "opd"
        assert (opd.estimator, opd.start, opd.balance, opd.steps) == (merge.estimator, merge.start, merge.balance, merge.steps)


def test_the_opd_that_another_methods_merge_is_compared_with_is_opd(compared, made):
    name = "alternate"
    found = compared(made(name), limit=4, rivals=["opd"])
    config = json.loads((found.folder / "opd.lora" / "merge.json").read_text())["config"]
    assert (config["method"], config["alpha"], config["alpha_from"], config["steps"]) == ("opd", 1.0, None, 2)
    methods = [(method["method"], method["label"]) for method in found.document["methods"] if method["kind"] == "trained"]
    assert [method for method, _ in methods] == ["opd", name]
    assert methods[0] == ("opd", "merged, α = 1")
    assert ("opd", "α = 1") in {(row.rival, row.rival_is) for row in found.comparisons}


@pytest.fixture
def remote(made, tmp_path):
    """A merge whose math expert was behind a server, as its merge.json says."""
    folder = shutil.copytree(made("sampled"), tmp_path / "remote.lora")
    manifest = json.loads((folder / "merge.json").read_text())
    manifest["config"]["experts"]["math"] = "http://127.0.0.1:9/v1#math"
    manifest["inputs"]["math"] |= {"name": "http://127.0.0.1:9/v1#math", "sha256": None, "rank": None, "targets": []}
    manifest["config"]["prompts"] = {}
    (folder / "merge.json").write_text(json.dumps(manifest))
    return folder


def test_rivals_of_a_merge_with_a_remote_expert_need_that_expert_here(compared, remote, adapters):
    with pytest.raises(InputError, match=r"its math expert is behind a server.*--experts math=PATH, or use gopd-merge eval") as error:
        compared(remote, rivals=["all"])
    assert len(error.value.lines) == 1
    experts = {domain: str(adapters / f"{domain}.lora") for domain in DOMAINS}
    found = compared(remote, rivals=["average,opd"], experts=experts, limit=4)
    methods = [method["method"] for method in found.document["methods"]]
    assert methods == ["base", "expert:code", "expert:math", "average", "opd", "exopd"]
    assert json.loads((found.folder / "opd.lora" / "merge.json").read_text())["config"]["estimator"] == "sampled"


def test_two_merges_that_differ_in_no_option_of_the_method_are_refused(compared, made, tmp_path):
    twin = shutil.copytree(made("plain"), tmp_path / "twin.lora")
    with pytest.raises(InputError, match=r"are both exopd-alpha-2-seed-0; give adapters that differ in method, α or seed") as error:
        compared(made("plain"), twin)
    assert len(error.value.lines) == 1
