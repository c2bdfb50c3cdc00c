"""`--horizon N`: only the first N tokens of a response are sampled, scored and learnt; what is measured is answered in full."""

import json

import pytest

from gopd_merge.casting import assembled, load_backbone
from gopd_merge.config import make_config
from gopd_merge.distill.answering import ANSWERED_BY, respond
from gopd_merge.distill.watch import Watch
from gopd_merge.distill.windows import window_of
from gopd_merge.distillation import METRICS, train_student
from gopd_merge.errors import InputError
from gopd_merge.forecast import Forecast
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent
from gopd_merge.usage import Clock

N = 6


@pytest.fixture
def config_of(adapters, tmp_path):
    """config_of(**options): a short merge of the embedded experts."""

    def make(**options):
        experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
        given = {"experts": experts, "output": tmp_path / "out.lora", "steps": 2, "batch_size": 8, "max_new_tokens": 30, "eval": False}
        return make_config(given | {"quantize": "none"} | options)

    return make


@pytest.mark.parametrize("method", ANSWERED_BY)
def test_every_method_is_taught_by_the_beginnings_of_the_responses_that_it_would_have_had(config_of, tmp_path, method):
    asked = {"prompt": "Tom has 5 pens. Tom loses 2. How many pens are left?", "response": "Tom has 5 - 2 = 3 pens left."}
    (tmp_path / "asked.jsonl").write_text(4 * f"{json.dumps(asked)}\n")
    config = config_of(method=method, prompts={domain: str(tmp_path / "asked.jsonl") for domain in ("math", "code")})
    inputs = read_inputs(config)
    prompts, domains, given = [asked["prompt"]] * 8, ["code"] * 4 + ["math"] * 4, [asked["response"]] * 8
    with assembled(load_backbone(config, inputs), config, inputs, print) as cast:
        found = [respond(cast, method, prompts, domains, given, c.trained_tokens, range(8)) for c in (config, config_of(horizon=N))]
    whole, cut = ([row[mask].tolist() for row, mask in zip(r.ids[:, r.prompt_width :], r.response_mask, strict=True)] for r in found)
    assert cut == [row[:N] for row in whole]
    assert any(len(row) > N for row in whole)
    assert found[1].capped.tolist() == [len(row) > N for row in whole]


def test_a_run_sees_no_token_beyond_the_horizon_and_says_how_many_responses_it_cut(config_of, tmp_path):
    rows, tokens = {}, {}
    for horizon in (N, None):
        config = config_of(horizon=horizon)
        inputs = read_inputs(config)
        folder = tmp_path / str(horizon)
        folder.mkdir()
        _, _, tokens[horizon] = train_student(load_backbone(config, inputs), config, inputs, folder, Clock(), Silent())
        rows[horizon] = [domain for line in (folder / METRICS).read_text().splitlines() for domain in json.loads(line)["domains"].values()]
    assert tokens[N] <= 2 * 8 * N < tokens[None]
    assert all(row["response_length"] <= N < other["response_length"] for row, other in zip(rows[N], rows[None], strict=True))
    assert {row["capped"] for row in rows[N]} == {None}
    assert sum(row["past_horizon"] for row in rows[N]) / len(rows[N]) > 0.9
    assert all(row["capped"] is not None and "past_horizon" not in row for row in rows[None])


def test_answers_that_the_horizon_cut_are_no_alarm():
    metrics = {"response_length": 6.0, "entropy": 1.0, "kl_to_target": 0.01, "reward": 0.02, "alpha": 1.0, "clipped_share": None}
    heard = {}
    for name, ending in (("horizon", {"capped": None, "past_horizon": 1.0}), ("limit", {"capped": 1.0})):
        watch = Watch(steps=40)
        rows = [metrics | ending | {"kl_to_target": 0.01 / (1 + step)} for step in range(10)]
        heard[name] = [text for step, row in enumerate(rows) for text in watch.look({"step": step + 1, "domains": {"math": row}})]
    assert heard["horizon"] == []
    assert len(heard["limit"]) == 1  # the control
    assert window_of([metrics | {"capped": None}] * 2).capped is None


def test_the_plan_counts_the_horizon_in_training_and_the_whole_answer_in_the_measurement(config_of):
    found = {}
    for horizon in (N, None):
        config = config_of(horizon=horizon, eval=True, max_new_tokens=200)
        found[horizon] = Forecast(config, read_inputs(config))
    assert found[N].work.response_tokens == 2 * 8 * N
    assert found[None].work.response_tokens == 2 * 8 * 200
    short, long = (found[horizon].memory.phases for horizon in (N, None))
    assert all(short[phase] < 0.6 * long[phase] for phase in ("rollout", "score", "update"))
    assert short["evaluate"] == long["evaluate"]


def test_a_prompt_that_fits_with_the_horizon_alone_is_trained_on(config_of, tmp_path):
    """The base's context has 512 tokens. Without the horizon the remedy names the limit, with one the horizon."""
    (tmp_path / "long.jsonl").write_text('{"prompt": "' + "seven " * 150 + '"}\n')
    prompts = {"math": str(tmp_path / "long.jsonl")}

    def forecast(**options):
        config = config_of(prompts=prompts, max_new_tokens=480, **options)
        return Forecast(config, read_inputs(config))

    longest = forecast(horizon=N).work.longest_prompt
    assert longest > 32
    with pytest.raises(
        InputError, match=r"context of 512 tokens with --max-new-tokens 480; lower --max-new-tokens, or name shorter prompts"
    ):
        forecast()
    with pytest.raises(InputError, match=r"context of 512 tokens with --horizon 480; lower --horizon, or name shorter prompts"):
        forecast(horizon=480)
