"""What the environment keeps secret is in no byte that a run writes or prints, however it ends."""

import signal

NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GOPD_REMOTE_API_KEY", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
PLANTED = {name: f"planted-{number}-secret" for number, name in enumerate(NAMES)}


def found(folder, text):
    """The files in which a text is, or whose name has it."""
    return [path for path in folder.rglob("*") if text in path.name or (path.is_file() and text.encode() in path.read_bytes())]


def test_no_secret_of_the_environment_reaches_a_file_or_a_line(start, where, harness, tmp_path):
    options = (*harness.SHORT, "--quantize", "none")
    at = where(tmp_path / "merged.lora")
    stopped = start("CODE", *options, **PLANTED)
    assert stopped.send_when(lambda: at.saved, signal.SIGTERM)
    assert stopped.code == 143
    assert found(at.partial, "settings of expert code")  # the control: run.json is searched
    assert found(tmp_path, "secret") == []
    refused = start("--experts", "nobody/no-such-lora", "http://localhost:9/v1#math", **PLANTED)
    assert refused.code == 2
    resumed = start("resume", "merged.lora", **PLANTED)
    assert resumed.code == 0
    assert found(at.output, "expert:code")
    assert found(tmp_path, "secret") == []
    for run in (stopped, refused, resumed):
        assert run.stdout.read_text() + run.stderr.read_text()
        assert "secret" not in run.stdout.read_text() + run.stderr.read_text()
