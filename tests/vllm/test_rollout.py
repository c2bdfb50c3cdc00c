"""What vLLM samples is the student of this moment, with the log-probs that it has here: in processes beside this one, and on a server."""

import math
from dataclasses import dataclass

import pytest
import torch

from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.engines import EngineError, OtherEngine, log_prob_gap
from gopd_merge.distill.rollout import encode, generate
from gopd_merge.distill.vllm_engine import REQUESTS, Needs, VllmHere
from gopd_merge.distill.vllm_server import VllmServer
from gopd_merge.errors import InputError

LONGEST, LIMIT = 160, 48
TOLERANCE = 1e-5  # nats a token, mean: float32 on both sides, sums in another order; 1e-7 was seen
WORST = 1e-3  # nats, of one token
PROMPTS = [
    "Tom has 5 pens. Tom loses 2. How many pens are left?",
    "Write f(xs): reverse it and return the sum.",
    "Ana has 12 books. Ana buys 2 boxes of 4. Ana gives 3 to Ben. How many books does Ana have?",
    "Write f(xs): sort it from low to high, drop the last 2 and return the largest.",
] * 4
DOMAINS = ["math", "code"] * 8


@dataclass
class Notes:
    said: list

    def __call__(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def here(student, biased_base):
    notes = Notes([])
    sampler = VllmHere(Needs(str(biased_base), torch.float32, "nf4", 8, LONGEST, REQUESTS, 0), notes)
    assert "holds the base unquantised" in notes.said[1]
    engine = OtherEngine(student, student.vocabulary, sampler, None, "tiny-base")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def there(student, server_url, tmp_path_factory):
    sampler = VllmServer(server_url, rank=8, patience=60.0)
    sampler.check(LONGEST)
    engine = OtherEngine(student, student.vocabulary, sampler, tmp_path_factory.mktemp("shared"), "tiny-base")
    yield engine
    engine.close()


@pytest.fixture(params=["here", "there"])
def engine(request):
    return request.getfixturevalue(request.param)


def own_log_probs(backbone, rollout):
    """(N,) of the tokens of the rollout, in float64, by the student that is here."""
    hidden = rollout.predicting(backbone.hidden(STUDENT, rollout.ids, rollout.attention_mask))
    log_probs = backbone.logits(hidden).double().log_softmax(-1)
    return log_probs.gather(1, rollout.response_ids().unsqueeze(1)).squeeze(1)


def test_the_log_probs_of_the_sampled_tokens_are_the_students(engine, student, move):
    move(student, seed=1)
    rollout = engine.sample(PROMPTS, DOMAINS, LIMIT, range(len(PROMPTS)))
    assert rollout.num_tokens > 200
    with torch.no_grad():
        gap = (own_log_probs(student, rollout) - rollout.sampled_log_probs[rollout.response_mask]).abs()
    assert float(gap.mean()) < TOLERANCE
    assert float(gap.max()) < WORST
    move(student, seed=2)  # the control: another adapter on the same base
    assert log_prob_gap(student, rollout, student.vocabulary) > 100 * TOLERANCE


def test_a_new_student_answers_and_the_old_one_again_as_before(engine, student, move):
    found = []
    for seed in (1, 2, 1):
        move(student, seed)
        rollout = engine.sample(PROMPTS, DOMAINS, LIMIT, range(len(PROMPTS)))
        assert log_prob_gap(student, rollout, student.vocabulary) < TOLERANCE
        found.append([row[mask].tolist() for row, mask in zip(rollout.ids[:, rollout.prompt_width :], rollout.response_mask, strict=True)])
    first, second, again = found
    assert sum(one != other for one, other in zip(first, second, strict=True)) > len(PROMPTS) / 4
    assert sum(one == other for one, other in zip(first, again, strict=True)) > 0.9 * len(PROMPTS)  # but for rounding


def test_a_seed_decides_what_is_drawn(engine, student, move):
    move(student, seed=1)
    one, other = (engine.sample(PROMPTS[:1] * 16, DOMAINS[:1] * 16, 8, seeds) for seeds in ([5] * 16, range(16)))
    assert len({tuple(row) for row in one.ids.tolist()}) == 1
    assert len({tuple(row) for row in other.ids.tolist()}) > 1


@torch.no_grad()
def first_token(backbone, move, seed):
    """(V,) probabilities of the first token of an answer, of the student that the seed names."""
    move(backbone, seed)
    ids, mask = encode(backbone, PROMPTS[:1])
    return backbone.logits(backbone.hidden(STUDENT, ids, mask)[:, -1]).double().softmax(-1)[0]


def test_what_is_drawn_follows_the_whole_distribution(engine, student, move):
    """The first token of 2,000 answers to one prompt, against its probabilities: the base's own cuts would leave two tokens of them.

    So many prompts are more than vLLM reads at once, and on a CPU it would end where it splits one.
    """
    count = 2000
    broad = (found for seed in range(100) if ((found := first_token(student, move, seed)) * count >= 5).sum() > 8)
    expected = next(broad)  # (V,)
    drawn = engine.sample(PROMPTS[:1] * count, DOMAINS[:1] * count, 1, range(count)).response_ids()
    observed = torch.bincount(drawn, minlength=student.vocabulary).double()
    common = expected * count >= 5
    pairs = [(observed[i], expected[i] * count) for i in common.nonzero().squeeze(1)]
    pairs.append((observed[~common].sum(), expected[~common].sum() * count))
    statistic = sum(float((o - e) ** 2 / e) for o, e in pairs if e > 0)
    freedom = len(pairs) - 1
    assert freedom > 5
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations
    cut = sum(float((o - e) ** 2 / e) for o, e in [(count, expected.max() * count), (0, (1 - expected.max()) * count)])
    assert cut > 10 * statistic  # the control: the likeliest token alone


def test_responses_end_where_they_end_here(engine, student, move):
    move(student, seed=0)
    with torch.no_grad():
        for parameter in student.student_parameters():
            parameter.zero_()  # the base itself, which ends its answers
    there = engine.sample(PROMPTS, DOMAINS, 96, range(len(PROMPTS)))
    here = generate(student, STUDENT, PROMPTS, DOMAINS, 96, range(len(PROMPTS)))
    ended = ~there.capped
    assert ended.sum() > len(PROMPTS) / 2
    last = there.ids[:, there.prompt_width :].gather(1, there.response_mask.sum(1, keepdim=True) - 1).squeeze(1)
    assert (last[ended] == student.tokenizer.eos_token_id).all()
    lengths = [float(rollout.response_mask.sum(1).float().mean()) for rollout in (there, here)]
    assert 0.7 < lengths[0] / lengths[1] < 1.4


def test_tokens_that_only_pad_the_head_are_never_drawn(engine, student, move, tmp_path):
    """As if the largest id that is drawn without that, and all beyond it, were padding."""
    move(student, seed=4)
    highest = int(engine.sample(PROMPTS, DOMAINS, LIMIT, range(len(PROMPTS))).response_ids().max())
    narrow = OtherEngine(student, highest, engine._sampler, tmp_path, "tiny-base")
    rollout = narrow.sample(PROMPTS, DOMAINS, LIMIT, range(len(PROMPTS)))
    assert int(rollout.response_ids().max()) < highest


def test_the_check_passes_and_says_how_near_they_are(engine, student, move):
    move(student, seed=1)
    notes = Notes([])
    engine.check(PROMPTS, LIMIT, notes)
    (note,) = notes.said
    assert "importance weights make up for that" in note


def test_a_real_server_says_what_the_messages_expect(there, student, server_url, tmp_path):
    sampler = VllmServer(server_url, rank=16, patience=5.0)
    with pytest.raises(InputError, match=f"takes {LONGEST} tokens at once, where this run has up to {LONGEST + 1}"):
        sampler.check(LONGEST + 1)
    with pytest.raises(EngineError, match=r"does not see .*, where the student is written; run it on this machine"):
        sampler.load("gopd-nowhere", tmp_path / "nowhere")
    student.save_student(tmp_path / "large", "tiny-base", None)
    config = tmp_path / "large" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 16'))
    with pytest.raises(EngineError, match=r"cannot load the student \(.*; start it as .* --max-lora-rank 16"):
        sampler.load("gopd-large", tmp_path / "large")
    student.save_student(tmp_path / "twice", "tiny-base", None)
    for _ in range(2):  # by two processes of one run
        sampler.load("gopd-twice", tmp_path / "twice")
    assert "gopd-twice" in sampler._server.models()
    for _ in range(2):
        sampler.unload("gopd-twice")
    assert "gopd-twice" not in sampler._server.models()
    sampler.close()
