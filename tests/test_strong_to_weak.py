"""Strong to weak: experts on a larger base teach a student on the embedded one, by the real commands."""

import json
import shutil
import subprocess

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gopd_merge import casting
from gopd_merge.casting import assembled
from gopd_merge.cli import main
from gopd_merge.config import make_config
from gopd_merge.distill.backbone import STUDENT
from gopd_merge.distill.rollout import generate
from gopd_merge.distill.target import Scale, score
from gopd_merge.distillation import load_backbone
from gopd_merge.errors import InputError
from gopd_merge.forecast import Forecast
from gopd_merge.plan import read_inputs

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
    big = LlamaForCausalLM(config)
    with torch.no_grad():  # some tokens must be likelier than others, or no target differs from another
        big.get_output_embeddings().weight.mul_(20)
    big.save_pretrained(folder / "big-base")
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


@pytest.fixture
def run(field, monkeypatch, capsys):
    """The command in this process, in that folder: what it left with and printed."""
    monkeypatch.chdir(field)

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return call


@pytest.fixture
def config_of(field):
    def make(**options):
        experts = {d: str(field / f"{d}.lora") for d in DOMAINS}
        given = {"experts": experts, "teacher_base": str(field / "big-base"), "base": str(field / "small-base"), "quantize": "none"}
        return make_config({**given, "eval": False, "max_new_tokens": 12, "batch_size": 4, "steps": 2, **options})

    return make


def test_the_merge_runs_from_the_command_to_a_table(run, field):
    done = run(*BOTH, *SHORT, "--eval-prompts", "5", "--alpha", "1.5", "--output", "weak.lora")
    assert done.returncode == 0, done.stderr
    assert "teachers big-base, full precision, with the experts; student on small-base" in done.stderr
    manifest = json.loads((field / "weak.lora" / "merge.json").read_text())
    rows = {(row["method"], row["domain"]) for row in manifest["results"]}
    assert rows == {(method, domain) for method in ("base", "expert:code", "expert:math", "exopd") for domain in DOMAINS}
    assert manifest["base"]["name"] == "small-base"
    assert manifest["teacher_base"]["name"] == "big-base"
    student = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(field / "small-base"), field / "weak.lora")
    assert student.peft_config["default"].base_model_name_or_path == "small-base"
    answers = {path.name: path.read_text() for path in (field / "weak.lora" / "evaluation" / "answers").iterdir()}
    texts = {
        name: [json.loads(line)["text"] for line in content.splitlines()[1:]]
        for name, content in answers.items()
        if name.startswith("own.math.5.")
    }
    assert len(texts) == 4
    big = AutoModelForCausalLM.from_pretrained(field / "big-base")
    tokenizer = AutoTokenizer.from_pretrained(field / "big-base")
    model = PeftModel.from_pretrained(big, field / "math.lora").eval()
    likely = {}
    prompts = [json.loads(line)["prompt"] for line in (field / "math.lora" / "prompts" / "test.jsonl").read_text().splitlines()[:5]]
    for name, found in texts.items():  # the expert's answers are those of its own base with it: nobody else's are as likely there
        likely[name] = sum(mean_log_prob(model, tokenizer, prompt, text) for prompt, text in zip(prompts, found, strict=True))
    assert max(likely, key=likely.get) == "own.math.5.expert-math.jsonl"


def mean_log_prob(model, tokenizer, prompt, text):
    start = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(start, add_special_tokens=False)["input_ids"]
    answer = tokenizer(text, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)[len(ids) - 1 : -1]
    return float(log_probs.gather(1, torch.tensor(answer)[:, None]).mean())


def test_eval_measures_it_and_compare_refuses_it_in_a_line(run, field):
    done = run(*BOTH, *SHORT, "--eval-prompts", "5", "--output", "measured.lora", "--quiet")
    assert done.returncode == 0, done.stderr
    refused = run("compare", "measured.lora", "--limit", "5")
    assert refused.returncode == 2
    assert refused.stderr == (
        "gopd-merge: measured.lora: was distilled from a larger base, so its experts are no rivals on its own; use gopd-merge eval\n"
    )
    answers = field / "measured.lora" / "evaluation" / "answers"
    before = {path.name: path.read_bytes() for path in answers.iterdir()}
    measured = run("eval", "measured.lora", "--limit", "5", "--json", "--quiet")
    assert measured.returncode == 0, measured.stderr
    document = json.loads(measured.stdout)
    assert {row["method"] for row in document["results"]} == {"base", "exopd"}
    assert {path.name: path.read_bytes() for path in answers.iterdir()} == before  # what was answered there is not asked again
    assert run("report", "measured.lora", "--format", "markdown", "--output", "-").returncode == 0


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
    assert "teachers  big-base, " in run("plan", *BOTH, *SHORT).stdout
    alone = Forecast(config_of(), read_inputs(config_of())).memory
    heavy = Forecast(config_of(method="rkl"), read_inputs(config_of(method="rkl"))).memory
    assert heavy.phases["rollout"] > alone.phases["rollout"]  # the experts answer on the larger base


def log_probs_of(folder, adapter, rollout):
    """(N, V) of the response tokens, by a model of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
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
    taken = []
    original = casting.load_base
    monkeypatch.setattr(
        casting, "load_base", lambda base, *rest: (taken.append(base.location.rpartition("/")[2]), original(base, *rest))[1]
    )
    backbone = load_backbone(config, inputs)
    torch.manual_seed(0)
    prompts = [prompt.prompt for source in inputs.prompts for prompt in source.prompts[:2]]
    rollout = generate(backbone, STUDENT, prompts, ["code", "code", "math", "math"], 8)
    with assembled(backbone, config, inputs, print) as cast:
        assert taken == loaded
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
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
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


@pytest.mark.parametrize("method", ["seqkd", "rkl", "opd", "alternate"])
def test_other_methods_learn_from_the_larger_base_too(run, field, method):
    done = run(*BOTH, *SHORT, "--no-eval", "--method", method, "--output", f"{method}.lora", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (field / f"{method}.lora" / "merge.json").is_file()
