"""What goes wrong between here and the Hub while a merge is published: one line, and a repository that is as it was, or holds all of it."""

import pytest
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"
COMMIT, UPLOAD, BATCH = "POST /api/models/you/merged/commit/", "PUT /lfs/", "POST /you/merged.git/info/lfs"
ALWAYS = 1000


@pytest.fixture
def existing(hub):
    """A repository that holds something else."""
    return hub.commit("you/merged", {".gitattributes": b"", "LICENSE": b"a licence"})


def one_line(done, code):
    assert done.code == code, done.err
    *_, line = done.err.splitlines()
    assert line.startswith("gopd-merge: ")
    assert "Traceback" not in done.err
    return line


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ({"match": "preupload", "status": 401}, 2, "log in with: hf auth login"),
        ({"match": COMMIT, "status": 401}, 2, "log in with: hf auth login"),
        ({"match": "preupload", "status": 403}, 2, "may not write there"),
        ({"match": COMMIT, "status": 409, "times": ALWAYS}, 1, "somebody else has committed to main meanwhile"),
        ({"match": COMMIT, "status": 429, "times": ALWAYS}, 1, "too many requests"),
        ({"match": COMMIT, "status": 503, "times": ALWAYS}, 1, "the Hub answered 503"),
        ({"match": UPLOAD, "status": 500, "times": ALWAYS}, 1, "the Hub answered 500"),
        ({"match": UPLOAD, "cut": 1, "times": ALWAYS}, 1, "the connection to the Hub failed"),
        ({"match": UPLOAD, "cut": 200_000, "times": ALWAYS}, 1, "the connection to the Hub failed"),
        ({"match": COMMIT, "cut": 1000, "times": ALWAYS}, 1, "the connection to the Hub failed"),
        ({"match": BATCH, "status": 500, "times": ALWAYS}, 1, "the Hub answered 500"),
        ({"match": "GET /api/models/you/merged/revision", "status": 500, "times": ALWAYS}, 1, "the Hub answered 500"),
    ],
)
def test_a_fault_that_lasts_is_one_line_and_leaves_the_repository_as_it_was(publish, hub, existing, fault, code, said):
    hub.fail(**fault)
    line = one_line(publish("merged.lora", "you/merged", "--quiet"), code)
    assert said in line
    assert "hf_you" not in line
    assert hub.head("you/merged") == existing
    hub.faults.clear()
    assert publish("merged.lora", "you/merged", "--quiet").code == 0  # the control, and the way out
    assert hub.files("you/merged")["LICENSE"] == b"a licence"


@pytest.mark.parametrize(
    "fault",
    [
        {"match": COMMIT, "status": 429, "headers": {"Retry-After": "7"}},
        {"match": COMMIT, "status": 500, "times": 2},
        {"match": COMMIT, "cut": 1000},
        {"match": UPLOAD, "status": 500, "times": 2},
        {"match": UPLOAD, "status": 429, "headers": {"Retry-After": "7"}},
        {"match": UPLOAD, "cut": 100_000, "times": 3},
        {"match": "preupload", "status": 503},
        {"match": BATCH, "status": 502},
        {"match": COMMIT, "lost": True},
    ],
)
def test_a_fault_that_passes_is_waited_for_and_makes_one_commit(publish, hub, existing, merged, fault):
    hub.fail(**fault)
    done = publish("merged.lora", "you/merged", "--quiet")
    assert done.code == 0, done.err
    assert hub.faults[0].times == 0  # it happened
    assert len(hub.titles["you/merged"]) == 2
    assert hub.files("you/merged")[WEIGHTS] == (merged / WEIGHTS).read_bytes()
    waited = sum(publish.pauses)
    assert waited >= 7 if fault.get("headers") else waited > 0 or fault.get("lost")


def test_a_commit_that_was_made_though_its_answer_got_lost_is_found_and_not_made_again(publish, hub):
    hub.fail(COMMIT, lost=True)
    done = publish("merged.lora", "you/merged", "--quiet")
    assert hub.head("you/merged") in done.out
    assert len([request for request in hub.requests if request.startswith(COMMIT)]) == 1


def test_a_commit_of_somebody_else_in_between_is_reported_and_not_overwritten(publish, hub, existing):
    def other():
        hub.commit("you/merged", {"README.md": b"theirs"})

    hub.fail(UPLOAD, before=other)
    line = one_line(publish("merged.lora", "you/merged", "--quiet"), 1)
    assert "somebody else has committed to main meanwhile" in line
    assert hub.files("you/merged") == {"README.md": b"theirs"}


def test_an_adapter_that_changes_between_check_and_upload_is_not_published(publish, hub, existing, merged):
    tensors = load_file(merged / WEIGHTS)
    first = sorted(tensors)[0]
    hub.fail(BATCH, before=lambda: save_file(tensors | {first: tensors[first] + 1}, merged / WEIGHTS))
    line = one_line(publish("merged.lora", "you/merged", "--quiet"), 1)
    assert "400" in line or "has changed" in line
    assert hub.head("you/merged") == existing
    hub.fail(COMMIT, before=lambda: save_file(tensors, merged / WEIGHTS))
    assert "has changed since the merge" in one_line(publish("merged.lora", "you/merged", "--quiet"), 2)


def test_an_adapter_that_changes_after_its_upload_is_not_committed(publish, hub, existing, merged):
    hub.fail("verify", before=lambda: (merged / WEIGHTS).write_bytes(b"another"))
    line = one_line(publish("merged.lora", "you/merged", "--quiet"), 1)
    assert f"{WEIGHTS}: has changed while it was being published" in line
    assert hub.head("you/merged") == existing


def test_a_slow_reader_is_waited_for(publish, hub, existing):
    hub.fail(UPLOAD, delay=0.05)
    assert publish("merged.lora", "you/merged", "--quiet").code == 0
    assert publish.pauses == []


def test_a_large_adapter_goes_in_parts_of_which_one_may_fail(publish, hub, existing, merged):
    hub.part_size = 100_000
    hub.fail("PUT /lfs/", cut=50_000)
    assert publish("merged.lora", "you/merged", "--quiet").code == 0
    assert hub.files("you/merged")[WEIGHTS] == (merged / WEIGHTS).read_bytes()
    assert sum(request.startswith("PUT") for request in hub.requests) == 5  # four parts, one of them twice


def test_nobody_or_somebody_else_cannot_publish_and_the_line_says_so(publish, hub):
    assert "nobody is logged in to the Hub on this machine" in one_line(publish("merged.lora", "you/merged", "--quiet", token=None), 2)
    assert "log in with: hf auth login" in one_line(publish("merged.lora", "you/merged", "--quiet", token="hf_wrong"), 2)
    assert "may not write there" in one_line(publish("merged.lora", "you/merged", "--quiet", token="hf_them"), 2)
    assert "you/merged" not in hub.repos


def test_a_new_repository_whose_upload_breaks_off_is_empty_and_taken_up(publish, hub):
    hub.fail(UPLOAD, status=500, times=ALWAYS)
    assert "may be there, and is empty" in one_line(publish("merged.lora", "you/merged", "--private", "--quiet"), 1)
    assert list(hub.files("you/merged")) == [".gitattributes"]
    hub.faults.clear()
    assert publish("merged.lora", "you/merged", "--private", "--quiet").code == 0


def test_offline_nothing_can_be_published(publish, hub):
    """The base is in the cache; the repository is not."""
    assert "HF_HUB_OFFLINE is set" in one_line(publish("merged.lora", "you/merged", "--quiet", offline=True), 2)
    assert hub.requests == []
