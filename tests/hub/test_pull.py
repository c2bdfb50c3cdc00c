"""Adapters and bases by Hub id, through the wire: the command against a real server on loopback."""

import json
import time

import pytest
from safetensors.torch import load_file, save_file

SHORT = ["--steps", "1", "--batch-size", "4", "--max-new-tokens", "8", "--eval-prompts", "4", "--json"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def hub(HubServer, math_copy, code_copy, edit_config):
    """A Hub that holds the embedded base and both experts, which name it by its id."""
    server = HubServer()
    server.commits = {"you/base": server.add("you/base", math_copy.parent / "tiny-base")}
    for name, folder in (("math", math_copy), ("code", code_copy)):
        edit_config(folder, base_model_name_or_path="you/base")
        server.commits[f"you/{name}"] = server.add(f"you/{name}", folder)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run_online(run_cli, hub, tmp_path):
    """Run the command with that Hub and an empty cache."""

    def run(*arguments, **env):
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return run_cli(*arguments, **environment | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | env)

    return run


def refusal(done):
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("gopd-merge: ")
    return line


def test_a_merge_by_hub_ids_is_pinned_to_commits_and_repeats(run_online, hub, math_copy, tmp_path):
    done = run_online("--experts", "you/math", "you/code", *SHORT)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "merged.lora" / "merge.json").read_text())
    assert {name: e["commit"] for name, e in manifest["inputs"].items()} == {n: hub.commits[f"you/{n}"] for n in ("math", "code")}
    assert manifest["base"]["commit"] == hub.commits["you/base"]
    config = json.loads((tmp_path / "merged.lora" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("you/base", hub.commits["you/base"])
    card = (tmp_path / "merged.lora" / "README.md").read_text()
    assert "base_model: you/base" in card
    for file in ("README.md", "merge.json", "adapter_config.json"):
        assert str(tmp_path / "cache") not in (tmp_path / "merged.lora" / file).read_text()

    tensors = load_file(math_copy / WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, math_copy / WEIGHTS)
    hub.add("you/math", math_copy)  # main has gone on
    before = len(hub.requests)
    again = run_online("--config", "merged.lora/merge.json", "--output", "again.lora", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == before
    third = run_online("--config", "merged.lora/merge.json", "--output", "third.lora", HF_HOME=str(tmp_path / "new-cache"))
    assert third.returncode == 0, third.stderr
    assert len({(tmp_path / f"{name}.lora" / WEIGHTS).read_bytes() for name in ("merged", "again", "third")}) == 1


def test_a_revision_is_the_one_that_is_used(run_online, hub, math_copy):
    old = hub.commits["you/math"]
    tensors = load_file(math_copy / WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, math_copy / WEIGHTS)
    new = hub.add("you/math", math_copy)
    commits = {}
    for name in ("you/math", f"you/math@{old}"):
        (found,) = json.loads(run_online("inspect", name, "--json").stdout)["experts"]
        commits[name] = found["commit"]
    assert commits == {"you/math": new, f"you/math@{old}": old}


def test_inspect_does_not_download_the_base(run_online, hub):
    done = run_online("inspect", "you/math", "you/code")
    assert done.returncode == 0, done.stderr
    assert "mergeable: 2 experts of one base" in done.stdout
    assert not [request for request in hub.requests if "you/base" in request]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("you/nothing", "no such repository on the Hub"),
        ("you/math@0123456789012345678901234567890123456789", "has no revision 0123456789"),
        ("you/math@old", "has no revision old"),
        ("you/gated", "is gated"),
        ("you/base", "has no adapter_config.json"),
        ("you/bare", "the file is missing"),
    ],
)
def test_what_the_hub_does_not_have_is_refused(run_online, hub, math_copy, name, named):
    hub.add("you/gated", math_copy)
    hub.gated.add("you/gated")
    hub.add("you/bare", math_copy, names=["adapter_config.json"])
    line = refusal(run_online("--experts", name, "you/code", "--quiet"))
    assert named in line
    assert name.split("@")[0] in line


def test_a_folder_that_is_missing_is_not_looked_for_on_the_hub(run_online, hub):
    line = refusal(run_online("--experts", "adapters/law.lora", "you/code"))
    assert "adapters/law.lora: no such folder" in line
    assert not [request for request in hub.requests if "law" in request]


def test_without_a_network_the_one_line_says_so(run_online):
    line = refusal(run_online("--experts", "you/math", HF_HUB_OFFLINE="1"))
    assert "not in the Hub's cache, and the Hub cannot be reached" in line
    assert "Hub cannot be reached" in refusal(run_online("--experts", "you/math", HF_ENDPOINT="http://127.0.0.1:9"))


def test_a_download_that_breaks_off_is_taken_up_or_refused_but_never_used(run_online, hub):
    hub.cut[WEIGHTS] = 1
    done = run_online("inspect", "you/math", "--json")
    assert hub.cut[WEIGHTS] == 0
    assert done.returncode == 0, done.stderr  # taken up where it broke off
    hub.cut[WEIGHTS] = 1000
    assert "the download failed" in refusal(run_online("inspect", "you/code", "--json", HF_HUB_DOWNLOAD_TIMEOUT="2"))
    hub.cut.clear()
    assert run_online("inspect", "you/code").returncode == 0  # the command again


def test_a_slow_server_is_waited_for(run_online, hub):
    hub.delay = 1.5
    started = time.monotonic()
    assert run_online("inspect", "you/math").returncode == 0
    assert time.monotonic() - started > 1.5


def test_experts_of_two_revisions_of_a_base_are_refused(run_online, hub, math_copy, edit_config):
    edit_config(math_copy, revision="v2")
    hub.add("you/math", math_copy)
    assert "experts must share one base" in refusal(run_online("--experts", "you/math", "you/code", "--quiet"))


def test_a_plan_by_hub_ids_reads_the_headers_of_the_base_and_not_its_weights(run_online, hub, math_copy, tmp_path):
    weights = hub.repos["you/base"][hub.commits["you/base"]]["model.safetensors"]
    parameters = sum(t.numel() for t in load_file(math_copy.parent / "tiny-base" / "model.safetensors").values())
    done = run_online("plan", "--experts", "you/math", "you/code", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["base"] == {"name": "you/base", "commit": hub.commits["you/base"], "quantization": "nf4", "parameters": parameters}
    assert plan["memory"]["phases"]["load"] == pytest.approx(len(weights), rel=0.01)
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    before = hub.bytes_sent
    assert run_online("plan", "--experts", "you/math", "you/code", "--calibrate", "--batch-size", "2", "--json").returncode == 0
    assert hub.bytes_sent - before >= len(weights)  # the control: measuring needs them


def test_a_plan_refuses_a_base_that_the_experts_do_not_fit_by_its_headers(run_online, hub, math_copy, tmp_path):
    tensors = load_file(math_copy.parent / "tiny-base" / "model.safetensors")
    (tmp_path / "other").mkdir()
    for file in (math_copy.parent / "tiny-base").iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    save_file({n: t[:-8].contiguous() if "up_proj" in n else t for n, t in tensors.items()}, tmp_path / "other" / "model.safetensors")
    hub.add("you/other", tmp_path / "other")
    line = refusal(run_online("plan", "--experts", "you/math", "you/code", "--base", "you/other"))
    assert "trained on another base" in line
    assert "up_proj is 128 -> 384, that of you/other has the shape 376 x 128" in line


def test_a_plan_on_a_repository_without_weights_is_refused(run_online, hub, math_copy):
    hub.add("you/empty", math_copy.parent / "tiny-base", names={"config.json", "tokenizer.json"})
    line = refusal(run_online("plan", "--experts", "you/math", "you/code", "--base", "you/empty"))
    assert "you/empty: its weights cannot be looked at" in line
    assert "is it a model with safetensors weights?" in line
