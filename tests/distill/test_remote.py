"""A teacher behind a server: its scores equal those of the same expert here, and each way in which a server fails has its line."""

import itertools
import random
import re
import threading
import time

import pytest
import torch
from transformers import AutoTokenizer

from gopd_merge.distill import remote as remote_module
from gopd_merge.distill import remote_answer
from gopd_merge.distill.backbone import REFERENCE, STUDENT, expert
from gopd_merge.distill.remote import RemoteTeacher, TeacherError
from gopd_merge.distill.rollout import generate, tokenize, written
from gopd_merge.errors import InputError


@pytest.fixture
def server(server, monkeypatch):
    """The one of conftest.py, which is checked without patience."""
    monkeypatch.setattr(remote_module, "CHECK_PATIENCE", 0.1)
    return server


@pytest.fixture
def teach(server, adapters):
    """teach(name, **options): a teacher on that server, and what it noted."""
    tokenizer = AutoTokenizer.from_pretrained(adapters / "tiny-base")
    teachers = []

    def make(name="math", **options):
        options = {"tokenizer": tokenizer, "vocabulary_size": 512, "patience": 10.0, "timeout": 10.0} | options
        teachers.append(RemoteTeacher(f"{server.url}#{name}", **options))
        return teachers[-1]

    yield make
    for teacher in teachers:
        teacher.close()


@pytest.fixture(scope="module")
def rollout(float_backbone, questions):
    return generate(float_backbone, STUDENT, *questions, 20, range(4))


@pytest.fixture(scope="module")
def sequences(rollout):
    """Prompt and response of each row without padding, and where the response begins."""
    rows, starts = [], []
    for ids, mask, response in zip(rollout.ids, rollout.attention_mask, rollout.response_mask, strict=True):
        rows.append(ids[mask.bool()].tolist())
        starts.append(len(rows[-1]) - int(response.sum()))
    return rows, starts


def local_log_probs(backbone, rollout, role):
    """(N, V) of every response token, by the role that is loaded here."""
    with torch.no_grad():
        hidden = rollout.predicting(backbone.hidden(role, rollout.ids, rollout.attention_mask))
        return backbone.logits(hidden, role).log_softmax(-1)


