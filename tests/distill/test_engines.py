"""A server that samples for the student: it has the student of this moment, says how likely its tokens were, and fails in one line."""

import json

import pytest
import torch

from gopd_merge.distill import vllm_server
from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.engines import EngineError, HfEngine, OtherEngine, log_prob_gap, sampling_options
from gopd_merge.distill.rollout import generate, stop_ids
from gopd_merge.distill.vllm_server import VllmServer, lora_room
from gopd_merge.errors import InputError

LIMIT = 20
BAD = [
    (lambda choice: choice | {"token_ids": choice["token_ids"][:-1]}, "tokens and"),
    (lambda choice: choice | {"token_ids": [512, *choice["token_ids"][1:]]}, "the token 512 where there are 512"),
    (lambda choice: choice | {"token_ids": [-1, *choice["token_ids"][1:]]}, "the token -1"),
    (lambda choice: choice | {"token_ids": None}, "without the ids and log-probs"),
    (lambda choice: choice | {"token_ids": ["a"]}, "without the ids and log-probs"),
    (lambda choice: choice | {"logprobs": None}, "without the ids and log-probs"),
    (lambda choice: choice | {"logprobs": {"token_logprobs": [0.5] * len(choice["token_ids"])}}, "a log-prob of 0.5"),
    (lambda choice: choice | {"logprobs": {"token_logprobs": [float("nan")] * len(choice["token_ids"])}}, "a log-prob of nan"),
    (lambda choice: choice | {"finish_reason": "abort"}, "ended by 'abort'"),
    (lambda choice: choice | {"finish_reason": {"stop": "length", "length": "stop"}[choice["finish_reason"]]}, "an end token"),
    (lambda choice: choice | {"prompt_token_ids": choice["prompt_token_ids"][1:]}, "tokens where"),
    (lambda choice: choice | {"token_ids": [3] * len(choice["token_ids"])}, "went on after it"),
]


@pytest.fixture(scope="module")
def backbone(make_backbone):
    return make_backbone()


@pytest.fixture
def student(backbone):
    """The backbone, whose student is afterwards where it was."""
    before = [parameter.detach().clone() for parameter in backbone.student_parameters()]
    yield backbone
    with torch.no_grad():
        for parameter, value in zip(backbone.student_parameters(), before, strict=True):
            parameter.copy_(value)


