"""A Hub on loopback with the embedded base and experts, a merge that was made from it, and the command in this process against it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from gopd_merge.cli import main

SHORT = ["--steps", "1", "--batch-size", "4", "--max-new-tokens", "8", "--eval-prompts", "8", "--quiet"]


def point_at(patch, url, cache: Path, token: str | None, offline: bool = False):
    """What HF_ENDPOINT, HF_HOME and HF_TOKEN do in a process that has them from its start."""
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
    }.items():
        patch.setattr(constants, name, value)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("no_proxy", "127.0.0.1")
    patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
    _http.close_session()


@pytest.fixture(scope="session")
def experts(adapters, tmp_path_factory, HubServer):
    """A Hub that never changes: the base, and both experts, which name it by its id."""
    server = HubServer()
    base = server.add("you/base", adapters / "tiny-base")
    for name in ("math", "code"):
        folder = shutil.copytree(adapters / f"{name}.lora", tmp_path_factory.mktemp("experts") / f"{name}.lora")
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "you/base"}))
        server.add(f"you/{name}", folder)
    server.base = base
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def made(experts, cache, tmp_path_factory):
    """A merge of the two, by their Hub ids."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, experts.url, cache, None)
        patch.chdir(folder)
        assert main(["--experts", "you/math", "you/code", *SHORT]) == 0
    _http.close_session()
    return folder / "merged.lora"


@pytest.fixture
def merged(made, tmp_path):
    """A copy of it to damage and to publish, in the folder where the command runs."""
    return shutil.copytree(made, tmp_path / "merged.lora")


@pytest.fixture
def hub(HubServer, experts):
    """A Hub of the test's own that has the same base and experts."""
    server = HubServer()
    for repo, commits in experts.repos.items():
        server.repos[repo], server.branches[repo] = dict(commits), dict(experts.branches[repo])
        server.titles[repo] = list(experts.titles[repo])
    server.base = experts.base
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def publish(hub, merged, cache, tmp_path, monkeypatch, capsys):
    """publish(*arguments, token=…): exit code and what was printed. Pauses between tries are not waited for, but kept in `pauses`."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, token="hf_you", offline=False):
        point_at(monkeypatch, hub.url, cache, token, offline)
        capsys.readouterr()
        code = main(["publish", *map(str, arguments)])
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    run.pauses = pauses
    yield run
    _http.close_session()
