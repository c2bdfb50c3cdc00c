"""One command asks base, experts, static merges and trained ones the same questions, and says what follows."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from gopd_merge import MergeConfig, merge
from gopd_merge.comparison.tuning import best_row
from gopd_merge.distill.rollout import Format, tokenize
from gopd_merge.errors import InputError
from gopd_merge.experts.static import RIVALS

COMMAND = Path(sys.executable).with_name("gopd-merge")


def read(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def answers(folder, name):
    domain, method = name
    (path,) = (folder / "answers").glob(f"own.{domain}.*.{method}.jsonl")
    header, *rows = read(path)
    return header, {(row["id"], row["sample"]): row for row in rows}


def own_rows(adapters, domain, split="test"):
    return read(adapters / f"{domain}.lora" / "prompts" / f"{split}.jsonl")


def is_right(text, answer):
    """The final number after the last ####, read without the package."""
    found = re.findall(r"####[ ]*(-?\d+)\b", text)
    return bool(found) and Fraction(found[-1]) == Fraction(answer)


def test_scores_are_what_a_recount_of_the_stored_answers_gives(compared, merged, adapters):
    found = compared(merged, max_new_tokens=96)
    methods = ["base", "expert:code", "expert:math", "average", "exopd"]
    assert [(r.method, r.domain) for r in found.results] == [(m, d) for m in methods for d in ("code", "math")]
    rows = own_rows(adapters, "math")
    for result in found.results:
        if result.domain != "math":
            continue
        slug = {"exopd": "exopd-alpha-2-seed-0"}.get(result.method, result.method.replace(":", "-"))
        header, given = answers(found.folder, ("math", slug))
        assert header["questions"] == len(given) == result.n == 8
        right = [is_right(row["text"], rows[int(id.rsplit("/", 1)[1])]["answer"]) for (id, _), row in given.items()]
        assert [bool(row["score"]) for row in given.values()] == right
        assert result.score == sum(right) / 8
        assert result.length_mean == sum(row["length"] for row in given.values()) / 8
        assert result.length_capped == sum(row["capped"] for row in given.values()) / 8
    assert json.loads((found.folder / "results.json").read_text()) == json.loads(json.dumps(found.document))


def test_everybody_gets_the_same_questions_and_samples_are_told_apart(compared, merged):
    found = compared(merged, samples=3, limit=5)
    asked = [set(answers(found.folder, ("code", name))[1]) for name in ("base", "expert-code", "average", "exopd-alpha-2-seed-0")]
    assert all(one == asked[0] for one in asked)
    assert len(asked[0]) == 15
    texts = [row["text"] for row in answers(found.folder, ("code", "base"))[1].values()]
    assert len(set(texts)) > 5  # the samples of a question are drawn anew
    assert {(r.n, r.k) for r in found.results} == {(5, 3)}
    assert all(c.test == "permutation" for c in found.comparisons)


