"""A merge whose teachers are behind servers: it learns what it learns from the same experts here, and survives what servers do."""

import json
import threading
from dataclasses import dataclass, field, replace

import pytest
import torch
from safetensors.torch import load_file

from gopd_merge import server as server_module
from gopd_merge.casting import assembled, load_backbone
from gopd_merge.cli import main
from gopd_merge.comparison.training import train_on
from gopd_merge.config import make_config
from gopd_merge.distill.answering import respond
from gopd_merge.distill.backbone import REFERENCE, STUDENT, expert
from gopd_merge.distill.objective import reverse_kl, sampled
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale, score
from gopd_merge.distill.update import accumulate_gradient
from gopd_merge.errors import InputError
from gopd_merge.plan import read_inputs
from gopd_merge.report.progress import Silent

DOMAINS = ("code", "math")


@dataclass
class Notes(Silent):
    notes: list = field(default_factory=list)
    steps: list = field(default_factory=list)

    def note(self, text):
        self.notes.append(text)

    def step(self, step, steps, metrics):
        self.steps.append(step)


@pytest.fixture
def config_of(adapters, server, tmp_path):
    """config_of(remote=("math",), **options): a short merge in which those experts are behind the server."""

    def make(remote=DOMAINS, **options):
        here = {domain: str(adapters / f"{domain}.lora") for domain in DOMAINS}
        experts = here | {domain: f"{server.url}#{domain}" for domain in remote}
        defaults = {
            "experts": {domain: experts[domain] for domain in options.pop("domains", DOMAINS)},
            "base": str(adapters / "tiny-base"),
            "alpha": 2.0,
            "estimator": "topk",
            "top_k": 20,
            "steps": 1,
            "warmup_steps": 0,
            "batch_size": 8,
            "max_new_tokens": 16,
            "quantize": "none",
            "lora_rank": 4,
            "eval": False,
            "output": tmp_path / f"{len(list(tmp_path.iterdir()))}.lora",
            "remote_patience": 20,
        }
        prompts = {domain: f"{here[domain]}/prompts/train.jsonl" for domain in defaults["experts"]}
        return make_config({**defaults, "prompts": prompts, **options})

    return make


@pytest.fixture(scope="module")
def backbone(adapters):
    """The base with both experts, as a merge of local ones has it; what remote merges find there beside the student changes nothing."""
    config = make_config({"experts": {d: str(adapters / f"{d}.lora") for d in DOMAINS}, "quantize": "none", "lora_rank": 4})
    return load_backbone(config, read_inputs(config))


@pytest.fixture
def train(backbone):
    """train(config) -> the rows of metrics.jsonl and the adapter's tensors; `listener` hears it."""

    def run(config, listener=None):
        inputs = replace(read_inputs(config), targets=("q_proj", "v_proj"))
        train_on(backbone, config, inputs, listener or Silent())
        rows = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
        return rows, load_file(config.output / "adapter_model.safetensors")

    return run


def gap(one, other):
    """How far apart two adapters are, relative to the first."""
    names = [name for name in one if "lora_B" in name]  # where a fresh student has zeros
    difference = sum(float((one[name] - other[name]).square().sum()) for name in names)
    return (difference / sum(float(one[name].square().sum()) for name in names)) ** 0.5


def test_teachers_behind_a_server_teach_what_they_teach_here(train, config_of):
    (there,), _ = train(config_of())
    (here,), _ = train(config_of(remote=(), estimator="full"))
    assert there["kl_to_target"] == pytest.approx(here["kl_to_target"], rel=0.1)
    assert there["grad_norm"] == pytest.approx(here["grad_norm"], rel=0.1)
    for domain in DOMAINS:
        for name in ("reward", "drift", "entropy", "response_length", "alpha"):
            assert there["domains"][domain][name] == pytest.approx(here["domains"][domain][name], rel=1e-3, abs=1e-3)
        assert there["domains"][domain]["kl_to_target"] == pytest.approx(here["domains"][domain]["kl_to_target"], rel=0.1)
    (other,), _ = train(config_of(alpha=1.0))  # the control: α reaches the target
    assert other["kl_to_target"] < 0.8 * there["kl_to_target"]


