"""What a chat says is what the adapters say: the same words as PEFT alone, side by side as one by one, streamed as whole."""

import io
import json
from itertools import pairwise

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gopd_merge.chat import load_chat
from gopd_merge.cli import main
from gopd_merge.cli.chatting import harmless
from gopd_merge.errors import InputError

QUESTION = "Ana has 12 books. Ana buys 2 boxes of 4. Ana gives 3 to Ben. How many books does Ana have?"
NEXT = "Tom has 5 pens. Tom loses 2. How many pens are left?"
LONGEST = 40  # tokens


@pytest.fixture(scope="module")
def math(adapters):
    return str(adapters / "math.lora")


@pytest.fixture(scope="module")
def code(adapters):
    return str(adapters / "code.lora")


@pytest.fixture(scope="module")
def talk(math, code):
    return load_chat([math, code, "base"], None, "none", "cpu")


@pytest.fixture(scope="module")
def greedy(adapters):
    """greedy(adapter, *messages): the likeliest answer of base and adapter, by Transformers and PEFT alone."""
    tokenizer = AutoTokenizer.from_pretrained(adapters / "tiny-base")

    @torch.no_grad()
    def answer(adapter, *messages):
        model = AutoModelForCausalLM.from_pretrained(adapters / "tiny-base", dtype=torch.float32)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        said = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(messages)]
        given = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**given, do_sample=False, max_new_tokens=LONGEST, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def test_each_voice_says_what_its_adapter_says_alone_and_remembers_it(talk, greedy, math, code):
    talk.begin()
    first = talk.ask(QUESTION, LONGEST, 0.0, 0)
    assert first == [greedy(adapter, QUESTION) for adapter in (math, code, None)]
    assert len(set(first)) > 1
    second = talk.ask(NEXT, LONGEST, 0.0, 0)
    assert second == [greedy(adapter, QUESTION, said, NEXT) for adapter, said in zip((math, code, None), first, strict=True)]
    talk.begin()
    assert talk.ask(NEXT, LONGEST, 0.0, 0) == [greedy(adapter, NEXT) for adapter in (math, code, None)]


def test_an_answer_grows_to_what_it_is(talk):
    talk.begin()
    told = {0: [], 1: [], 2: []}
    answers = talk.ask(QUESTION, LONGEST, 1.0, 3, lambda number, text: told[number].append(text))
    for number, texts in told.items():
        assert texts[-1] == answers[number]
        assert len(texts) > 3
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_seed_decides_what_is_sampled_and_the_turn_too(talk):
    def asked(seed):
        talk.begin()
        return talk.ask(QUESTION, LONGEST, 1.5, seed)

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_a_conversation_that_is_too_long_is_refused_and_not_remembered(talk):
    talk.begin()
    with pytest.raises(InputError, match="tokens and the base reads 512; begin a new one"):
        talk.ask("pens " * 600, LONGEST, 0.0, 0)
    assert talk.voices[0].messages == []


def test_voices_that_cannot_share_a_batch_answer_one_after_the_other(make_expert, math, greedy):
    dora, _ = make_expert("dora", r=2, target_modules=["q_proj"], use_dora=True)
    assert load_chat([dora, math], None, "none", "cpu").ask(QUESTION, LONGEST, 0.0, 0) == [greedy(dora, QUESTION), greedy(math, QUESTION)]


def test_one_answer_is_all_that_is_printed(math, greedy, capsys):
    assert main(["chat", math, "--prompt", QUESTION, "--temperature", "0", "--quantize", "none", "--max-new-tokens", str(LONGEST)]) == 0
    assert capsys.readouterr().out == greedy(math, QUESTION) + "\n"


def test_several_answers_come_under_their_names_or_as_json(math, capsys):
    words = ["chat", math, "--with", "base", "--prompt", QUESTION, "--max-new-tokens", "8", "--seed", "1"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["answers"]) == [math, "base"]
    assert text == "".join(f"{name}:\n{answer}\n\n" for name, answer in document["answers"].items())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_conversation_on_a_terminal(math, greedy, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal(f"{QUESTION}\n{NEXT}\n/new\n{NEXT}\n\n/exit\n"))
    assert main(["chat", math, "--temperature", "0", "--quantize", "none", "--max-new-tokens", str(LONGEST)]) == 0
    first = greedy(math, QUESTION)
    said = capsys.readouterr().out.replace("> ", "")
    assert said == "\n".join([first, greedy(math, QUESTION, first, NEXT), greedy(math, NEXT), ""])


def test_without_a_terminal_the_prompt_is_what_comes_in(math, greedy, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
    assert main(["chat", math, "--temperature", "0", "--quantize", "none", "--max-new-tokens", str(LONGEST)]) == 0
    assert capsys.readouterr().out == greedy(math, QUESTION) + "\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--with", "{math}", "--prompt", "hi"], "can answer once"),
        (["--prompt", " "], "nothing to answer"),
        (["--prompt", "hi", "--temperature", "-1"], "--temperature -1.0 --max-new-tokens 512: out of range"),
        (["--prompt", "hi", "--temperature", "nan"], "--temperature nan"),
        (["--prompt", "hi", "--with", "nowhere.lora"], "nowhere.lora: no such folder"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(math, words, named, capsys):
    assert main(["chat", math, *(word.format(math=math) for word in words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line


def test_nothing_that_a_model_writes_steers_the_terminal():
    assert harmless("a\x1b[2Jb\x07\x9b1m\r\tc\nd é 👩‍🔬") == "a[2Jb1m\tc\nd é 👩‍🔬"
