"""What the attacks aim at: a secret file, a secret in another process's environment, a server, and the process that grades."""

import os
import socket
import subprocess
import sys

import pytest


@pytest.fixture
def aimed(tmp_path):
    """Fills the targets into an attack's source."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    secret.chmod(0o644)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=os.environ | {"GOPD_SECRET": "1"})
    with socket.create_server(("127.0.0.1", 0)) as server:
        targets = {"{secret!r}": repr(str(secret)), "{parent}": str(os.getpid()), "{port}": str(server.getsockname()[1])}

        def aim(source: str) -> str:
            for name, value in targets.items():
                source = source.replace(name, value)
            return source

        yield aim
    assert bystander.poll() is None, "an attack ended a process outside the sandbox"
    bystander.communicate(b"\n")