@pytest.fixture
def engine_of(server, tmp_path):
    """engine_of(backbone, **options): an engine on that server, which is closed in the end."""
    engines = []

    def make(backbone, url=None, **options):
        sampler = VllmServer(url or server.url, **({"rank": 4, "patience": 10.0} | options))
        engines.append(OtherEngine(backbone, backbone.vocabulary, sampler, tmp_path, "adapters/tiny-base"))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def move(backbone, seed):
    """The student somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.student_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def test_what_is_sampled_there_is_the_students_with_its_log_probs(engine_of, student, questions):
    engine = engine_of(student)
    rollout = engine.sample(*questions, LIMIT, range(4))
    assert rollout.domains == tuple(questions[1])
    assert rollout.sampled_log_probs.shape == rollout.response_mask.shape
    assert log_prob_gap(student, rollout, student.vocabulary) < 1e-4
    move(student, seed=1)  # the control: another student
    assert log_prob_gap(student, rollout, student.vocabulary) > 0.05
    assert log_prob_gap(student, engine.sample(*questions, LIMIT, range(4)), student.vocabulary) < 1e-4


def test_a_rollout_has_the_form_of_one_from_here(engine_of, student, questions):
    there = engine_of(student).sample(*questions, LIMIT, range(4))
    here = HfEngine(student, student.vocabulary).sample(*questions, LIMIT, range(4))
    assert torch.equal(there.ids[:, : there.prompt_width], here.ids[:, : here.prompt_width])
    assert there.prompt_width == here.prompt_width
    assert here.sampled_log_probs is None
    ends = torch.isin(there.ids[:, there.prompt_width :], torch.tensor(stop_ids(student)))
    assert torch.equal(there.capped, ~(ends & there.response_mask).any(1))
    assert torch.equal(there.attention_mask[:, there.prompt_width :], there.response_mask.long())
    assert (there.sampled_log_probs[~there.response_mask] == 0).all()
    assert (there.ids[:, there.prompt_width :][~there.response_mask] == student.tokenizer.pad_token_id).all()
    part = there.rows(1, 3)
    assert torch.equal(part.sampled_log_probs[part.response_mask], there.sampled_log_probs[1:3][there.response_mask[1:3]])


def test_the_same_seed_draws_the_same_response_whoever_shares_the_batch(engine_of, student, questions):
    engine = engine_of(student)
    prompts, domains = questions
    whole = engine.sample(prompts, domains, LIMIT, [7, 8, 9, 10])
    alone = engine.sample(prompts[2:3], domains[2:3], LIMIT, [9])
    assert whole.ids[2][whole.attention_mask[2].bool()].tolist() == alone.ids[0][alone.attention_mask[0].bool()].tolist()
    others = engine.sample(prompts[2:3] * 4, domains[2:3] * 4, LIMIT, range(4))
    assert len({tuple(row) for row in others.ids.tolist()}) > 1  # the control


def test_the_student_is_handed_over_when_it_has_changed_and_the_old_one_taken_away(engine_of, student, server, questions, tmp_path):
    engine = engine_of(student)
    for _ in range(2):
        engine.sample(*questions, 2, range(4))
    assert len(server.ever_loaded) == 1
    move(student, seed=1)
    engine.sample(*questions, 2, range(4))
    first, second = server.ever_loaded
    assert first != second
    assert list(server.loaded) == [second]
    assert [path.name for path in next(tmp_path.glob(".gopd-rollout-*")).iterdir()] == [second]
    assert {request["model"] for request in server.requests} == {first, second}
    engine.close()
    assert server.loaded == {}
    assert list(tmp_path.iterdir()) == []


def test_two_processes_with_the_same_student_share_it(engine_of, student, server, questions):
    one, other = engine_of(student), engine_of(student)
    for seed in (1, 2):
        move(student, seed)
        for engine in (one, other):
            engine.sample(*questions, 2, range(4))
    assert len(server.ever_loaded) == 2
    assert list(server.loaded) == server.ever_loaded[1:]


def test_a_request_names_every_cut_and_penalty_and_has_it_off(engine_of, student, server, questions):
    """As generate() has them here: what a request leaves out, a server takes from the model's generation_config.json."""
    engine_of(student).sample(*questions, LIMIT, range(4))
    off = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "min_tokens": 0, "repetition_penalty": 1.0}
    off |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    for request in server.requests:
        assert {name: request[name] for name in off} == off
        assert request["stop_token_ids"] == stop_ids(student) == [3]
        assert request["ignore_eos"]  # the server's own end token, which may be another one
        assert request["max_tokens"] == LIMIT
        assert "logit_bias" not in request
    assert {request["seed"] for request in server.requests} == {0, 1, 2, 3}


def test_tokens_that_only_pad_the_head_are_never_drawn(engine_of, student, server, questions):
    sampler = VllmServer(server.url, rank=4, patience=1.0)
    engine = OtherEngine(student, 60, sampler, None, "adapters/tiny-base")
    rollout = engine.sample(*questions, LIMIT, range(4))
    assert int(rollout.response_ids().max()) < 60
    assert sampling_options([3], LIMIT, range(60, 62))["logit_bias"] == {60: -100.0, 61: -100.0}
    engine.close()


def test_the_check_says_how_near_the_servers_base_is(engine_of, student, server, questions):
    notes = []
    engine_of(student).check(questions[0], LIMIT, notes.append)
    (note,) = notes
    assert note.startswith(f"{server.url}: its log-probs are ")
    assert note.endswith("nats a token from this run's; importance weights make up for that")
    assert len(server.requests) == 4


def test_a_server_with_another_base_is_refused(engine_of, student, server, questions, models):
    """Its last norm is not this base's."""
    norm = models.peft.get_base_model().model.norm.weight
    kept = norm.detach().clone()
    norm.data *= 0.3
    try:
        with pytest.raises(InputError, match=r"its log-probs differ from this run's base by .* nats a token, too far for one model"):
            engine_of(student).check(questions[0], LIMIT, print)
    finally:
        norm.data.copy_(kept)


