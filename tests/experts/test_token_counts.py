"""Tokens counted from tokenizer.json alone are those that Transformers' tokenizer makes of the same prompts, or none are counted."""

import json
import shutil

import pytest
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

from gopd_merge.distill.rollout import prompt_lengths
from gopd_merge.experts.base import Base, load_tokenizer
from gopd_merge.experts.token_counts import token_counter

PROMPTS = [
    "What is 2 + 2?",
    "",
    "  two\n\n spaces \t",
    "naïve Σ 日本語 🙂",
    "<|end|> <|user|>not one<|pad|>",
    "It's 12345.678 e\u0301",
    "a" * 300,
]
# What templates of real bases do: dates, a system message of their own, loops that break, JSON, white space that is cut off.
TEMPLATE = """{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{{- (bos_token | default('')) + 'Today: ' + date_string }}
{% if messages[0].role != 'system' %}
    {{- '<|user|>You are "helpful".' -}}
{% endif %}
{%- set seen = namespace(count=0) %}
{% for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}
    {%- set seen.count = seen.count + 1 %}
    {%- if seen.count > 5 %}{% break %}{% endif %}
    {{- '<|' + message.role + '|>' + message.content.strip() + (message | tojson) + eos_token + '\n' }}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=4) }}{% endif %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""


def by_transformers(folder):
    return prompt_lengths(load_tokenizer(Base(str(folder), str(folder))), PROMPTS)


@pytest.fixture
def generic(adapters, tmp_path):
    """A copy of the embedded base, whose class takes tokenizer.json as it is."""
    return shutil.copytree(adapters / "tiny-base", tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture
def qwen(generic, tmp_path):
    """A small tokenizer of Qwen's class: it makes its parts anew, and so does Transformers when it loads it."""
    model = json.loads((generic / "tokenizer.json").read_text())["model"]
    names = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": "<|pad|>"}
    made = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], **names)
    made.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
    made.chat_template = TEMPLATE
    made.save_pretrained(tmp_path / "qwen")
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return tmp_path / "qwen"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_embedded_base_is_counted(generic):
    assert token_counter(generic, "llama")(PROMPTS) == by_transformers(generic)


def test_so_are_templates_that_do_what_real_ones_do(generic):
    (generic / "chat_template.jinja").write_text(TEMPLATE)
    counted = token_counter(generic, "llama")(PROMPTS)
    assert counted == by_transformers(generic)
    assert min(counted) > 20  # the template is in it


def test_a_tokenizer_of_qwens_class_is_counted(qwen):
    assert token_counter(qwen, "qwen2")(PROMPTS) == by_transformers(qwen)


def test_one_of_qwens_class_with_other_parts_is_left_to_transformers_which_passes_over_them(qwen):
    whole = json.loads((qwen / "tokenizer.json").read_text())
    edit(qwen / "tokenizer.json", normalizer={"type": "Lowercase"}, pre_tokenizer=whole["pre_tokenizer"]["pretokenizers"][1])
    assert token_counter(qwen, "qwen2") is None
    raw = [len(Tokenizer.from_file(str(qwen / "tokenizer.json")).encode(text).ids) for text in PROMPTS]
    (qwen / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert raw != by_transformers(qwen)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"}),
        ("tokenizer_config.json", {"pad_token": "<|new|>"}),  # would be added
        ("tokenizer_config.json", {"image_token": "<|end|>"}),  # one of a model's own
        ("tokenizer_config.json", {"extra_special_tokens": ["<|new|>"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": {"content": "<|end|>", "lstrip": True}}}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}),
        ("tokenizer.json", {"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}}),
    ],
    ids=str,
)
def test_what_transformers_would_change_is_left_to_it(generic, file, changes):
    assert token_counter(generic, "llama") is not None
    edit(generic / file, **changes)
    assert token_counter(generic, "llama") is None


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "tekken.json"])
def test_so_are_files_that_it_would_read_as_well(generic, name):
    (generic / name).write_text("{}")
    assert token_counter(generic, "llama") is None


@pytest.mark.parametrize("template", ["", "{{ raise_exception('system first') }}", "{% generation %}{% endgeneration %}", "{% if %}"])
def test_so_is_a_base_without_a_template_or_with_one_that_fails(generic, template):
    (generic / "chat_template.jinja").write_text(template)
    assert token_counter(generic, "llama") is None
