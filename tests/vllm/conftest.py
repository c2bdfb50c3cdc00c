"""vLLM on this machine: in processes beside this one, and as a server on loopback. `make test-vllm` has it; elsewhere all is skipped."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch

from gopd_merge.distill.backbone import Backbone
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.intake import read_experts

pytest.importorskip("vllm", reason="vLLM is not installed here; make test-vllm")

START, STOP = 240, 30  # seconds
SETTINGS = {  # as --rollout vllm has them on a CPU
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
LONGEST = 160  # tokens


@pytest.fixture(scope="session")
def biased_base(adapters, tmp_path_factory):
    """The embedded base with a generation_config.json that would cut and sharpen what it says, if anybody heeded it."""
    base = shutil.copytree(adapters / "tiny-base", tmp_path_factory.mktemp("biased") / "tiny-base")
    path = base / "generation_config.json"
    cuts = {"do_sample": True, "temperature": 0.2, "top_k": 2, "top_p": 0.3, "repetition_penalty": 3.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | cuts))
    return base


@pytest.fixture(scope="session")
def student(adapters, biased_base):
    """A backbone whose student is not at the base."""
    experts = read_experts({"math": str(adapters / "math.lora")})
    backbone = Backbone(*load_base(Base(str(biased_base), str(biased_base)), "none", "cpu"), experts)
    backbone.add_student(8, experts[0].targets, seed=0)
    return backbone


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """serve(model, *arguments): the URL of a `vllm serve` that runs to the end of the session."""
    running = []

    def start(model, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tmp_path_factory.mktemp("serve") / "log"
        # What `vllm serve` runs: that command itself asks for the version of a package "vllm", which the build for CPUs is not called.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "float32", "--enforce-eager"]
        command += ["--host", "127.0.0.1", "--port", port, "--max-model-len", LONGEST, "--kv-cache-memory-bytes", 64 << 20]
        command += ["--no-enable-chunked-prefill", *arguments]  # as docs/rollouts.md says of CPUs
        with log.open("w") as file:
            process = subprocess.Popen(list(map(str, command)), env=os.environ | SETTINGS, stdout=file, stderr=subprocess.STDOUT)
        running.append(process)
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return f"http://127.0.0.1:{port}/v1"
            except (OSError, urllib.error.URLError):
                time.sleep(1)
        raise TimeoutError(log.read_text()[-4000:])

    yield start
    for process in running:
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def server_url(serve, biased_base):
    """A server that loads adapters while it runs; it has taken the base's cuts as its defaults."""
    return serve(biased_base, "--enable-lora", "--max-lora-rank", 8)


@pytest.fixture(scope="session")
def move():
    """move(backbone, seed): the student to a place that the seed names."""

    def to(backbone, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in backbone.student_parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    return to