def test_the_loss_of_a_remote_merge_decreases(train, config_of):
    rows, _ = train(config_of(steps=8, batch_size=16, max_new_tokens=16, learning_rate=0.02))
    assert sum(row["kl_to_target"] for row in rows[-3:]) < 0.75 * sum(row["kl_to_target"] for row in rows[:3])


def scored(backbone, config):
    """A student that is no longer its base, its rollout, and the gradient of its loss against remote teachers."""
    inputs = read_inputs(config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.student_parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    prompts = [prompt.prompt for source in inputs.prompts for prompt in source.prompts[:3]]
    rollout = generate(backbone, STUDENT, prompts, [s.domain for s in inputs.prompts for _ in range(3)], 16, range(len(prompts)))
    with assembled(backbone, config, inputs, print) as cast:
        scale = Scale({domain: config.alpha_of(domain) for domain in config.domains})
        target = score(cast, rollout, scale, 4, 16, config.top_k if config.estimator == "topk" else 0)
        accumulate_gradient(cast, rollout, target, config.estimator, 4, 16, config.top_k)
    gradient = [parameter.grad.clone() for parameter in backbone.student_parameters()]
    for parameter in backbone.student_parameters():
        parameter.grad = None
    return rollout, gradient


def logits_of(backbone, rollout, role):
    return backbone.logits(rollout.predicting(backbone.hidden(role, rollout.ids, rollout.attention_mask)), role)


def by_domain(backbone, rollout):
    """(N, V) logits of each token's own expert."""
    lengths = rollout.response_mask.sum(1)
    found = {domain: logits_of(backbone, rollout, expert(domain)) for domain in DOMAINS}
    names = [domain for domain, length in zip(rollout.domains, lengths.tolist(), strict=True) for _ in range(length)]
    return torch.stack([found[name][row] for row, name in enumerate(names)])


def gradient_of(backbone, loss):
    loss.mean().backward()
    found = [parameter.grad.clone() for parameter in backbone.student_parameters()]
    for parameter in backbone.student_parameters():
        parameter.grad = None
    return found


def distance(one, other):
    norm = sum(float(g.square().sum()) for g in one) ** 0.5
    return sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)) ** 0.5 / norm


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_sampled_gradient_is_the_papers_written_out(backbone, config_of, alpha):
    """Equation 14 with experts and base that are here. The local estimator has log Z(s) less in each advantage, which is 0 at α = 1."""
    rollout, gradient = scored(backbone, config_of(estimator="sampled", alpha=alpha))
    ids = rollout.response_ids().unsqueeze(-1)
    with torch.no_grad():
        log_teacher = by_domain(backbone, rollout).log_softmax(-1)
        log_base = logits_of(backbone, rollout, REFERENCE).log_softmax(-1)
    log_p = logits_of(backbone, rollout, STUDENT).log_softmax(-1).gather(1, ids)
    reward = (log_teacher - log_base).gather(1, ids)
    advantage = alpha * reward - (log_p.detach() - log_base.gather(1, ids))
    assert distance(gradient_of(backbone, -advantage * log_p), gradient) < 1e-3
    log_q = (alpha * log_teacher + (1 - alpha) * log_base).log_softmax(-1)
    local = gradient_of(backbone, sampled(logits_of(backbone, rollout, STUDENT), log_q, ids.squeeze(-1)))
    assert (distance(local, gradient) < 1e-3) == (alpha == 1.0)


