"""What the command accepts, refuses and prints: one line, exit code 2, before a model loads."""

import json
import subprocess
import sys

import pytest

from gopd_merge.cli import COMMANDS, main

EXPERTS = ["--experts", "adapters/math.lora", "adapters/code.lora"]


@pytest.fixture
def refused(run_here, code_copy):
    """Run the command on copies of the experts; it must refuse in one line, and leave nothing behind."""

    def check(*arguments, experts=EXPERTS):
        done = run_here(*experts, *arguments)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("gopd-merge: ")
        assert not list(code_copy.parent.parent.glob("merged.lora*"))
        return line

    return check


@pytest.mark.parametrize(
    ("arguments", "named", "remedy"),
    [
        (["--alpha", "-1"], "--alpha -1", "0 or more"),
        (["--alpha", "nan"], "--alpha nan", "must be finite"),
        (["--alpha", "inf"], "--alpha inf", "must be finite"),
        (["--alpha", "two"], "--alpha two", "not a number"),
        (["--alpha", "math=2"], "no value for code", "add code=NUMBER"),
        (["--alpha", "math=2", "code=1", "law=1"], "the domain law", "use one of those"),
        (["--prompts", "law=x.jsonl"], "the domain law", "use one of those"),
        (["--prompts", "x"], "--prompts x", "write FILE.jsonl"),
        (["--alpha", "math=2", "code=1", "math=3"], "domain math is named twice", "name it once"),
        (["--prompts", "math=missing.jsonl"], "missing.jsonl", "name an existing file"),
        (["--steps", "0"], "--steps 0", "greater than or equal to 1"),
        (["--steps", "many"], "--steps", "whole number"),
        (["--batch-size", "3.5"], "--batch-size", "whole number"),
        (["--lora-rank", "1e2"], "--lora-rank", "whole number"),
        (["--learning-rate", "fast"], "--learning-rate", "float"),
        (["--alpha"], "--alpha", "at least 1"),
        (["--steps"], "--steps", "requires an argument"),
        (["--stepz", "3"], "--stepz", "Did you mean --steps"),
        (["--batch-size", "1"], "--batch-size 1", "use 2 or more"),
        (["--quantize", "int3"], "int3", "nf4"),
        (["--learning-rate", "0"], "--learning-rate 0", "greater than 0"),
        (["--config", "missing.yaml"], "missing.yaml", "existing YAML file"),
        (["--output", "no/such/place/merged.lora"], "no/such/place", "choose another --output"),
        (["--base", "./other-base"], "./other-base", "--base FOLDER"),
    ],
)
def test_a_bad_option_is_refused_with_its_name_and_the_remedy(refused, arguments, named, remedy):
    line = refused(*arguments)
    assert named in line
    assert remedy in line


def test_a_word_that_is_no_command_is_refused(refused):
    assert "inspekt is neither an option nor a command" in refused(experts=["inspekt", "adapters/math.lora"])
    assert "name adapters with --experts" in refused(experts=["adapters/math.lora", "adapters/code.lora"])


@pytest.mark.parametrize(
    ("experts", "named", "remedy"),
    [
        ([], "none given", "--experts math.lora code.lora"),
        (["adapters/math.lora", "adapters/law.lora"], "adapters/law.lora: no such folder", "adapter_config.json"),
        (["adapters/math.lora", "adapters/tiny-base"], "has no adapter_config.json", "save_pretrained"),
        (["adapters/math.lora", "other/math.lora"], "domain math is named twice", "math2=PATH"),
        (["adapters/math.lora", "twin=adapters/math.lora"], "hold the same adapter", "once"),
        (["adapters/math.lora", "2nd=adapters/code.lora"], "cannot name a domain", "DOMAIN=PATH"),
    ],
)
def test_bad_experts_are_refused(refused, experts, named, remedy):
    line = refused(experts=["--experts", *experts] if experts else ["--steps", "3"])
    assert named in line
    assert remedy in line


