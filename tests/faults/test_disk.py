"""A disk that is full, or that nothing may be written to: one line, and the last good state as it was."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gopd_merge import MergeConfig
from gopd_merge.cli import main
from gopd_merge.errors import InputError
from gopd_merge.forecast import Forecast
from gopd_merge.plan import check_output, read_inputs

WEIGHTS = "adapter_model.safetensors"
SHORT = ("--steps", "6", "--batch-size", "4", "--max-new-tokens", "8", "--no-eval", "--checkpoint-every", "2", "--quantize", "none")


@pytest.fixture
def mounted(tmp_path):
    """mounted(size): a disk of its own at small/, for as long as the test lasts; skips where this process may mount none."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True, check=False)


def fill(folder, leaving):
    """Take what is free there, but for so many bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(0, free - leaving)))


@pytest.mark.parametrize("leaving", [0, 500_000], ids=["no byte", "half a checkpoint"])
def test_a_disk_that_fills_up_ends_the_run_in_a_line_and_it_goes_on_when_there_is_room(start, unbroken, where, mounted, leaving):
    folder = mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs")
    at = where(folder / "merged.lora")
    run = start("EXPERTS", *SHORT, "--quiet", cwd=folder)
    run.when(lambda: at.saved == ["step-000002"])
    fill(folder, leaving)
    assert run.code == 1
    (line,) = run.lines
    assert "No space left on device; step 2 is saved, go on with: gopd-merge resume merged.lora" in line
    assert at.saved == ["step-000002"]
    assert not at.output.exists()
    again = start("resume", "merged.lora", "--quiet", cwd=folder)  # still full
    assert again.code in (1, 2)
    assert len(again.lines) == 1
    assert at.saved == ["step-000002"]
    (folder / "filler").unlink()
    assert start("resume", "merged.lora", "--quiet", cwd=folder).code == 0
    assert (at.output / WEIGHTS).read_bytes() == (unbroken(*SHORT) / WEIGHTS).read_bytes()


def test_whichever_write_fails_the_last_good_state_stays(small_run, harness, tmp_path):
    with harness.full_from(10**9) as made:
        small_run(tmp_path / "whole.lora")
    whole = (tmp_path / "whole.lora" / WEIGHTS).read_bytes()
    assert len(made) > 30
    for number in range(1, len(made) + 1, 7):  # `make soak` tries every one
        harness.check_failing_write(small_run, tmp_path / f"{number}.lora", number, whole)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_the_folder_may_read_the_adapter(small_run, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        small_run(tmp_path / "out.lora")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out.lora").rglob("*") if path.is_file()}
    assert WEIGHTS in modes
    assert set(modes.values()) == {mode}


def test_a_run_that_has_no_room_from_the_start_is_refused_before_it_loads_anything(mounted, adapters, monkeypatch, capsys):
    folder = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    monkeypatch.chdir(folder)
    assert main(["--experts", str(adapters / "math.lora"), "--no-eval", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gopd-merge: merged.lora: the run writes about ")
    assert "there, more than the 1.0 MB that are free; make room, choose another --output, or lower --lora-rank (now 8)" in line
    assert not any(folder.iterdir())


def test_the_plan_counts_what_checkpoints_take(adapters, tmp_path, small_run):
    experts = {"math": str(adapters / "math.lora")}
    config = MergeConfig(experts=experts, steps=40, quantize="none", eval=False, output=tmp_path / "out.lora", memory="4GB")
    disk, all_kept = (Forecast(one, read_inputs(one)).disk for one in (config, config.model_copy(update={"keep_checkpoints": True})))
    assert disk.peak == pytest.approx(disk.checkpoint * (3 + 1 / 3))
    assert all_kept.peak == pytest.approx(disk.checkpoint * (4 + 1 / 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gopd_merge.run_folder.tidy", lambda output, keep: None)
        small_run(tmp_path / "two.lora")
    written = sum(path.stat().st_size for path in (tmp_path / "two.lora" / "checkpoints" / "step-000002").iterdir())
    assert written == pytest.approx(disk.checkpoint, rel=0.1)


def test_a_disk_that_is_read_only_is_refused_before_anything_is_read(mounted, adapters, monkeypatch, capsys):
    folder = mounted("-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    monkeypatch.chdir(folder)
    assert main(["--experts", str(adapters / "math.lora"), "--no-eval", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no permission to write merged.lora there; choose another --output")


def test_a_folder_without_permission_is_refused():
    """As another user than root, to whom everything is permitted."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        reader, writer = os.pipe()
        if os.fork() == 0:  # nothing but this is done here
            os.setuid(65534)
            try:
                check_output(Path(folder) / "merged.lora", overwrite=False)
            except InputError as error:
                os.write(writer, str(error).encode())
            os._exit(0)
        os.wait()
        os.close(writer)
        assert os.read(reader, 1000).decode() == f"{folder}: no permission to write merged.lora there; choose another --output"
        os.close(reader)
