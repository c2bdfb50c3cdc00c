"""Strong to weak: experts on a larger base teach a student on the embedded one, by the real commands."""

import contextlib
import io
import json
import shutil
import subprocess

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gopd_merge import casting
from gopd_merge.casting import assembled, load_backbone
from gopd_merge.cli import main
from gopd_merge.config import make_config
from gopd_merge.distill.backbone import STUDENT, expert
from gopd_merge.distill.rollout import generate, row_seeds
from gopd_merge.distill.target import Scale, score
from gopd_merge.errors import InputError
from gopd_merge.forecast import Forecast
from gopd_merge.plan import read_inputs
from gopd_merge.report.plan import plan_text

DOMAINS = ("code", "math")
SHORT = ["--steps", "2", "--batch-size", "4", "--max-new-tokens", "12", "--quantize", "none"]


@pytest.fixture(scope="module")
def field(adapters, tmp_path_factory):
    """A folder with small-base, a random big-base of another width and depth with the same tokenizer, and two experts on the latter."""
    folder = tmp_path_factory.mktemp("field")
    shutil.copytree(adapters / "tiny-base", folder / "small-base")
    torch.manual_seed(7)
    config = LlamaConfig.from_pretrained(adapters / "tiny-base")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 192, 256, 3
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 6, 6, 32
    config.initializer_range = 0.1  # some tokens must be likelier than others, or no target differs from another
    LlamaForCausalLM(config).save_pretrained(folder / "big-base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(adapters / "tiny-base" / name, folder / "big-base" / name)
    for seed, domain in enumerate(DOMAINS):
        torch.manual_seed(seed)
        model = get_peft_model(
            LlamaForCausalLM.from_pretrained(folder / "big-base"),
            LoraConfig(
                r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
            ),
        )
        model.peft_config["default"].base_model_name_or_path = "big-base"
        model.save_pretrained(folder / f"{domain}.lora", save_embedding_layers=False)
        shutil.copytree(adapters / f"{domain}.lora" / "prompts", folder / f"{domain}.lora" / "prompts")
    return folder


BOTH = ["--experts", "code.lora", "math.lora", "--teacher-base", "big-base", "--base", "small-base"]


@pytest.fixture(scope="module")
def run(field):
    """The command in this process, in that folder: what it left with and printed."""

    def call(*arguments):
        with contextlib.chdir(field), contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="module")
def merged(run):
    """A merge with reward correction, measured on few questions: weak.lora."""
    done = run(*BOTH, *SHORT, "--eval-prompts", "4", "--alpha", "1.5", "--output", "weak.lora")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def config_of(field):
    def make(**options):
        experts = {d: str(field / f"{d}.lora") for d in DOMAINS}
        given = {"experts": experts, "teacher_base": str(field / "big-base"), "base": str(field / "small-base"), "quantize": "none"}
        return make_config({**given, "eval": False, "max_new_tokens": 12, "batch_size": 4, "steps": 2, **options})

    return make


def test_the_merge_runs_from_the_command_to_a_table(merged, field, config_of):
    assert "teachers big-base, full precision, with the experts; student on small-base" in merged.stderr
    manifest = json.loads((field / "weak.lora" / "merge.json").read_text())
    rows = {(row["method"], row["domain"]) for row in manifest["results"]}
    assert rows == {(method, domain) for method in ("base", "expert:code", "expert:math", "exopd") for domain in DOMAINS}
    assert manifest["base"]["name"] == "small-base"
    assert manifest["teacher_base"]["name"] == "big-base"
    student = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(field / "small-base"), field / "weak.lora")
    assert student.peft_config["default"].base_model_name_or_path == "small-base"
    # Its own base answers for the expert: word for word as Transformers has it say on that base, from the same seeds.
    path = field / "weak.lora" / "evaluation" / "answers" / "own.math.4.expert-math.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    asked = [json.loads(line)["prompt"] for line in (field / "math.lora" / "prompts" / "test.jsonl").read_text().splitlines()]
    prompts = [asked[int(answer["id"].rpartition("/")[2])] for answer in answers]
    (benchmark,) = [one for one in read_inputs(config_of(eval=True, eval_prompts=4)).test if one.domain == "math"]
    seeds = row_seeds(0, benchmark.suite.name, "math", benchmark.split, count=len(prompts))
    said = {domain: plain_answers(field / "big-base", field / f"{domain}.lora", prompts, seeds) for domain in DOMAINS}
    assert [answer["text"] for answer in answers] == said["math"] != said["code"]


