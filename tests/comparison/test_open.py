"""Domains without a verifier: the experts' own likelihoods score them, and a judge that is asked in both orders."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scipy.stats import binomtest

from gopd_merge.comparison.run import compare
from gopd_merge.errors import GopdError, InputError
from gopd_merge.eval_config import EvalConfig
from gopd_merge.evaluate import judge as judging
from gopd_merge.evaluate.judge import Judge, judge_pairs
from gopd_merge.options import checked

PAIRS = [(f"q{i}", "Say more.", "long " * (i + 2), "short") for i in range(6)]


def longer(first, second):
    return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "TIE"


class StandInJudge(ThreadingHTTPServer):
    """A server that speaks the chat API over the loopback; a rule stands in for the model."""

    def __init__(self, rule):
        self.rule, self.requests, self.fail_after = rule, [], None
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"data": [{"id": "stand-in"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        if self.server.fail_after is not None and len(self.server.requests) > self.server.fail_after:
            self.send_error(500)
            return
        text = request["messages"][0]["content"]
        first, second = text.split("[answer A]\n")[1].split("\n\n[answer B]\n")
        second = second.rsplit("\n\nReply with", 1)[0]
        message = {"role": "assistant", "content": self.server.rule(first, second)}
        self.reply({"id": "1", "created": 0, "model": "stand-in", "object": "chat.completion", "system_fingerprint": "",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})  # fmt: skip

    def reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Start a stand-in judge: serve(rule) -> server."""
    monkeypatch.setattr(judging, "PATIENCE", 0.02)
    servers = []

    def start(rule):
        servers.append(StandInJudge(rule))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


def silent(done, total):
    pass


@pytest.mark.parametrize(
    ("rule", "values", "swayed"),
    [
        (longer, [1] * 6, 0),
        (lambda first, second: "A", [0] * 6, 6),  # one that prefers what it reads first says nothing about the answers
        (lambda first, second: "B is better than A", [0] * 6, 0),  # not readable
        (lambda first, second: "tie", [0] * 6, 0),
    ],
)
def test_only_a_verdict_that_survives_the_swap_counts(serve, tmp_path, rule, values, swayed):
    server = serve(rule)
    found = judge_pairs(Judge(server.url), PAIRS, "exopd", "ties", tmp_path / "judged.jsonl", silent)
    assert [one.value for one in found] == values
    assert sum(one.swayed for one in found) == swayed
    assert len(server.requests) == 2 * len(PAIRS)
    texts = [request["messages"][0]["content"] for request in server.requests[:2]]
    assert texts[0].index("long") < texts[0].index("short")
    assert texts[1].index("short") < texts[1].index("long")


def test_a_judge_that_dies_is_named_and_what_it_judged_is_not_asked_again(serve, tmp_path):
    server = serve(longer)
    server.fail_after = 4
    file = tmp_path / "judged.jsonl"
    with pytest.raises(GopdError, match="what was judged is kept") as failed:
        judge_pairs(Judge(server.url), PAIRS, "exopd", "ties", file, silent)
    assert server.url in str(failed.value)
    with file.open("ab") as lines:
        lines.write(b'{"id": "q2", "me')  # a write that was cut off
    asked = len(server.requests)
    server.fail_after = None
    assert [one.value for one in judge_pairs(Judge(server.url), PAIRS, "exopd", "ties", file, silent)] == [1] * 6
    assert len(server.requests) - asked == 8
    with pytest.raises(InputError, match="other answers; give --overwrite"):
        judge_pairs(Judge(server.url), PAIRS[:3], "exopd", "ties", file, silent)


def test_no_server_and_another_model_are_refused(serve):
    with pytest.raises(InputError, match=r"--judge http://127\.0\.0\.1:9: no OpenAI-compatible server"):
        Judge("http://127.0.0.1:9")
    with pytest.raises(InputError, match="it serves stand-in, not gpt-7"):
        Judge(serve(longer).url, "gpt-7")


def test_an_open_domain_is_scored_by_its_expert_and_judged(compared, merged, serve):
    """An expert's own answers are likelier to it than to the base, the base's are not: by Gibbs' inequality, in the mean."""
    server = serve(longer)
    found = compared(merged, suite=["open"], judge=server.url, limit=20)
    score = {(r.method, r.domain): r for r in found.results}
    for domain in ("math", "code"):
        assert score[f"expert:{domain}", domain].score > 0 > score["base", domain].score
    assert {r.metric for r in found.results} == {"expert_reward"}
    assert all(r.low < r.score < r.high for r in found.results)
    judged = [c for c in found.comparisons if c.domain.endswith("judged")]
    assert [(c.domain, c.rival) for c in judged] == [
        ("code, judged", "expert:code"), ("code, judged", "average"), ("math, judged", "expert:math"), ("math, judged", "average"),
    ]  # fmt: skip
    length = {}
    for name in ("exopd-alpha-2-seed-0", "expert-math"):
        rows = (found.folder / "answers" / f"open.math.20.{name}.jsonl").read_text().splitlines()[1:]
        length[name] = {row["id"]: len(row["text"]) for row in map(json.loads, rows)}
    ours, theirs = length.values()
    wins, losses = sum(ours[id] > theirs[id] for id in ours), sum(ours[id] < theirs[id] for id in ours)
    assert judged[2].difference == pytest.approx((wins - losses) / 20)
    assert judged[2].p == pytest.approx(binomtest(wins, wins + losses).pvalue if wins + losses else 1.0)
    assert found.document["judge"] == {"model": "stand-in", "pairs": 80, "swayed": 0, "unreadable": 0}
    assert server.url not in json.dumps(found.document["judge"])
    assert "judged" in found.table


def test_single_adapters_are_scored_in_each_others_open_domains(adapters, tmp_path):
    options = {"adapters": [str(adapters / f"{d}.lora") for d in ("math", "code")], "suite": ["open"], "limit": 6, "max_new_tokens": 24}
    found = compare(checked(EvalConfig, {**options, "output": tmp_path / "out"}), "gopd-merge eval")
    score = {(r.method, r.domain): r.score for r in found.results}
    assert score["expert:math", "math"] > score["expert:code", "math"]
    assert score["expert:code", "code"] > score["expert:math", "code"]