@pytest.mark.parametrize("domain", ["math", "code"])
def test_scores_equal_those_of_the_expert_that_is_loaded_here(teach, float_backbone, rollout, sequences, domain):
    teacher = teach(domain, k=7)
    teacher.check()
    scores = teacher.score(*sequences)
    local = local_log_probs(float_backbone, rollout, expert(domain))
    ids = rollout.response_ids()
    assert (scores.top_ids.shape, scores.top_log_probs.shape) == ((len(ids), 7), (len(ids), 7))
    torch.testing.assert_close(scores.log_probs, local.gather(1, ids[:, None])[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.top_log_probs, local.topk(7).values, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.top_log_probs, local.gather(1, scores.top_ids), rtol=0, atol=1e-4)
    assert all(len(set(row)) == 7 for row in scores.top_ids.tolist())
    for other in {expert("math"), expert("code"), REFERENCE} - {expert(domain)}:  # the control: others say something else
        assert (scores.top_log_probs - local_log_probs(float_backbone, rollout, other).topk(7).values).abs().max() > 0.1


def test_the_sampled_token_alone_can_be_asked_for(teach, server, float_backbone, rollout, sequences):
    teacher = teach(k=0)
    teacher.check()
    scores = teacher.score(*sequences)
    local = local_log_probs(float_backbone, rollout, expert("math")).gather(1, rollout.response_ids()[:, None])[:, 0]
    torch.testing.assert_close(scores.log_probs, local, rtol=0, atol=1e-4)
    assert scores.top_ids.shape == (rollout.num_tokens, 0)
    assert server.requests[-1]["prompt_logprobs"] == 1


def test_a_request_is_what_vllm_takes(teach, server, sequences):
    teacher = teach(k=5)
    rows, starts = sequences
    empty = teacher.score([*rows, [5, 6]], [*starts, 2])  # a response without a token is not asked about
    assert len(empty.log_probs) == sum(len(row) - start for row, start in zip(rows, starts, strict=True))
    assert len(server.requests) == len(rows)
    request = min(server.requests, key=lambda one: rows.index(one["prompt"]))
    assert {name: value for name, value in request.items() if name != "cache_salt"} == {
        "model": "math", "prompt": rows[0], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 5,
    }  # fmt: skip
    assert len({one["cache_salt"] for one in server.requests}) == len(rows)
    with pytest.raises(ValueError, match="outside of its sequence"):
        teacher.score([[5, 6]], [0])


def test_it_writes_what_the_expert_here_would_write(teach, float_backbone, questions):
    """Its own texts are likelier to the expert here than to the base, and the run's seed repeats them."""
    teacher = teach()
    teacher.check_answers(longest=512)
    prompts = tokenize(float_backbone.tokenizer, questions[0])["input_ids"]
    first, second = teacher.answer(prompts, 60, range(4)), teacher.answer(prompts, 60, range(4, 8))
    assert teacher.answer(prompts, 60, range(4)) == first != second
    assert {one.ended for one in first} == {True}
    cut = teacher.answer(prompts, 3, range(4))
    assert {one.ended for one in cut} == {False}
    rollout = written(float_backbone, questions[0], [one.text for one in first], questions[1], 60, [one.ended for one in first])
    assert not rollout.capped.any()
    own = {}
    for role in (expert("math"), REFERENCE):
        log_probs = local_log_probs(float_backbone, rollout, role)
        own[role] = float(log_probs.gather(1, rollout.response_ids()[:, None]).mean())
    assert own[expert("math")] > own[REFERENCE]


def test_a_servers_own_cuts_are_turned_off(teach, server, questions, float_backbone):
    """The server would answer greedily where a request leaves it the choice."""
    (prompt, *_) = tokenize(float_backbone.tokenizer, questions[0])["input_ids"]
    assert server.defaults["top_k"] == 1
    assert len({one.text for one in teach().answer([prompt] * 8, 12, range(8))}) > 1
    request = server.requests[-1]
    assert {name: request[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    greedy = teach()
    greedy._plain = True  # the control: without vLLM's own fields those defaults hold
    assert len({one.text for one in greedy.answer([prompt] * 8, 12, range(8))}) == 1


@pytest.mark.parametrize("kind", ["ignored", "refused", "standard"])
def test_an_api_without_log_probs_can_be_learnt_from(teach, server, kind):
    server.log_probs, server.standard = ("refused", True) if kind == "standard" else (kind, False)
    noted = []
    teacher = teach(note=noted.append)
    teacher.check_answers()
    (note,) = noted
    assert note.endswith("returns no log-probs of a prompt, so whether it reads tokens as this run's base cannot be compared")
    assert [type(one.text) for one in teacher.answer([[5, 6, 7]], 4, [0])] == [str]
    assert ("top_k" in server.requests[-1]) == (kind != "standard")


def test_what_cannot_be_learnt_from_is_refused(teach, server):
    assert "it serves base, math, code, not poems" in refusal(teach("poems").check_answers)
    assert "takes 512 tokens" in refusal(lambda: teach().check_answers(longest=513))
    teach().check_answers(longest=512)
    server.vocabulary = shifted(1)  # a server with log-probs shows it
    assert "answers with another model's vocabulary" in refusal(teach().check_answers)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ({}, "answers without choices"),
        ({"choices": [{"text": None, "finish_reason": "stop"}]}, "answers with NoneType that ended by 'stop'"),
        ({"choices": [{"text": "a", "finish_reason": "content_filter"}]}, "answers with str that ended by 'content_filter'"),
        ({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}, "reads 9 tokens where 2 were sent"),
    ],
)
def test_a_text_that_cannot_be_right_is_never_learnt(reply, problem):
    with pytest.raises(remote_answer.Unusable, match=re.escape(problem)):
        remote_answer.read_written(reply, [5, 6])
    good = {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"prompt_tokens": 2}}
    assert remote_answer.read_written(good, [5, 6]) == remote_answer.Written("a", True)


