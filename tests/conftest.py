"""Everything runs on the embedded base and experts, offline, from the installed package."""

# Libraries read these when they are imported.
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from gopd_merge import MergeConfig, merge
from gopd_merge import server as server_module
from gopd_merge.casting import load_backbone
from gopd_merge.cli import main
from gopd_merge.comparison.training import renew_student
from gopd_merge.errors import Interrupted
from gopd_merge.experts.base import Base, load_base
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = ROOT / "adapters"


@pytest.fixture(scope="session")
def adapters() -> Path:
    """The folder of the embedded default: tiny-base, math.lora, code.lora."""
    return ADAPTERS


@pytest.fixture
def math_copy(tmp_path) -> Path:
    """A copy of the math expert to damage. Its base is found beside it."""
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "tiny-base").symlink_to(ADAPTERS / "tiny-base")
    return shutil.copytree(ADAPTERS / "math.lora", tmp_path / "adapters" / "math.lora")


@pytest.fixture
def code_copy(tmp_path, math_copy) -> Path:
    return shutil.copytree(ADAPTERS / "code.lora", tmp_path / "adapters" / "code.lora")


@pytest.fixture
def edit_config():
    """Change keys of an adapter's config: edit_config(folder, bias="all")."""

    def edit(folder: Path, **changes: object) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.fixture(scope="session")
def HubServer():
    """The class of a Hub on loopback."""
    spec = importlib.util.spec_from_file_location("hub_server", ROOT / "tests" / "hub_server" / "__init__.py")
    module = sys.modules["hub_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HubServer


@pytest.fixture
def run_cli(tmp_path):
    """Run the installed command in a folder of its own; returns the finished process."""
    command = Path(sys.executable).with_name("gopd-merge")

    def run(*args: object, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [command, *map(str, args)],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"} | env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """Run the command in this process, in a folder of its own: its exit code and what it printed. Much quicker than `run_cli`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run


def delta_weights(model, name):
    return {
        module_name.removeprefix("base_model.model."): module.get_delta_weight(name).detach()
        for module_name, module in model.named_modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    }


@pytest.fixture(scope="session")
def peft_delta():
    """peft_delta(model, adapter): ΔW of every adapted module by PEFT."""
    return delta_weights


@pytest.fixture(scope="session")
def load_model(adapters):
    """load_model(quantize): the embedded base alone, and its tokenizer."""
    location = str(adapters / "tiny-base")
    return lambda quantize="none": load_base(Base(location, location), quantize, "cpu")


@pytest.fixture
def make_expert(adapters, load_model, tmp_path):
    """make_expert(name, **config): a random adapter on the embedded base, saved by PEFT; its path and PEFT's own ΔW.

    Modules that it saves whole differ from the base's.
    """

    def make(name, **config):
        torch.manual_seed(sum(map(ord, name)))
        model = get_peft_model(load_model()[0], LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config))
        for parameter_name, parameter in model.named_parameters():
            if ".modules_to_save." in parameter_name:
                parameter.data += 0.3 * parameter.std().clamp(min=0.1) * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = str(adapters / "tiny-base")
        model.save_pretrained(tmp_path / f"{name}.lora", save_embedding_layers=False)
        return str(tmp_path / f"{name}.lora"), delta_weights(model, "default")

    return make


@pytest.fixture(scope="session")
def remote_server():
    """The module remote_server.py."""
    spec = importlib.util.spec_from_file_location("remote_server", Path(__file__).with_name("remote_server.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(remote_server, adapters):
    """The embedded base and experts, as the server below has them."""
    return remote_server.Models(adapters / "tiny-base", {domain: adapters / f"{domain}.lora" for domain in ("math", "code")})


@pytest.fixture
def server(remote_server, models, monkeypatch):
    """It answers on loopback. Its clients try again at once, and have no key."""
    monkeypatch.setattr(server_module, "FIRST_PAUSE", 0.02)
    monkeypatch.delenv("GOPD_REMOTE_API_KEY", raising=False)
    server = remote_server.RemoteServer(models)
    yield server
    if server.is_up:
        server.stop()


class StopsAfter(Silent):
    """A signal comes after the step."""

    def __init__(self, step=None):
        self.at, self.notes = step, []

    def step(self, step, steps, metrics):
        if step == self.at:
            raise Interrupted("stopped", 15)

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def both_loaded(adapters):
    """The embedded base with both experts, in float32."""
    config = MergeConfig(experts={d: str(adapters / f"{d}.lora") for d in ("math", "code")}, quantize="none", eval=False)
    return load_backbone(config, read_inputs(config))


@pytest.fixture
def merge_until(adapters, both_loaded, tmp_path):
    """merge_until(stop=…, resume=…, **options): a short merge to out.lora, or what it is stopped by; the notes that were heard."""

    def merged(stop=None, resume=False, **options):
        experts = options.pop("experts", {d: str(adapters / f"{d}.lora") for d in ("math", "code")})
        sizes = {"steps": 4, "batch_size": 4, "max_new_tokens": 8, "checkpoint_every": 2, "quantize": "none", "eval": False}
        config = MergeConfig(experts=experts, **{"output": tmp_path / "out.lora"} | sizes | options)
        inputs = read_inputs(config)
        renew_student(both_loaded, inputs, config.seed)
        listener = StopsAfter(stop)
        if stop is None:
            merge(config, listener, inputs, both_loaded, resume=resume)
        else:
            with pytest.raises(Interrupted):
                merge(config, listener, inputs, both_loaded, resume=resume)
        return listener.notes

    return merged