def test_a_static_merge_answers_as_plain_peft_does_with_the_same_weights(compared, merged, adapters, load_model):
    """The exact average, greedily, by PEFT's own combination on a base that was loaded apart."""
    from peft import PeftModel

    found = compared(merged, temperature=0.0, quantize="none", limit=6)
    model = PeftModel.from_pretrained(load_model()[0], adapters / "math.lora", adapter_name="m")
    model.load_adapter(adapters / "code.lora", "c")
    model.add_weighted_adapter(["m", "c"], [0.5, 0.5], "average", combination_type="cat")
    model.set_adapter("average")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapters / "tiny-base")
    rows = own_rows(adapters, "math")
    _, given = answers(found.folder, ("math", "average"))
    _, of_base = answers(found.folder, ("math", "base"))
    for (id, _), row in given.items():
        ids = tokenize(tokenizer, [rows[int(id.rsplit("/", 1)[1])]["prompt"]], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.eval().generate(input_ids=ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        assert row["text"] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert [row["text"] for row in given.values()] != [row["text"] for row in of_base.values()]  # or nothing was on


@pytest.mark.slow
def test_the_coefficients_are_those_that_were_best_on_validation_questions(compared, merged, adapters):
    found = compared(merged, rivals=["average,task_arithmetic", "svd"], tune_limit=12, quantize="none")
    grid = {name: [row for row in found.document["tuning"] if row["method"] == name] for name in ("task_arithmetic", "svd")}
    validation = {row["prompt"] for domain in ("math", "code") for row in own_rows(adapters, domain, "validation")}
    test = {row["prompt"] for domain in ("math", "code") for row in own_rows(adapters, domain)}
    assert not validation & test
    for name, rows in grid.items():
        assert len(rows) == 2 * len(RIVALS[name].grid)
        means = {}
        for row in rows:
            means.setdefault(json.dumps(row["parameters"]), []).append(row["score"])
        best = max(means, key=lambda key: sum(means[key]))
        chosen = {json.dumps(row["parameters"]) for row in rows if row["chosen"]}
        assert chosen == {best}
        assert next(r.parameters for r in found.results if r.method == name) == json.loads(best)
    static = next(c.rival for c in found.comparisons if c.rival_is == "best static merge")
    chosen_means = {name: sum(row["score"] for row in rows if row["chosen"]) for name, rows in grid.items()}
    assert static == "average" or chosen_means[static] == max(chosen_means.values())
    costs = {m["method"]: m["cost"] for m in found.document["methods"]}
    assert costs["task_arithmetic"]["tune_answers"] == 9 * 2 * 12
    assert costs["base"]["tune_answers"] == 0 < costs["base"]["answers"]


def test_scores_without_a_common_scale_are_chosen_by_rank():
    accuracy_and_nats = [[0.9, -50.0], [0.8, -1.0], [0.7, -2.0]]
    assert best_row(accuracy_and_nats, ["math_answer", "expert_reward"]) == 1
    assert best_row([[0.2, 0.9], [0.6, 0.6]], ["math_answer", "code_tests"]) == 1
    assert best_row([[0.5], [0.5]], ["math_answer"]) == 0  # the first of equals


def test_seeds_of_one_method_are_one_row_and_their_variance_stands_apart(compared, short_merge):
    found = compared(short_merge(), short_merge(seed=1), limit=10)
    (row,) = [r for r in found.results if r.method == "exopd" and r.domain == "math"]
    each = [sum(a["score"] for a in answers(found.folder, ("math", f"exopd-alpha-2-seed-{seed}"))[1].values()) / 10 for seed in (0, 1)]
    assert row.seeds == [0, 1]
    assert row.seed is None
    assert row.score == pytest.approx(sum(each) / 2)
    assert row.seed_sd == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert next(r for r in found.results if r.method == "base").seed_sd is None


@pytest.mark.slow
def test_opd_is_trained_on_the_loaded_base_and_is_the_merge_with_alpha_one(compared, merged, short_merge):
    found = compared(merged, rivals=["average", "opd"], limit=4)
    trained = found.folder / "opd.lora"
    assert (trained / "adapter_model.safetensors").read_bytes() == (short_merge(alpha=1.0) / "adapter_model.safetensors").read_bytes()
    assert [r.alpha for r in found.results if r.method == "opd"] == [1.0, 1.0]
    assert {c.rival for c in found.comparisons if c.rival_is == "α = 1"} == {"opd"}
    cost = next(m["cost"] for m in found.document["methods"] if m["method"] == "opd")
    assert cost["train_seconds"] > 0
    written = (trained / "merge.json").stat().st_mtime_ns
    compared(merged, rivals=["average", "opd"], limit=4)
    assert (trained / "merge.json").stat().st_mtime_ns == written  # not trained again


def test_opd_is_refused_at_once_where_no_merge_says_how_to_train_it(compared, adapters):
    experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
    with pytest.raises(InputError, match=r"has no merge\.json with the options to train α = 1"):
        compared(adapters / "math.lora", experts=experts, rivals=["opd"])


def test_adapters_without_a_merge_are_measured_beside_the_base(run_cli, code_copy):
    done = run_cli("eval", "adapters/math.lora", "adapters/code.lora", "--limit", "4", "--json", "--quiet", "--output", "out")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [m["method"] for m in document["methods"]] == ["base", "expert:math", "expert:code"]
    assert {r["domain"] for r in document["results"]} == {"math", "code"}
    assert document["comparisons"] == []


def test_a_model_that_is_given_no_room_to_answer_scores_nothing(compared, merged):
    found = compared(merged, max_new_tokens=1)
    assert {r.score for r in found.results} == {0.0}
    assert {r.length_capped for r in found.results} == {1.0}
    assert all(r.high > 0 for r in found.results)  # eight wrong answers do not prove a zero


@pytest.mark.parametrize(
    ("options", "named", "remedy"),
    [
        ({"suite": ["gsm9k"]}, "gsm9k: no such suite", "gsm8k"),
        ({"suite": ["own", "own"]}, "names a suite twice", "name each once"),
        ({"rivals": ["tise"]}, "--rivals tise", "choose among average"),
        ({"temperature": 0.0, "samples": 4}, "--samples 4", "greedy answers are all the same"),
        ({"data": ["own"]}, "--data own", "DOMAIN=VALUE"),
        ({"judge": "http://localhost:9"}, "no suite here is open-ended", "--suite open"),
        ({"judge_model": "j"}, "--judge-model j", "--judge"),
        ({"max_new_tokens": 4096}, "more than the base's context", "lower --max-new-tokens"),
        ({"limit": 0}, "--limit 0", "greater than or equal to 1"),
        ({"base": "./nothing"}, "./nothing", "--base FOLDER"),
        ({"experts": {"math": "adapters/math.lora", "law": "adapters/code.lora"}}, "merges code and math", "same experts"),
        ({"experts": {"math": "adapters/code.lora", "code": "adapters/math.lora"}}, "is not the code expert", "--experts code=PATH"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line_before_anything_is_asked(compared, merged, tmp_path, options, named, remedy):
    with pytest.raises(InputError) as refused:
        compared(merged, **options)
    assert len(refused.value.lines) == 1
    assert named in str(refused.value)
    assert remedy in str(refused.value)
    assert not list((tmp_path / "evaluation").rglob("*.jsonl"))


def test_the_same_merge_twice_is_refused(compared, merged, tmp_path):
    twin = shutil.copytree(merged, tmp_path / "twin.lora")
    with pytest.raises(InputError, match="differ in method, α or seed"):
        compared(merged, twin)


def test_two_runs_do_not_write_into_one_folder(compared, merged, tmp_path):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(InputError, match="another run is writing there; wait for it"):
        compared(merged)
    assert compared(merged, limit=2).results  # and afterwards it is free again


def test_scales_that_differ_by_domain_are_named(compared, adapters, tmp_path):
    experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
    output = tmp_path / "by-domain.lora"
    alpha = {"math": 2.0, "code": 1.0}
    merge(MergeConfig(experts=experts, alpha=alpha, output=output, steps=1, batch_size=4, max_new_tokens=16, eval=False))
    found = compared(output, limit=4)
    assert "merged, α = code 1, math 2" in found.table
    assert {r.alpha for r in found.results} == {None}
    assert next(r.parameters for r in found.results if r.method == "exopd") == {"alpha": {"code": 1.0, "math": 2.0}}


def test_a_suite_without_validation_questions_leaves_only_untuned_rivals(compared, merged, tmp_path):
    suite = tmp_path / "s.yaml"
    (tmp_path / "q.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    suite.write_text(
        "name: s\nabout: a\nlicence: l\ndomain: math\ndata: {file: q.jsonl}\nsplits: {test: test}\nmetric: math_answer\n"
        "item: {prompt: '{{ prompt }}', answer: '{{ answer }}'}\n"
    )
    with pytest.raises(InputError, match="has no validation questions"):
        compared(merged, suite=[str(suite)], rivals=["ties"])


def test_an_evaluation_of_other_settings_or_another_version_of_the_suite_is_not_mixed_in(compared, merged):
    found = compared(merged, limit=4)
    kept = {path: path.read_bytes() for path in (found.folder / "answers").iterdir()}
    for options in ({"samples": 2}, {"seed": 5}, {"max_new_tokens": 30}, {"temperature": 0.5}, {"quantize": "none"}, {"batch_size": 4}):
        with pytest.raises(InputError, match=r"answers a run with .*this one has .*--overwrite to ask again, or another --output"):
            compared(merged, limit=4, **options)
    assert {path: path.read_bytes() for path in (found.folder / "answers").iterdir()} == kept
    assert {r.n for r in compared(merged, limit=3).results} == {3}  # other questions have files of their own
    assert kept.keys() < set((found.folder / "answers").iterdir())
    assert {r.k for r in compared(merged, limit=4, samples=2, overwrite=True).results} == {2}


def test_the_merges_own_answers_count_and_are_not_asked_again(adapters, tmp_path, monkeypatch):
    """What `gopd-merge` measured at its end is what `gopd-merge compare` would measure first."""
    experts = {domain: str(adapters / f"{domain}.lora") for domain in ("math", "code")}
    output = tmp_path / "merged.lora"
    short = {"steps": 1, "batch_size": 4, "max_new_tokens": 16, "eval_prompts": 6, "seed": 3}
    before = merge(MergeConfig(experts=experts, output=output, **short))
    files = {path: path.read_bytes() for path in (output / "evaluation" / "answers").iterdir()}
    assert len(files) == 5 * 2
    from gopd_merge.comparison.run import compare
    from gopd_merge.eval_config import CompareConfig

    found = compare(CompareConfig(adapters=(str(output),), limit=6, rivals=("average",)), "gopd-merge compare")
    assert {path: path.read_bytes() for path in (output / "evaluation" / "answers").iterdir()} == files
    assert found.results == before.results


def test_answers_on_another_chat_template_are_not_mixed_in(compared, merged, code_copy, tmp_path):
    """The base beside copies of the experts, so that it can be changed."""
    base = code_copy.parent / "tiny-base"
    target = base.resolve()
    base.unlink()
    shutil.copytree(target, base)
    options = {"experts": {d: str(code_copy.parent / f"{d}.lora") for d in ("math", "code")}, "base": str(base), "limit": 2}
    compared(merged, **options)
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(InputError, match="answers a run with base_digest"):
        compared(merged, **options)


def test_a_change_of_the_questions_is_another_version(compared, merged, tmp_path):
    questions = tmp_path / "mine.jsonl"
    questions.write_text("".join(f'{{"prompt": "{i} + 1", "answer": "{i + 1}", "split": "test"}}\n' for i in range(5)))
    options = {"suite": [f"math={questions}"], "rivals": ["none"], "max_new_tokens": 24}
    compared(merged, **options)
    compared(merged, **options)
    questions.write_text(questions.read_text().replace('"5"', '"6"'))
    with pytest.raises(InputError, match="answers a run with version"):
        compared(merged, **options)


def kill_when(condition, command, cwd):
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1].decode()
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_answers_of_an_unbroken_run(short_merge, tmp_path):
    merged = shutil.copytree(short_merge(), tmp_path / "merged.lora")
    options = ["--limit", "24", "--batch-size", "8", "--rivals", "average", "--quiet"]
    whole = [COMMAND, "compare", merged, *options, "--output", tmp_path / "whole"]
    assert subprocess.run(whole, check=False).returncode == 0
    broken = [COMMAND, "compare", merged, *options, "--output", tmp_path / "broken"]
    target = tmp_path / "broken" / "answers" / "own.math.24.expert-code.jsonl"
    kill_when(lambda: target.exists() and len(target.read_bytes().split(b"\n")) > 9, broken, None)
    before = target.read_bytes()
    with target.open("ab") as file:  # and the last write was torn
        file.write(b'{"id": "own/math/test/1", "sam')
    assert subprocess.run(broken, check=False).returncode == 0
    assert target.read_bytes().startswith(before)  # what was answered was not asked again
    for path in (tmp_path / "whole" / "answers").iterdir():
        ours, theirs = (read(tmp_path / run / "answers" / path.name) for run in ("broken", "whole"))
        assert [row | {"seconds": 0} for row in ours] == [row | {"seconds": 0} for row in theirs]
    results = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("whole", "broken")]
    assert results[0] == results[1]


def test_stopped_by_a_signal_it_says_how_to_go_on(short_merge, tmp_path):
    output = tmp_path / "evaluation"
    command = [COMMAND, "compare", short_merge(), "--limit", "200", "--batch-size", "8", "--rivals", "average", "--output", output]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = output / "answers" / "own.code.200.base.jsonl"
    while not (first.exists() and first.stat().st_size > 2000) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stdout == ""
    assert stderr.splitlines()[-1] == "gopd-merge: stopped; what was answered is kept, give the same command to go on"


def test_a_system_message_and_plain_text_reach_the_model(load_model):
    _, tokenizer = load_model()
    system = tokenizer.decode(tokenize(tokenizer, ["Add."], Format(system="Be brief."))["input_ids"][0])
    assert system == "<|system|>Be brief.<|end|><|user|>Add.<|end|><|assistant|>"
    assert tokenizer.decode(tokenize(tokenizer, ["Add."], Format(chat=False))["input_ids"][0]).endswith("Add.")


def test_what_was_known_about_alpha_before_the_merge_is_in_its_comparison(compared, merged):
    point = {"domain": "math", "suite": "own", "alpha": 2.0, "n": 9, "score": 0.7, "low": 0.5, "high": 0.9, "metric": "math_answer"}
    point |= {"length_mean": 30.0, "length_capped": 0.0}
    known = {"schema": 1, "kind": "scale", "made_by": "probe", "points": [point], "chosen": {"math": 2.0}, "why": {"math": "a reason"}}
    assert "scale" not in compared(merged, limit=2).document
    (merged / "scale.json").write_text(json.dumps(known))
    found = compared(merged, limit=2)
    assert found.document["scale"][0].items() >= point.items()
    assert (found.document["chosen"], found.document["why"]) == ({"math": 2.0}, {"math": "a reason"})
    assert "a reason" in found.table
    (merged / "scale.json").write_text(json.dumps(known | {"points": []}))
    with pytest.raises(InputError, match=r"scale.json: points"):
        compared(merged, limit=2)
