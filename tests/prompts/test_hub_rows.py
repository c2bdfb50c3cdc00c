"""Data sets come from a Hub on loopback, at their commit, streamed where they are large, and from the cache without a network."""

import json
import os
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

PROGRAM = """
import json, sys
from gopd_merge.errors import InputError
from gopd_merge.prompts import hub_rows
from gopd_merge.prompts.sources import read_source
for line in sys.stdin:
    text, limit, streamed_from = json.loads(line)
    hub_rows.STREAMED_FROM = streamed_from
    try:
        found = read_source("math", text, limit)
        origin = found.origin
        print(json.dumps([[p.prompt for p in found.prompts], origin.source, origin.licence, dict(origin.dropped)]))
    except InputError as error:
        print(json.dumps("|".join(error.lines)))
"""
LARGE, SMALL = 0, 1 << 28
CARD = """---
license: cc-by-4.0
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: chats
  data_files:
  - split: train
    path: chats/train-*
---
"""


def repository(folder, questions):
    """Parquet files as the Hub has them, those of the train split in row groups of their own."""
    for config, split, rows in (
        ("main", "train", [{"question": text, "answer": index} for index, text in enumerate(questions)]),
        ("main", "test", [{"question": "Test?", "answer": 0}]),
        ("chats", "train", [{"messages": [{"role": role, "content": "Hi?"}]} for role in ("user", "system")]),
    ):
        (folder / config).mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet", row_group_size=100)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def hub(HubServer):
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def read(hub, tmp_path_factory):
    """read([source, limit, streamed from], …, offline=…): what one process with a cache of its own gets for each."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*asked, offline=False):
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_DATASETS_OFFLINE": str(int(offline))}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input="".join(json.dumps(one) + "\n" for one in asked),
            env=os.environ | environment,
            cwd=cache,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="module")
def commits(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    old = hub.add("you/sums", repository(folder, ["Old?"]))
    return old, hub.add("you/sums", repository(folder, [f"What is {i} + 1?" for i in range(1000)]))


@pytest.mark.slow
def test_a_data_set_is_read_at_its_commit_streamed_or_kept_and_again_without_a_network(hub, read, commits):
    old, new = commits
    whole, part, at_old, chats, streamed, range_ = read(
        ["you/sums:main#question", None, SMALL],
        ["you/sums:main/train#question", 10, SMALL],
        [f"you/sums:main/train@{old}#question", None, SMALL],
        ["you/sums:chats", None, SMALL],
        ["you/sums:main/train#question", 10, LARGE],
        ["you/sums:main/train[990:995]+test#question", None, LARGE],
    )
    assert whole[0] == [f"What is {i} + 1?" for i in range(1000)]
    assert whole[1:3] == [f"you/sums:main/train@{new}#question", "cc-by-4.0"]
    assert len(part[0]) == 10
    assert part[0] != whole[0][:10]
    assert at_old[0] == ["Old?"]
    assert chats[0] == ["Hi?"]
    assert chats[3] == {"begins with a system message": 1}
    assert len(set(streamed[0])) == 10
    assert set(streamed[0]) < set(whole[0])
    assert range_[0] == [*whole[0][990:995], "Test?"]

    before = len(hub.requests)
    sources = [f"you/sums:main/train@{commit}#question" for commit in (new, old, "0" * 40)]
    again, at_old_again, gone = read(*([source, 10, SMALL] for source in sources), offline=True)
    assert again == part
    assert at_old_again == at_old
    assert f"the cache has you/sums at {old}" in gone  # not taken for the other
    assert len(hub.requests) == before


@pytest.mark.slow
def test_what_a_data_set_does_not_have_is_named_with_what_it_has(read, commits):
    split, config, column, no_config, missing = read(
        ["you/sums:main/tain#question", None, SMALL],
        ["you/sums:mian/train#question", None, SMALL],
        ["you/sums:main/train", None, SMALL],
        ["you/sums", None, SMALL],
        ["you/products:main/train", None, SMALL],
    )
    assert "has no split tain; you/sums has train, test: write for instance you/sums:main/train#question" in split
    assert "has no configuration mian; it has main, chats; write for instance you/sums:main/train#question" in config
    assert "has no column prompt; its columns are question, answer: name that of the prompts" in column
    assert "has several configurations; it has main, chats; write for instance you/sums:main" in no_config
    assert "no such data set on the Hub" in missing
