"""What several processes cannot do together, or one alone, is refused before anything loads, and the way out that the line gives is one."""

import sys

import pytest

from gopd_merge.cli import main
from gopd_merge.config import make_config
from gopd_merge.errors import InputError
from gopd_merge.parallel import ALONE, Processes
from gopd_merge.plan import check_processes

EXPERTS = {"math": "math.lora", "code": "code.lora"}
SHARED = {"shard_base": True, "eval": False}
FOUR = Processes(0, 4, 0, 4)


@pytest.mark.parametrize(
    ("options", "processes", "named", "way_out"),
    [
        (SHARED, ALONE, ["--shard-base", "accelerate launch"], {"shard_base": False}),
        ({"alpha": "auto"}, FOUR, ["--alpha auto", "4 processes", "gopd-merge probe"], {"alpha": 1.5}),
        ({"rollout": "vllm"}, FOUR, ["--rollout vllm", "--rollout http"], {"rollout": "http://host:8000/v1"}),
        (SHARED | {"batch_size": 12}, FOUR, ["--shard-base", "6 prompts", "--batch-size 8"], {"batch_size": 8}),
        (SHARED | {"batch_size": 4}, FOUR, ["--shard-base", "2 prompts", "--batch-size 8"], {"batch_size": 8}),
    ],
)
def test_what_does_not_go_together_is_named_with_its_way_out(options, processes, named, way_out):
    with pytest.raises(InputError) as caught:
        check_processes(make_config({"experts": EXPERTS} | options), processes)
    assert all(part in str(caught.value) for part in named)
    check_processes(make_config({"experts": EXPERTS} | options | way_out), processes)


@pytest.mark.parametrize(("rank", "said"), [(0, 1), (1, 0)])
def test_a_command_that_is_wrong_is_refused_once(rank, said, monkeypatch, capsys):
    """Each process looks at the same words; the first of a machine says what is wrong with them."""
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    for words in (["compare", "merged.lora"], ["--experts", "math.lora", "--dry-run"], ["--experts", "math.lora", "--alhpa", "2"]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("gopd-merge") == said