def plain_answers(base, adapter, prompts, seeds):
    """Token by token without a cache: the largest of logit less log of an exponential variable is a draw from their softmax."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False) for p in prompts]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for _ in range(12):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
        noise = torch.stack([torch.empty(logits.shape[1]).exponential_(generator=generator) for generator in generators])
        ids = torch.cat([ids, (logits - noise.log()).argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    responses = ids[:, batch["input_ids"].shape[1] :].tolist()
    whole = [ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids for ids in responses]
    return tokenizer.batch_decode(whole, skip_special_tokens=True)


@pytest.mark.parametrize("rivals", ["average", "all"])
def test_a_comparison_is_refused_in_a_line(run, merged, rivals):
    refused = run("compare", "weak.lora", "--limit", "4", "--rivals", rivals)
    assert refused.returncode == 2
    assert refused.stderr == (
        "gopd-merge: weak.lora: was distilled from a larger base, so its experts are no rivals on its own; use gopd-merge eval\n"
    )


def test_it_can_be_measured_again_without_its_teachers(run, merged, field):
    answers = field / "weak.lora" / "evaluation" / "answers"
    before = {path.name: path.read_bytes() for path in answers.iterdir()}
    measured = run("eval", "weak.lora", "--limit", "4", "--json", "--quiet")
    assert measured.returncode == 0, measured.stderr
    document = json.loads(measured.stdout)
    assert {row["method"] for row in document["results"]} == {"base", "exopd"}
    assert {path.name: path.read_bytes() for path in answers.iterdir()} == before  # what was answered there is not asked again
    assert run("report", "weak.lora", "--format", "markdown", "--output", "-").returncode == 0


def test_the_plan_counts_both_bases(run, config_of, field):
    done = run("plan", *BOTH, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    sizes = {}
    for name in ("big-base", "small-base"):
        sizes[name] = sum(p.numel() * 4 for p in AutoModelForCausalLM.from_pretrained(field / name, dtype=torch.float32).parameters())
    assert plan["memory"]["base"] == pytest.approx(sum(sizes.values()), rel=0.01)
    assert plan["teacher_base"]["name"] == "big-base"
    assert plan["work"]["evaluated_answers"] == 4 * 2 * 1000  # base, two experts, merge
    assert "teachers  big-base, " in plan_text(plan)
    forecast = Forecast(config_of(), read_inputs(config_of()))
    heavy = forecast.memory_with(config_of(method="rkl"))
    assert heavy.phases["rollout"] > forecast.memory.phases["rollout"]  # the experts answer on the larger base


def log_probs_of(folder, adapter, rollout):
    """(N, V) of the response tokens, by a model of its own in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).double().eval()
    found = []
    for ids, mask, response in zip(rollout.ids, rollout.attention_mask, rollout.response_mask, strict=True):
        with torch.no_grad():
            logits = model(ids[mask.bool()].unsqueeze(0)).logits[0]
        found.append(logits[-int(response.sum()) - 1 : -1].log_softmax(-1))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("options", "keep", "against", "loaded"),
    [
        ({}, "big", "big", ["big-base"]),
        ({"reference": "teacher-base"}, "big", "big", ["big-base"]),
        ({"reference": "base"}, "small", "small", ["big-base"]),
        ({"reference": "teacher-base", "kl_reference": "base"}, "small", "big", ["big-base"]),
        ({"reference": "base", "kl_reference": "teacher-base"}, "big", "small", ["big-base"]),
    ],
)
def test_the_target_is_the_one_that_the_references_say(field, config_of, monkeypatch, options, keep, against, loaded):
    """log q = log π_keep + α [log π_T − log π_against] − log Z, with each model loaded by itself."""
    config = config_of(**options, alpha=1.5)
    inputs = read_inputs(config)
    backbone = load_backbone(config, inputs)
    taken = []
    original = casting.load_base
    monkeypatch.setattr(
        casting,
        "load_base",
        lambda base, *rest, **options: (taken.append(base.location.rpartition("/")[2]), original(base, *rest, **options))[1],
    )
    prompts = [prompt.prompt for source in inputs.prompts for prompt in source.prompts[:2]]
    rollout = generate(backbone, STUDENT, prompts, ["code", "code", "math", "math"], 8, range(4))
    with assembled(backbone, config, inputs, print) as cast:
        assert taken == loaded
        on = {name: set(model.peft.peft_config) for name, model in cast.models.items()}
        assert on == {"base": {STUDENT}, "teacher-base": {expert(domain) for domain in DOMAINS}}  # the experts are on theirs alone
        target = score(cast, rollout, Scale({"code": 1.5, "math": 1.5}), 3, 16)
        rows = torch.arange(rollout.num_tokens)
        found = target.log_probs(cast, rows, torch.zeros(rollout.num_tokens, cast.vocabulary))
    teacher = torch.cat(
        [
            log_probs_of(field / "big-base", field / f"{domain}.lora", rollout.rows(*at))
            for domain, at in (("code", (0, 2)), ("math", (2, 4)))
        ]
    )
    bases = {"big": log_probs_of(field / "big-base", None, rollout), "small": log_probs_of(field / "small-base", None, rollout)}
    expected = (bases[keep] + 1.5 * (teacher - bases[against])).log_softmax(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    other = "small" if against == "big" else "big"
    assert (found - (bases[keep] + 1.5 * (teacher - bases[other])).log_softmax(-1)).abs().max() > 0.5  # the control


def test_other_tokenizers_are_refused_before_anything_loads(run, field, tmp_path):
    base = shutil.copytree(field / "small-base", tmp_path / "other-base")
    content = json.loads((base / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    first, second = [token for token in vocab if token.isalpha()][-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (base / "tokenizer.json").write_text(json.dumps(content))
    options = ["--experts", "code.lora", "math.lora", "--teacher-base", "big-base", "--base", base, *SHORT, "--output", "no.lora"]
    done = run(*options)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{base} and big-base have different tokenizers (2 tokens, such as" in line
    assert line.endswith("take models of one family")
    assert run("plan", *options).returncode == 2
    assert not (field / "no.lora").exists()


def test_what_an_adapter_of_the_other_base_cannot_be_is_refused(config_of, adapters, field):
    with pytest.raises(InputError, match="--teacher-base is what the experts are on; name the student's own with --base"):
        config_of(base=None)
    with pytest.raises(InputError, match="was trained on another base"):
        read_inputs(config_of(start=str(field / "math.lora")))
    with pytest.raises(InputError, match="was trained on another base"):
        read_inputs(config_of(teacher_base=str(field / "small-base")))
    with pytest.raises(InputError, match="was trained on another base"):
        read_inputs(config_of(reference=str(adapters / "math.lora")))  # a reference beside the experts
    assert read_inputs(config_of(start=str(adapters / "math.lora"))).start  # the control: it is of the student's base


@pytest.mark.parametrize("method", ["seqkd", "rkl"])
def test_what_the_experts_answer_is_learnt_from_the_larger_base_too(run, field, method):
    done = run(*BOTH, *SHORT, "--no-eval", "--method", method, "--output", f"{method}.lora", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (field / f"{method}.lora" / "merge.json").is_file()
