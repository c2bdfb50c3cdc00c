"""A merge is published through the wire and pulled again by its commit; what should not be published is refused before anything is sent."""

import json

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "merge.json"
FILES = ["README.md", CONFIG, WEIGHTS, MANIFEST, "metrics.jsonl", "scores.svg"]


def sent(hub):
    """Requests that could have changed something."""
    return [request for request in hub.requests if request.startswith(("POST", "PUT")) and "validate-yaml" not in request]


def refused(done):
    assert done.code == 2, done.err
    (line,) = done.err.splitlines()
    assert line.startswith("gopd-merge: ")
    return line


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_merge_is_published_in_one_commit_of_exactly_the_files_that_were_shown(publish, hub, merged):
    (merged / "notes.txt").write_text("not for others")
    shown = json.loads(publish("merged.lora", "you/merged", "--dry-run", "--json").out)
    assert sent(hub) == []
    assert [file["name"] for file in shown["files"]] == FILES
    done = publish("merged.lora", "you/merged", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["card"] in done.err  # shown before it was sent
    assert result["published"]["commit"] == hub.head("you/merged")
    assert [title for _, _, title in hub.titles["you/merged"]] == ["initial commit", "Merged adapter, by gopd-merge"]
    files = hub.files("you/merged")
    assert sorted(files) == [".gitattributes", *FILES]
    assert files[WEIGHTS] == (merged / WEIGHTS).read_bytes()
    assert result["card"].encode() == files["README.md"]
    assert [(f["name"], f["sha256"]) for f in result["files"]] == [(f["name"], f["sha256"]) for f in shown["files"]]
    assert "you/merged" not in hub.private


def test_what_is_there_already_is_not_published_again(publish, hub):
    assert publish("merged.lora", "you/merged").code == 0
    before = len(sent(hub))
    done = publish("merged.lora", "you/merged", "--quiet")
    assert "holds exactly this already" in done.out
    assert hub.head("you/merged") in done.out
    assert len(sent(hub)) == before


@pytest.mark.slow
def test_a_published_merge_is_pulled_by_its_commit_and_merged_again(run_cli, hub, merged, adapters, tmp_path):
    """Commands in processes of their own, that know the Hub by HF_ENDPOINT alone."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_TOKEN": "hf_you"}
    done = run_cli("publish", "merged.lora", "you/merged", "--private", "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert "hf_you" not in done.stdout + done.stderr
    assert "you/merged" in hub.private
    commit = json.loads(done.stdout)["published"]["commit"]
    prompts = [
        f"{name}={adapters / f'{expert}.lora' / 'prompts' / 'train.jsonl'}" for name, expert in (("merged", "code"), ("math", "math"))
    ]
    arguments = ["--experts", f"you/merged@{commit}", "you/math", "--prompts", *prompts, "--no-eval", "--steps", "1", "--batch-size", "2"]
    arguments += ["--output", "again.lora"]
    line = run_cli(*arguments, **environment).stderr
    assert f"say which to use with --base you/base@{hub.base}" in line  # the merge names a commit of it, the expert does not
    arguments += ["--base", f"you/base@{hub.base}"]
    again = run_cli(*arguments, "--max-new-tokens", "4", "--quiet", **environment)
    assert again.returncode == 0, again.stderr
    manifest = json.loads((tmp_path / "again.lora" / MANIFEST).read_text())
    assert manifest["inputs"]["merged"]["commit"] == commit
    assert manifest["inputs"]["merged"]["sha256"] == json.loads((merged / MANIFEST).read_text())["files"][WEIGHTS]
    assert manifest["base"]["commit"] == hub.base  # found by what the published config says
    assert manifest["inputs"]["merged"]["licence"] == "apache-2.0"
    hidden = run_cli("inspect", "you/merged", **environment | {"HF_TOKEN": "hf_them", "HF_HOME": str(tmp_path / "other")})
    assert "no such repository on the Hub" in hidden.stderr


def test_a_repository_that_holds_another_adapter_is_replaced_only_when_told(publish, hub, math_copy):
    hub.add("you/merged", math_copy, names=["README.md", CONFIG, WEIGHTS])
    before = hub.head("you/merged")
    line = refused(publish("merged.lora", "you/merged"))
    assert "holds another README.md, adapter_config.json, adapter_model.safetensors already" in line
    assert "--overwrite" in line
    assert "--create-pr" in line
    assert hub.head("you/merged") == before
    done = publish("merged.lora", "you/merged", "--create-pr", token="hf_them")
    assert done.code == 0, done.err
    assert f"{hub.url}/you/merged/discussions/1" in done.out
    assert hub.head("you/merged") == before
    assert sorted(hub.files("you/merged", "refs/pr/1")) == FILES
    assert publish("merged.lora", "you/merged", "--overwrite").code == 0
    assert sorted(hub.files("you/merged")) == FILES
    assert before in hub.repos["you/merged"]  # the other one is a commit away


def test_a_branch_is_committed_to_where_it_exists(publish, hub, math_copy):
    main = hub.add("you/merged", math_copy, names=["README.md"])
    assert "has no branch of that name" in refused(publish("merged.lora", "you/merged", "--revision", "trial"))
    hub.commit("you/merged", {}, branch="trial")
    hub.files("you/merged", "trial")["a"] = b"a"  # an empty tree has no listing
    assert publish("merged.lora", "you/merged", "--revision", "trial").code == 0
    assert sorted(hub.files("you/merged", "trial")) == sorted([*FILES, "a"])
    assert hub.head("you/merged") == main
    for option in (["--revision", "trial"], ["--create-pr"]):
        assert "means nothing" in refused(publish("merged.lora", "you/new", *option))


def test_a_public_repository_is_not_taken_for_a_private_one(publish, hub, math_copy):
    hub.add("you/merged", math_copy, names=["README.md"])
    assert "exists and is public" in refused(publish("merged.lora", "you/merged", "--private", "--overwrite"))


@pytest.mark.parametrize("damage", ["weights", "config", "nan", "truncated", "pickle", "unfinished", "old", "missing", "json"])
def test_an_adapter_that_is_not_what_the_merge_wrote_is_refused_before_anything_is_sent(publish, hub, merged, damage):
    tensors = load_file(merged / WEIGHTS)
    first = sorted(tensors)[0]
    if damage == "weights":
        save_file(tensors | {first: tensors[first] * 1.01}, merged / WEIGHTS)
    elif damage == "config":
        edit(merged / CONFIG, lora_alpha=99)
    elif damage == "nan":
        save_file(tensors | {first: tensors[first] * float("nan")}, merged / WEIGHTS)
    elif damage == "truncated":
        (merged / WEIGHTS).write_bytes((merged / WEIGHTS).read_bytes()[:-1])
    elif damage == "pickle":
        (merged / WEIGHTS).rename(merged / "adapter_model.bin")
    elif damage == "unfinished":
        (merged / MANIFEST).unlink()
    elif damage == "old":
        edit(merged / MANIFEST, files={CONFIG: "0"})
    elif damage == "missing":
        merged.rename(merged.with_name("elsewhere"))
    elif damage == "json":
        (merged / MANIFEST).write_text("{")
    said = {
        "weights": "has changed since the merge",
        "config": "has changed since the merge",
        "nan": "holds NaN",
        "truncated": "not a readable safetensors file",
        "pickle": "only safetensors is read",
        "unfinished": "gopd-merge resume merged.lora",
        "old": f"there is no hash of {WEIGHTS}",
        "missing": "no such folder",
        "json": "not a JSON document",
    }
    assert said[damage] in refused(publish("merged.lora", "you/merged"))
    assert hub.requests == []


def test_an_adapter_that_does_not_fit_the_base_is_refused(publish, hub, merged, adapters, tmp_path):
    """A base of that name and commit with one layer of another width."""
    weights = adapters / "tiny-base" / "model.safetensors"
    tensors = {n: t[:-8].contiguous() if "up_proj" in n else t for n, t in load_file(weights).items()}
    save_file(tensors, tmp_path / "other.safetensors")
    other = hub.commit("you/other", hub.files("you/base") | {"model.safetensors": (tmp_path / "other.safetensors").read_bytes()})
    manifest = json.loads((merged / MANIFEST).read_text())
    edit(merged / MANIFEST, base=manifest["base"] | {"name": "you/other", "commit": other})
    assert "was trained on another base" in refused(publish("merged.lora", "you/merged"))
    assert sent(hub) == []


@pytest.mark.parametrize("name", ["merged", "you/merged@main", "you/mer ged", "you/merged.git", "../merged", "you/a--b"])
def test_a_name_that_is_none_of_a_repository_is_refused(publish, hub, name):
    assert name in refused(publish("merged.lora", name))
    assert hub.requests == []


def test_results_of_another_adapter_are_left_out_and_said_to_be(publish, merged):
    path = merged / "evaluation" / "results.json"
    path.write_text(path.read_text().replace(json.loads((merged / MANIFEST).read_text())["files"][WEIGHTS], "0" * 64))
    shown = json.loads(publish("merged.lora", "you/merged", "--dry-run", "--json").out)
    assert "scores.svg" not in [file["name"] for file in shown["files"]]
    assert any("is about another adapter" in note for note in shown["notes"])
    assert ModelCard(shown["card"]).data.eval_results is None
    assert "It was not measured." in shown["card"]
