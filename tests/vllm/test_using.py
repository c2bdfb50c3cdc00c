"""A plain PEFT adapter, as a merge writes them, given to `vllm serve` by --lora-modules: it answers as in PEFT."""

import json
import urllib.request

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    "Tom has 5 pens. Tom loses 2. How many pens are left?",
    "Ana has 12 books. Ana gives 3 to Ben. How many books does Ana have?",
    "Write f(xs): reverse it and return the sum.",
]


@pytest.fixture(scope="module")
def url(adapters, serve):
    return serve(adapters / "tiny-base", "--enable-lora", "--max-lora-rank", 8, "--lora-modules", f"merged={adapters / 'math.lora'}")


def answers_there(url, model):
    answers = []
    for question in QUESTIONS:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 48}
        request = urllib.request.Request(
            f"{url}/chat/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            answers.append(json.load(answer)["choices"][0]["message"]["content"])
    return answers


@torch.no_grad()
def answers_here(model, tokenizer):
    answers = []
    for question in QUESTIONS:
        given = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**given, do_sample=False, max_new_tokens=48, pad_token_id=tokenizer.pad_token_id)
        answers.append(tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def test_an_adapter_of_lora_modules_answers_as_in_peft(url, adapters):
    tokenizer = AutoTokenizer.from_pretrained(adapters / "tiny-base")
    base = AutoModelForCausalLM.from_pretrained(adapters / "tiny-base", dtype=torch.float32)
    plain = answers_here(base, tokenizer)
    expected = answers_here(PeftModel.from_pretrained(base, adapters / "math.lora"), tokenizer)
    assert answers_there(url, "merged") == expected
    assert expected != plain  # the control: the adapter does something