def test_an_expert_of_another_base_is_refused(refused, code_copy, edit_config):
    edit_config(code_copy, base_model_name_or_path="meta-llama/Llama-3.2-1B")
    line = refused()
    assert "adapters/code.lora on meta-llama/Llama-3.2-1B" in line
    assert "experts must share one base" in line


def test_an_expert_that_only_claims_the_base_is_refused_by_its_shapes(refused, code_copy):
    import torch
    from safetensors.torch import load_file, save_file

    path = code_copy / "adapter_model.safetensors"
    tensors = {n: torch.ones(t.shape[0], 96) if "lora_A" in n else t for n, t in load_file(path).items()}
    save_file(tensors, path)
    line = refused()
    assert "96 -> 128" in line
    assert "another base" in line


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "the file is empty"),
        (b'{"prompt": "1 + 1"}\nnot json\n', "line 2 is not JSON"),
        (b'{"question": "1 + 1"}\n', "has no column prompt; its columns are question"),
        (b"[1, 2]\n", "line 1"),
        (b'{"prompt": "  "}\n', "line 1: the prompt is missing or empty"),
        (b"\xff\xfe\n", "line 1 is not UTF-8"),
    ],
)
def test_a_bad_prompt_file_is_refused(refused, tmp_path, content, named):
    (tmp_path / "p.jsonl").write_bytes(content)
    line = refused("--prompts", "math=p.jsonl")
    assert "p.jsonl" in line
    assert named in line


def test_an_existing_output_is_kept_unless_replacing_was_asked_for(run_here, code_copy, tmp_path):
    output = tmp_path / "merged.lora"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    for arguments, remedy in (([], "--overwrite"), (["--overwrite"], "not written by gopd-merge")):
        done = run_here(*EXPERTS, *arguments)
        assert done.returncode == 2
        assert "merged.lora" in done.stderr
        assert remedy in done.stderr
    assert (output / "thesis.tex").read_text() == "years of work"


def test_flags_win_over_the_config_file_and_the_file_over_the_defaults(tmp_path):
    from gopd_merge.config import make_config
    from gopd_merge.options import read_config_file

    file = tmp_path / "merge.yaml"
    file.write_text("experts: {math: m.lora}\nalpha: 1.5\nbatch-size: 12\n")
    config = make_config(read_config_file(file) | {"alpha": ["3"]})
    assert (config.alpha, config.batch_size, config.steps) == (3.0, 12, make_config({"experts": {"math": "m.lora"}}).steps)


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("a/b/math.lora", "math"),
        ("you/math", "math"),
        ("you/math.lora@main", "math"),
        ("you/math@feature/x", "math"),
        ("a/@b/code.lora", "code"),
    ],
)
def test_the_domain_is_what_the_path_or_the_hub_id_stands_for(path, domain):
    from gopd_merge.config import make_config

    assert make_config({"experts": [path]}).experts == {domain: path}


def test_a_saved_config_makes_the_same_config_again(tmp_path):
    from gopd_merge.config import make_config
    from gopd_merge.options import read_config_file

    config = make_config({"experts": ["b=x.lora", "a.lora"], "alpha": ["a=1", "b=2.5"], "output": "out", "seed": 3})
    (tmp_path / "merge.json").write_text(json.dumps({"config": config.model_dump(mode="json"), "seconds": {}}))
    assert make_config(read_config_file(tmp_path / "merge.json")) == config


@pytest.mark.parametrize(("command", "text"), [(name, text) for name, _, text in COMMANDS])
def test_every_command_has_its_help(command, text, capsys):
    assert main([command, "--help"]) == 0
    assert text in " ".join(capsys.readouterr().out.split())


def test_a_refusal_does_not_import_torch(code_copy, tmp_path):
    program = (
        "import sys; from gopd_merge.cli import main\n"
        "code = main(['--experts', 'adapters/math.lora', 'adapters/code.lora', '--base', './none'])\n"
        "sys.exit(code != 2 or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-Ic", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