@pytest.mark.parametrize(("damage", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_an_answer_that_cannot_be_right_is_not_used(engine_of, student, server, questions, damage, problem):
    server.answer = damage
    with pytest.raises(EngineError) as error:
        engine_of(student).sample(*questions, LIMIT, range(4))
    (line,) = error.value.lines
    assert line.startswith(f"{server.url}: ")
    assert problem in line
    with pytest.raises(InputError):  # and a run with such a server is refused before it begins
        engine_of(student).check(questions[0], LIMIT, print)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (
            {"takes_adapters": False},
            "loads no adapters while it runs (404 Not Found); start it as VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm",
        ),
        ({"sees": lambda path: False}, "where the student is written; run it on this machine, or write --output to a disk that both have"),
        ({"max_lora_rank": 2}, "cannot load the student (500 LoRA rank 4 is greater than max_lora_rank 2.); start it as"),
    ],
)
def test_a_server_that_cannot_take_the_student_is_refused_at_once(engine_of, student, server, questions, fault, problem):
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(InputError) as error:
        engine_of(student, patience=600.0).check(questions[0], LIMIT, print)
    (line,) = error.value.lines
    assert problem in line
    assert server.requests == []


def test_the_server_is_looked_at_before_anything_is_handed_over(server, models):
    def check(longest=60, url=server.url):
        sampler = VllmServer(url, rank=4, patience=1.0)
        try:
            sampler.check(longest)
        finally:
            sampler.close()

    check()
    with pytest.raises(InputError, match="takes 512 tokens at once, where this run has up to 600; lower --max-new-tokens"):
        check(600)
    server.key = "secret"
    with pytest.raises(InputError, match=r"does not let this run in .*; set GOPD_REMOTE_API_KEY to its key"):
        check()
    server.stop()
    with pytest.raises(InputError, match=r"no vLLM server answers there .*; start it as .* --max-lora-rank 8"):
        check()
    assert server.ever_loaded == []


def test_a_key_is_sent(engine_of, student, server, questions, monkeypatch):
    server.key = "secret"
    monkeypatch.setenv("GOPD_REMOTE_API_KEY", "secret")
    assert engine_of(student).sample(*questions, 2, range(4)).num_tokens > 0


def test_a_server_that_was_started_again_is_given_the_student_again(engine_of, student, server, questions):
    expected = engine_of(student).sample(*questions, LIMIT, range(4))
    notes, saved = [], []
    engine = engine_of(student, note=notes.append, waiting=lambda: saved.append(len(notes)))
    server.die_after = len(server.requests) + 2
    server.come_back()
    found = engine.sample(*questions, LIMIT, range(4))
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.sampled_log_probs, expected.sampled_log_probs)
    assert saved == [0]
    assert notes[0].startswith(f"{server.url} does not answer (")
    assert notes[1:] == [f"{server.url} answers again"]
    assert len(set(server.ever_loaded)) == 1
    assert len(server.ever_loaded) > 1


@pytest.mark.parametrize("fault", ["dead", "silent", "busy"])
def test_a_server_that_stays_away_is_given_up_in_one_line(engine_of, student, server, questions, monkeypatch, fault):
    monkeypatch.setattr(vllm_server, "TIMEOUT", 0.2)
    engine = engine_of(student, patience=0.3)
    if fault == "silent":
        server.stall = 1.0
    elif fault == "busy":
        server.errors = [(503, (), "starting")] * 1000
    else:
        server.die_after = 1
    with pytest.raises(EngineError) as error:
        engine.sample(*questions, LIMIT, range(4))
    (line,) = error.value.lines
    assert line.startswith(f"{server.url}: the server has not answered for 0.3 s (")
    assert line.endswith("start it, then give the command again, with a longer --remote-patience if it needs one")
    server.stall, server.errors = 0.0, []


def test_what_the_server_refuses_is_in_the_line(engine_of, student, server, questions):
    server.errors = [(400, (), "This model's maximum context length is 10 tokens")] * 4
    with pytest.raises(EngineError, match=r"the server refuses a request \(400 This model's maximum context length is 10 tokens\)"):
        engine_of(student).sample(*questions, LIMIT, range(4))


def test_the_room_for_a_rank_is_one_that_vllm_knows():
    assert [lora_room(rank) for rank in (1, 8, 9, 64, 300, 512, 513)] == [8, 8, 16, 64, 320, 512, None]


def test_the_adapter_that_is_handed_over_is_the_student(engine_of, student, server, questions, tmp_path):
    engine = engine_of(student)
    rollout = engine.sample(*questions, 4, range(4))
    (folder,) = server.loaded.values()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "adapters/tiny-base")
    student.load_adapter(folder, "again")
    hidden = {role: student.hidden(role, rollout.ids, rollout.attention_mask) for role in (STUDENT, "again")}
    student.remove("again")
    assert torch.equal(hidden[STUDENT], hidden["again"])
    assert generate(student, STUDENT, *questions, 2, range(4)).num_tokens > 0  # it is still the one that is on