@pytest.mark.parametrize("remote", [DOMAINS, ("math",)])
def test_the_topk_gradient_is_that_of_its_buckets(backbone, config_of, remote):
    """k = 3 of 512, so that buckets matter: the k likeliest of a teacher there, of the target here, and one for all others."""
    rollout, gradient = scored(backbone, config_of(remote=remote, top_k=3))
    with torch.no_grad():
        log_teacher = by_domain(backbone, rollout).log_softmax(-1)
        log_base = logits_of(backbone, rollout, REFERENCE).log_softmax(-1)
        target = (2 * log_teacher - log_base).log_softmax(-1)
    lengths = rollout.response_mask.sum(1)
    is_remote = torch.tensor([domain in remote for domain in rollout.domains]).repeat_interleave(lengths)
    log_p = logits_of(backbone, rollout, STUDENT).log_softmax(-1)
    losses = []
    for p, teacher, base, q, there in zip(log_p, log_teacher, log_base, target, is_remote, strict=True):
        top = (teacher if there else q).topk(3).indices
        rest = torch.ones(512, dtype=torch.bool).index_fill(0, top, False)

        def buckets(log_probs, top=top, rest=rest):
            return torch.cat([log_probs[top], log_probs[rest].logsumexp(0, keepdim=True)])

        log_q = (2 * buckets(teacher) - buckets(base)).log_softmax(0) if there else buckets(q)
        losses.append((buckets(p).exp() * (buckets(p) - log_q)).sum())
    assert distance(gradient_of(backbone, torch.stack(losses)), gradient) < 2e-3
    ids = rollout.response_ids()
    whole = gradient_of(backbone, reverse_kl(logits_of(backbone, rollout, STUDENT), target, ids))
    assert distance(whole, gradient) > 0.02  # the control: so few buckets are not the whole


def test_an_expert_here_and_one_there_teach_side_by_side(train, config_of, server):
    (mixed,), tensors = train(config_of(remote=("math",)))
    assert {request["model"] for request in server.requests} == {"math"}
    (here,), local = train(config_of(remote=(), estimator="full"))
    assert mixed["kl_to_target"] == pytest.approx(here["kl_to_target"], rel=0.1)
    _, other = train(config_of(remote=(), estimator="full", domains=("code",)))
    assert gap(local, tensors) < 0.5 * gap(local, other)  # the control; AdamW's first step has the same size in each direction


def test_remote_experts_alone_need_a_base_and_get_a_student_of_their_own(config_of, adapters, capsys):
    config = config_of(lora_rank=None, base=None)
    with pytest.raises(InputError, match=r"no adapter here says which one the student is for; name it with --base"):
        read_inputs(config)
    config = config_of(lora_rank=None)
    inputs = read_inputs(config)
    assert (inputs.experts, inputs.lora_rank) == ((), 16)
    assert inputs.targets == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert inputs.test == ()
    with pytest.raises(InputError, match=r"math: its expert is behind a server, so no prompts come with it; name some with --prompts"):
        read_inputs(config.model_copy(update={"prompts": {"code": config.prompts["code"]}}))
    shown = ["plan", "--experts", *(f"{d}={config.experts[d]}" for d in DOMAINS), "--base", adapters / "tiny-base", "--estimator", "topk"]
    assert main([*map(str, shown), "--prompts", *(f"{d}={config.prompts[d]}" for d in DOMAINS)]) == 0
    assert f"code, behind {config.experts['code']}" in capsys.readouterr().out


