"""A file to begin with: it runs as it is, it has every option, and what it says of the defaults is true."""

import re

import pytest
import yaml

from gopd_merge.cli import main
from gopd_merge.config import MergeConfig, make_config
from gopd_merge.options import read_config_file


@pytest.fixture
def here(tmp_path, monkeypatch, code_copy):
    """A folder with copies of the experts in adapters/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_it_writes_is_planned_as_it_is(here, capsys):
    assert main(["init", "adapters/math.lora", "adapters/code.lora"]) == 0
    assert "next: gopd-merge --config merge.yaml" in capsys.readouterr().out
    assert main(["--config", "merge.yaml", "--dry-run", "--no-eval"]) == 0
    assert "code, rank 4" in capsys.readouterr().out


def test_it_is_the_merge_of_these_adapters_with_every_option_at_its_default(here):
    assert main(["init", "adapters/math.lora", "coding=adapters/code.lora", "--output", "m.yaml"]) == 0
    experts = {"math": "adapters/math.lora", "coding": "adapters/code.lora"}
    assert make_config(read_config_file(here / "m.yaml")) == make_config({"experts": experts})


def test_every_option_stands_there_with_its_help_and_its_default(here):
    main(["init", "adapters/math.lora", "adapters/code.lora"])
    text = (here / "merge.yaml").read_text()
    options = yaml.safe_load(re.sub(r"^# (?=[a-z-]+: ?(\S+|\[.*\])?$)", "", text, flags=re.MULTILINE))
    assert {name.replace("-", "_") for name in options} == set(MergeConfig.model_fields)
    everything = make_config({name.replace("-", "_"): value for name, value in options.items()})
    assert everything == make_config({"experts": options["experts"]})
    words = " ".join(text.replace("\n# ", " ").split())
    for field in MergeConfig.model_fields.values():
        assert field.description in words


def test_what_is_there_is_not_replaced(here, capsys):
    (here / "merge.yaml").write_text("mine")
    assert main(["init", "adapters/math.lora"]) == 2
    assert capsys.readouterr().err == "gopd-merge: merge.yaml: exists; choose another --output, or remove it\n"
    assert (here / "merge.yaml").read_text() == "mine"
    assert main(["init", "adapters/math.lora", "--output", "no/merge.yaml"]) == 2
    assert "choose another --output" in capsys.readouterr().err


def test_prompts_that_no_adapter_brings_are_named_and_asked_for(here, capsys):
    (here / "adapters" / "math.lora" / "prompts" / "train.jsonl").unlink()
    assert main(["init", "adapters/math.lora", "adapters/code.lora"]) == 0
    assert "write the prompts first: math.jsonl" in capsys.readouterr().out
    assert make_config(read_config_file(here / "merge.yaml")).prompts == {"math": "math.jsonl"}
    assert main(["--config", "merge.yaml", "--dry-run"]) == 2
    (here / "math.jsonl").write_text('{"prompt": "1 + 1"}\n')
    assert main(["--config", "merge.yaml", "--dry-run", "--no-eval"]) == 0


@pytest.mark.parametrize(("experts", "named"), [([], "none given"), (["adapters/law.lora"], "no such folder")])
def test_adapters_that_cannot_be_merged_are_refused_at_once(here, capsys, experts, named):
    assert main(["init", *experts]) == 2
    assert named in capsys.readouterr().err
    assert not (here / "merge.yaml").exists()
