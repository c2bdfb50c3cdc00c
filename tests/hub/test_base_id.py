"""A merge beside a base on disk names a Hub id when it is published, and that is compared with the base as far as it can be."""

import json
import shutil

import pytest

from gopd_merge.hub.public import public_manifest

MANIFEST, CONFIG = "merge.json", "adapter_config.json"


@pytest.fixture
def local(merged, adapters, tmp_path):
    """The merge as one whose experts and base are folders on this machine."""
    shutil.copytree(adapters / "tiny-base", tmp_path / "somewhere" / "tiny-base")
    base = str(tmp_path / "somewhere" / "tiny-base")
    text = (merged / MANIFEST).read_text()
    manifest = json.loads(text)
    manifest["base"] |= {"name": base, "commit": None}
    manifest["config"] |= {"base": base, "output": str(merged), "prompts": {"math": f"{tmp_path}/questions/math.jsonl"}}
    for domain in ("math", "code"):
        path = str(tmp_path / "secret place" / f"{domain}.lora")
        manifest["inputs"][domain] |= {"name": path, "commit": None, "warnings": [f"{path} was trained with another chat template"]}
        manifest["config"]["experts"][domain] = path
    manifest["output"] = str(merged)
    (merged / MANIFEST).write_text(json.dumps(manifest))
    return merged


def refused(done):
    assert done.code == 2, done.err
    return done.err.splitlines()[-1]


def test_a_base_on_disk_is_refused_with_the_way_out(publish, hub, local):
    line = refused(publish("merged.lora", "you/merged"))
    assert "its base is a folder on this machine (tiny-base)" in line
    assert "--base-id owner/name@commit" in line
    assert hub.requests == []


def test_a_base_whose_files_are_those_on_disk_is_taken_and_pinned(publish, hub, local):
    shown = json.loads(publish("merged.lora", "you/merged", "--base-id", "you/base", "--dry-run", "--json").out)
    assert shown["base"] == {"name": "you/base", "commit": hub.base}
    assert any("whose model.safetensors, tokenizer.json are those of the local base" in note for note in shown["notes"])
    assert "as its publisher states" not in shown["card"]


def test_a_base_that_is_gone_from_the_disk_is_stated_and_the_card_says_so(publish, hub, local, tmp_path):
    shutil.rmtree(tmp_path / "somewhere")
    shown = json.loads(publish("merged.lora", "you/merged", "--base-id", f"you/base@{hub.base}", "--dry-run", "--json").out)
    assert "as its publisher states" in shown["card"]
    assert any("the card says that you state it" in note for note in shown["notes"])


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_another_base_than_that_on_disk_is_refused(publish, hub, local, tmp_path, file):
    path = tmp_path / "somewhere" / "tiny-base" / file
    path.write_bytes(path.read_bytes()[:-2] + b"}\n" if file.endswith(".json") else path.read_bytes()[:-1] + b"\x01")
    line = refused(publish("merged.lora", "you/merged", "--base-id", f"you/base@{hub.base}"))
    assert f"its {file} is not that of" in line


@pytest.mark.parametrize(
    ("base_id", "said"),
    [
        ("somewhere/tiny-base", "is a folder on this machine"),
        ("nonsense", "not a Hub id"),
        ("you/nothing", "no such repository on the Hub"),
        ("you/base@" + "0" * 40, "has no revision"),
    ],
)
def test_a_base_that_is_none_of_the_hub_is_refused(publish, local, base_id, said):
    assert said in refused(publish("merged.lora", "you/merged", "--base-id", base_id))


def test_a_base_from_the_hub_is_not_renamed(publish, hub, merged):
    assert "leave --base-id out" in refused(publish("merged.lora", "you/merged", "--base-id", "you/math"))
    assert publish("merged.lora", "you/merged", "--base-id", f"you/base@{hub.base}", "--dry-run").code == 0


def test_no_place_on_this_machine_and_no_token_is_in_what_is_published(publish, hub, local, tmp_path):
    done = publish("merged.lora", "you/merged", "--base-id", "you/base")
    assert done.code == 0, done.err
    files = hub.files("you/merged")
    everything = b"".join(files.values())
    for secret in (str(tmp_path), "secret place", "hf_you", "somewhere/"):
        assert secret.encode() not in everything
        assert secret in (local / MANIFEST).read_text() or secret == "hf_you"  # the control
    assert str(tmp_path) not in done.out + done.err
    manifest = json.loads(files[MANIFEST])
    assert manifest["inputs"]["math"]["name"] == "math.lora"
    assert manifest["inputs"]["math"]["warnings"] == ["math.lora was trained with another chat template"]
    assert manifest["config"]["prompts"] == {"math": "math.jsonl"}
    assert manifest["config"]["base"] == f"you/base@{hub.base}"
    config = json.loads(files[CONFIG])
    assert (config["base_model_name_or_path"], config["revision"]) == ("you/base", hub.base)


def test_an_expert_behind_a_server_is_called_by_the_name_that_it_has_there(made):
    manifest = json.loads((made / MANIFEST).read_text())
    where = "http://gpu-3.lan:8000/v1"
    manifest["inputs"]["math"] |= {"name": f"{where}#maths", "commit": None}
    manifest["config"] |= {"experts": {"math": f"{where}#maths", "code": "you/code"}, "rollout": where}
    manifest["settings"] |= {"expert math": f"{where}#maths"}
    public = public_manifest(manifest, ("you/base", "0" * 40))
    assert "gpu-3" not in json.dumps(public)
    assert public["config"]["experts"] == {"math": "maths", "code": "you/code"}
    assert (public["inputs"]["math"]["name"], public["config"]["rollout"], public["settings"]["expert math"]) == (
        "maths",
        "a server",
        "maths",
    )


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        ("environment", "hf_" + "a" * 30, "looks like a token"),
        ("environment", "http://me:password@host/v1", "looks like a token or a password"),
        ("environment", "{cwd}/notes", "names the folder"),
        ("environment", "run on {host}", "names this machine"),
    ],
)
def test_a_secret_in_a_place_that_nobody_thought_of_is_noticed(publish, hub, merged, tmp_path, monkeypatch, place, text, said):
    monkeypatch.setattr("socket.gethostname", lambda: "maple-7")
    manifest = json.loads((merged / MANIFEST).read_text())
    manifest[place]["device"] = text.format(cwd=tmp_path, host="maple-7")
    (merged / MANIFEST).write_text(json.dumps(manifest))
    assert said in refused(publish("merged.lora", "you/merged"))
    assert [request for request in hub.requests if request.startswith(("POST", "PUT"))] == []