@pytest.fixture
def command(config_of, tmp_path, monkeypatch, capsys):
    """command(*arguments, **options): the merge by the command line, in this process: exit code, stdout and the lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, **options):
        config = config_of(**options)
        given = [f"{d}={path}" for d, path in config.experts.items()]
        prompts = [f"{d}={path}" for d, path in config.prompts.items()]
        names = ("base", "alpha", "estimator", "top_k", "steps", "batch_size", "max_new_tokens", "quantize", "lora_rank", "remote_patience")
        flags = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
        argv = ["--experts", *given, "--prompts", *prompts, *flags, "--method", config.method, *arguments]
        code = main([str(text) for text in argv])
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return run


def test_by_the_command_line_from_the_server_to_an_adapter(command, server, tmp_path):
    code, out, err = command("--eval-prompts", "4", steps=2, remote=("math",), max_new_tokens=24)
    assert code == 0, err
    assert "merged.lora written and verified" in out
    assert [line for line in err if "experts" in line or f"{server.url}#math" in line][1] == f"         math  {server.url}#math"
    assert "note     math: not measured, its expert is behind a server" in err
    manifest = json.loads((tmp_path / "merged.lora" / "merge.json").read_text())
    assert list(manifest["inputs"]) == ["code", "math"]
    source = manifest["inputs"]["math"].pop("prompt_source")
    assert (source["read"], source["dropped"], source["source"].endswith("math.lora/prompts/train.jsonl")) == (2000, {}, True)
    assert manifest["inputs"]["math"] == {
        "name": f"{server.url}#math", "commit": None, "sha256": None, "rank": None, "targets": [], "warnings": [], "licence": None,
        "prompts": 2000,
    }  # fmt: skip
    assert {row["method"] for row in manifest["results"]} == {"base", "expert:code", "exopd"}  # one expert has no average
    assert "| math | math, behind a server |" in (tmp_path / "merged.lora" / "README.md").read_text()
    assert main(["compare", "merged.lora", "--limit", "4"]) == 2
    assert main(["eval", "merged.lora", "--limit", "4", "--quiet"]) == 0
    again = main(["--config", "merged.lora/merge.json", "--output", "again.lora", "--no-eval", "--quiet"])
    assert again == 0
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("merged.lora", "again.lora"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_comparison_that_needs_a_remote_expert_is_refused_in_a_line(command, adapters, tmp_path, capsys):
    assert command("--no-eval", "--quiet", remote=("math",))[0] == 0
    assert main(["compare", "merged.lora", "--limit", "4"]) == 2
    assert capsys.readouterr().err == (
        "gopd-merge: merged.lora: its math expert is behind a server, so it cannot be measured; "
        "name the adapters with --experts math=PATH, or use gopd-merge eval\n"
    )
    experts = ["--experts", f"math={adapters / 'math.lora'}", f"code={adapters / 'code.lora'}"]
    assert main(["compare", "merged.lora", "--limit", "4", "--rivals", "average", "--quiet", *experts]) == 0  # it is here as well


def test_a_server_that_dies_is_waited_for_and_the_run_goes_on(train, config_of, server, tmp_path):
    options = {"steps": 3, "batch_size": 4, "max_new_tokens": 8, "domains": ("math",)}
    _, expected = train(config_of(**options))
    listener = Notes()
    server.die_after = len(server.requests) + 6  # the check's one, and a part of the second step
    config = config_of(**options)
    saved = []

    def come_back():
        partial = config.output.with_name(config.output.name + ".partial")
        saved.append((len(listener.steps), (partial / "checkpoints" / "step-000001" / "adapter_model.safetensors").is_file()))
        server.start()

    timer = threading.Timer(3.0, come_back)
    timer.start()
    _, tensors = train(config, listener)
    assert saved == [(1, True)]  # while it waited
    away, back = listener.notes
    assert away.startswith(f"{server.url}#math does not answer (")
    assert away.endswith("; trying again for 20 s")
    assert back == f"{server.url}#math answers again"
    assert all(torch.equal(expected[name], tensors[name]) for name in expected)


def test_a_server_that_stays_away_ends_the_run_with_one_line_and_what_was_learnt(command, server, tmp_path):
    server.die_after = 1 + 8 + 3  # the check, the first step, and a part of the second
    code, out, err = command("--no-eval", "--quiet", steps=3, domains=("math",), remote=("math",), remote_patience=0.3)
    assert (code, out) == (1, "")
    (line,) = err
    assert line.startswith(f"gopd-merge: {server.url}#math: the server has not answered for 0.3 s (")
    assert line.endswith("step 1 is saved, go on with: gopd-merge resume merged.lora")
    assert not (tmp_path / "merged.lora").exists()
    partial = tmp_path / "merged.lora.partial"
    assert len((partial / "metrics.jsonl").read_text().splitlines()) == 1
    student = load_file(partial / "checkpoints" / "step-000001" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in student.items() if "lora_B" in name)
    assert not (partial / "merge.json").exists()


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"vocabulary": lambda token_id: (token_id + 1) % 512}, "answers with another model's vocabulary"),
        ({"log_probs": "ignored"}, "learn from its samples with --method seqkd"),
        ({"served": ["base", "code"]}, "it serves base, code, not math; name one of those after #"),
    ],
)
def test_a_server_that_cannot_teach_is_refused_before_any_training(command, server, tmp_path, fault, problem):
    for name, value in fault.items():
        setattr(server, name, value)
    code, out, err = command("--no-eval", "--quiet", domains=("math",), remote=("math",))
    assert (code, out) == (2, "")
    (line,) = err
    assert line.startswith(f"gopd-merge: {server.url}#math: ")
    assert problem in line
    assert not list(tmp_path.glob("merged.lora*"))


def test_prompts_too_long_for_the_server_are_refused(command, server, remote_server, monkeypatch):
    monkeypatch.setattr(remote_server, "MAX_MODEL_LEN", 64)
    code, _, (line,) = command("--no-eval", "--quiet", domains=("math",), remote=("math",), max_new_tokens=40)
    assert code == 2
    assert "takes 64 tokens at once, where this run has up to " in line
    assert "lower --max-new-tokens" in line


def test_connections_are_closed_however_the_run_ends(backbone, config_of, server, monkeypatch):
    closed = []
    close = server_module.Server.close
    monkeypatch.setattr(server_module.Server, "close", lambda self: (closed.append(self), close(self))[1])
    config = config_of()
    inputs = read_inputs(config)
    with assembled(backbone, config, inputs, print):
        assert closed == []
    assert len(closed) == 2
    with pytest.raises(ZeroDivisionError), assembled(backbone, config, inputs, print):
        1 / 0  # noqa: B018
    assert len(closed) == 4
    server.served.remove("math")  # the second one is refused
    with pytest.raises(InputError), assembled(backbone, config, inputs, print):
        pass
    assert len(closed) == 6


@pytest.mark.parametrize("kind", ["yes", "refused"])
def test_an_api_without_log_probs_teaches_by_what_it_writes(train, backbone, config_of, server, kind):
    server.log_probs, server.standard = kind, kind == "refused"
    listener = Notes()
    options = {"method": "seqkd", "estimator": "full", "alpha": 1.0}
    config = config_of(**options, steps=3, batch_size=8, max_new_tokens=24, learning_rate=0.02)
    rows, tensors = train(config, listener)
    assert any("cannot be compared" in note for note in listener.notes) == (kind == "refused")
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert {row["kl_to_target"] for row in rows} == {None}
    inputs = read_inputs(config)
    prompts = [prompt.prompt for source in inputs.prompts for prompt in source.prompts[:4]]
    domains = [source.domain for source in inputs.prompts for _ in range(4)]
    with assembled(backbone, config, inputs, print) as cast:
        rollout = respond(cast, "seqkd", prompts, domains, [None] * 8, 24, range(8))
    assert rollout.domains == tuple(domains)
    surprise = {}
    for role in (REFERENCE, STUDENT):
        with torch.no_grad():
            log_probs = logits_of(backbone, rollout, role).log_softmax(-1)
        surprise[role] = -float(log_probs.gather(1, rollout.response_ids().unsqueeze(-1)).mean())
    assert surprise[STUDENT] < surprise[REFERENCE]  # it learnt them