def test_requests_are_under_way_together_and_their_order_changes_nothing(teach, server, sequences):
    rows, starts = sequences
    server.stall = 0.1
    alone, together = teach(workers=1).score(rows, starts), teach(workers=4).score(rows, starts)
    assert server.most_at_once == 4
    assert all(torch.equal(getattr(alone, name), getattr(together, name)) for name in ("log_probs", "top_ids", "top_log_probs"))


def refusal(call):
    with pytest.raises(InputError) as refused:
        call()
    (line,) = refused.value.lines
    assert "; " in line
    return line


def test_what_is_not_there_is_refused(teach, server):
    line = refusal(teach("poems").check)
    assert line == (
        f"{server.url}#poems: it serves base, math, code, not poems; name one of those after #, "
        "or serve the adapter with --lora-modules NAME=PATH"
    )
    server.stop()
    assert "no OpenAI-compatible server answers there (ConnectError" in refusal(teach().check)


@pytest.mark.parametrize("kind", ["ignored", "refused"])
def test_an_api_without_log_probs_of_prompts_is_sent_to_seqkd(teach, server, kind):
    server.log_probs = kind
    line = refusal(teach().check)
    assert "does not return the log-probs of a prompt" in line
    assert line.endswith("serve the model with vLLM, or learn from its samples with --method seqkd")
    assert ("Unrecognized request argument supplied: prompt_logprobs" in line) == (kind == "refused")


def test_k_is_what_the_server_allows(teach, server, sequences):
    server.max_logprobs = 4
    noted = []
    teacher = teach(k=50, note=noted.append)
    teacher.check()
    assert teacher.k == 4
    assert noted == [f"{server.url}#math tells 4 tokens at a position, not 50"]
    assert teacher.score(*sequences).top_ids.shape[1] == 4
    server.max_logprobs = 0
    assert "max allowed: 0" in refusal(teach().check)


def test_a_server_that_takes_fewer_tokens_than_the_run_has_is_refused(teach):
    teach().check(longest=511)
    line = refusal(lambda: teach().check(longest=512))
    assert "takes 512 tokens at once, where this run has up to 513" in line
    assert line.endswith("lower --max-new-tokens, or serve it with a larger --max-model-len")


def shifted(by):
    return lambda token_id: (token_id + by) % 512


def swapped(one, other):
    return lambda token_id: {one: other, other: one}.get(token_id, token_id)


@pytest.mark.parametrize("vocabulary", [shifted(1), swapped(400, 401), swapped(3, 12)])
def test_another_models_vocabulary_is_refused(teach, server, vocabulary):
    server.vocabulary = vocabulary
    line = refusal(teach(k=20).check)
    assert "answers with another model's vocabulary (spells the token" in line


def test_ids_that_the_server_or_the_base_does_not_have_are_another_vocabulary(teach, server, adapters):
    line = refusal(teach(vocabulary_size=200).check)
    assert "another model's vocabulary (names the token" in line
    tokenizer = AutoTokenizer.from_pretrained(adapters / "tiny-base")
    tokenizer.add_tokens(["<more>"])
    assert "another model's vocabulary (400 Token id 512 is out of vocabulary)" in refusal(teach(tokenizer=tokenizer).check)


@pytest.mark.parametrize("spell", [str.strip, lambda text: f" {text}", lambda text: text.replace(" ", "Ġ")])
def test_how_releases_differ_in_spelling_the_same_token_is_no_other_vocabulary(teach, server, spell):
    def change(found):
        for entry in found[1:]:
            for fields in entry.values():
                fields["decoded_token"] = spell(fields["decoded_token"])
        return found

    server.change = change
    teach().check()


def test_every_token_that_stands_elsewhere_is_noticed_by_one_answer_or_another(teach, models):
    """The probe has a part of the vocabulary; answers during the run are compared as well, so that none is misread."""
    teacher = teach()
    probe = teacher._vocabulary.probe()
    assert len(set(probe)) == len(probe) >= 70
    assert models.tokenizer.eos_token_id in probe
    texts = {i: models.tokenizer.decode([i]) for i in range(512)}
    readable = [i for i, text in texts.items() if text.strip() and "\ufffd" not in text]
    assert len(readable) > 250
    for token_id, other in itertools.pairwise(random.Random(0).sample(readable, 80)):
        teacher._vocabulary.check(token_id, texts[token_id])
        if texts[token_id].strip() != texts[other].strip():
            with pytest.raises(remote_module.OtherVocabulary):
                teacher._vocabulary.check(token_id, texts[other])


def with_log_prob(value):
    def change(found):
        next(iter(found[-1].values()))["logprob"] = value
        return found

    return change


def with_sure(found):
    for fields in found[-1].values():
        fields["logprob"] = -0.1
    return found


DAMAGES = {
    "truncated": (lambda found: found[:-2], "answers with log-probs of "),
    "no list": (lambda found: {"1": 2}, "answers with log-probs of no tokens"),
    "too few": (lambda found: [found[0], *(dict(list(entry.items())[:1]) for entry in found[1:])], "answers with 1 tokens at a position"),
    "no map": (lambda found: [None] * len(found), "prompt_logprobs of another form than vLLM's"),
    "no ids": (lambda found: [None, *({"Tom": {"logprob": -1.0}} for _ in found[1:])], "of another form than vLLM's"),
    "no numbers": (with_log_prob("-1.0"), "answers with a log-prob of -1.0 for the token"),
    "nan": (with_log_prob(float("nan")), "answers with a log-prob of nan for the token"),
    "infinite": (with_log_prob(float("-inf")), "answers with a log-prob of -inf for the token"),
    "no size": (with_log_prob(-(10**400)), "of another form than vLLM's"),
    "positive": (with_log_prob(0.5), "answers with a log-prob of 0.5 for the token"),
    "too much": (with_sure, "answers with probabilities that add up to "),
    "no spelling": (lambda found: [None, *({i: {"logprob": -1.0} for i in e} for e in found[1:])], "does not say how it spells"),
    "none": (lambda found: None, "answers without prompt_logprobs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_answer_that_cannot_be_right_is_never_used(teach, server, sequences, damage):
    change, line = DAMAGES[damage]
    server.change = change
    assert line in refusal(teach().check)
    with pytest.raises(TeacherError) as failed:
        teach().score(*sequences)
    assert line in str(failed.value)
    assert len(failed.value.lines) == 1
    assert server.url in str(failed.value)


def test_an_answer_without_the_token_that_was_sent_is_never_used(teach, server, sequences):
    server.change = lambda found: [None, *({i: f for i, f in e.items() if f["rank"] <= 20 and i != next(iter(e))} for e in found[1:])]
    with pytest.raises(TeacherError, match=r"another model's vocabulary \(leaves out the token"):
        teach(k=3).score(*sequences)


def test_a_server_that_is_exchanged_during_a_run_is_noticed(teach, server, sequences):
    teacher = teach()
    teacher.check()
    teacher.score(*sequences)
    server.vocabulary = shifted(1)
    with pytest.raises(TeacherError, match=r"another model's vocabulary \(spells .* serve again what was served when the run began"):
        teacher.score(*sequences)


def test_a_log_prob_that_rounding_lifts_over_zero_is_zero(teach, server, sequences):
    def change(found):
        for entry in found[1:]:
            for n, fields in enumerate(entry.values()):
                fields["logprob"] = 5e-4 if n == 0 else -9999.0  # the latter is what vLLM makes of −∞
        return found

    server.change = change
    scores = teach().score(*sequences)
    assert scores.log_probs.max() == 0
    assert scores.top_log_probs.min() == -9999.0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_is_given_again_until_it_is_answered(teach, server, sequences, status):
    noted = []
    expected = teach().score(*sequences)
    server.errors = [(status, [], "busy for now")] * 5
    found = teach(note=noted.append).score(*sequences)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert noted == [
        f"{server.url}#math does not answer ({status} busy for now); trying again for 10 s", f"{server.url}#math answers again",
    ]  # fmt: skip
    assert len(server.requests) == 2 * len(sequences[0]) + 5


def test_a_server_says_when_to_ask_again(teach, server):
    server.errors = [(429, [("Retry-After", "1")], "rate limit")]
    started = time.monotonic()
    teach().score([[5, 6, 7]], [1])
    assert 0.95 < time.monotonic() - started < 5
    server.errors = [(429, [("Retry-After", "3600")], "rate limit")] * 2
    started = time.monotonic()
    with pytest.raises(TeacherError, match="429 rate limit"):  # not longer than the patience
        teach(patience=0.2).score([[5, 6, 7]], [1])
    assert time.monotonic() - started < 2


def test_a_server_that_dies_is_waited_for_and_the_run_goes_on_when_it_is_back(teach, server, sequences):
    expected = teach().score(*sequences)
    server.die_after = len(server.requests) + 2
    noted = []
    threading.Timer(0.5, server.start).start()
    found = teach(note=noted.append, workers=1).score(*sequences)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert torch.equal(found.top_ids, expected.top_ids)
    assert len(noted) == 2
    assert "does not answer" in noted[0]
    assert "answers again" in noted[1]


def test_a_server_that_stays_away_ends_the_run_with_one_line(teach, server, sequences):
    teacher = teach(patience=0.3)
    teacher.score(*sequences)
    server.die_after = len(server.requests) + 1
    with pytest.raises(TeacherError) as failed:
        teacher.score(*sequences)
    (line,) = failed.value.lines
    assert line.startswith(f"{server.url}#math: the server has not answered for 0.3 s (")
    assert line.endswith("; start it, then give the command again with --resume, and a longer --remote-patience if it needs one")
    assert failed.value.exit_code == 1
    assert not isinstance(failed.value, InputError)


def test_a_server_that_stalls_is_given_up(teach, server):
    server.stall = 1.0
    started = time.monotonic()
    with pytest.raises(TeacherError, match=r"has not answered for 0\.1 s \(ReadTimeout"):
        teach(timeout=0.1, patience=0.1).score([[5, 6, 7]], [1])
    assert time.monotonic() - started < 0.9


def test_what_is_refused_for_good_is_not_asked_again(teach, server, sequences):
    server.served.remove("math")  # an adapter that was unloaded
    with pytest.raises(TeacherError, match=r"the server refuses a request \(404 The model `math` does not exist"):
        teach(workers=1).score(*sequences)
    assert len(server.requests) == 1


def test_an_error_ends_the_waiting_of_other_requests(teach, server, sequences):
    """One request waits for an hour, another one is refused."""
    server.errors = [(503, [("Retry-After", "3600")], "busy"), (400, [], "no")]
    started = time.monotonic()
    with pytest.raises(TeacherError, match=r"refuses a request \(400 no"):
        teach(workers=2, patience=3600).score(*sequences)
    assert time.monotonic() - started < 5


def test_the_key_is_sent_and_never_shown(teach, server, sequences, monkeypatch):
    server.key = "key-of-the-server"
    assert refusal(teach().check).endswith("set GOPD_REMOTE_API_KEY to its key")
    monkeypatch.setenv("GOPD_REMOTE_API_KEY", "wrong-key")
    line = refusal(teach().check)
    assert "401" in line
    assert "wrong-key" not in line
    monkeypatch.setenv("GOPD_REMOTE_API_KEY", server.key)
    teacher = teach()
    teacher.check()
    server.errors = [(400, [], f"what is Bearer {server.key}?")]
    with pytest.raises(TeacherError, match=r"what is Bearer \*\*\*\?") as failed:
        teacher.score(*sequences)
    assert server.key not in str(failed.value)
