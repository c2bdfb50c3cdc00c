"""An expert that was trained with another tokenizer or chat template than the base's."""

import json
import shutil

import pytest

from gopd_merge.errors import InputError
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.intake import read_expert


@pytest.fixture
def with_tokenizer(math_copy, adapters):
    """The math expert with the base's tokenizer files beside it, as trainers save them."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(adapters / "tiny-base" / name, math_copy / name)
    return math_copy


def base_of(folder):
    return resolve_base([read_expert("math", str(folder))], None)


def test_the_bases_own_tokenizer_beside_an_expert_changes_nothing(with_tokenizer):
    assert base_of(with_tokenizer).warnings == ()


@pytest.mark.parametrize("change", ["added", "renumbered", "missing"])
def test_a_tokenizer_with_other_tokens_is_refused(with_tokenizer, change):
    path = with_tokenizer / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    first, second, *_ = (token for token in vocab if token not in {t["content"] for t in content["added_tokens"]})
    if change == "added":
        content["added_tokens"].append(content["added_tokens"][-1] | {"content": "<tool>", "id": 9999})
    elif change == "renumbered":
        vocab[first], vocab[second] = vocab[second], vocab[first]
    else:
        del vocab[first]
    path.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=f"{ {'added': 1, 'renumbered': 2, 'missing': 1}[change] } tokens of its tokenizer.json are not those"
    ):
        base_of(with_tokenizer)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": 3}', '{"model": {"vocab": []}, "added_tokens": [1]}'])
def test_a_tokenizer_that_cannot_be_read_is_no_reason_to_refuse(with_tokenizer, content):
    (with_tokenizer / "tokenizer.json").write_text(content)
    base_of(with_tokenizer)


def test_another_chat_template_is_a_warning_on_stderr_and_in_the_manifest(with_tokenizer, code_copy, run_cli, tmp_path):
    (with_tokenizer / "chat_template.jinja").write_text("{{ messages[0].content }}")
    experts = ["--experts", "adapters/math.lora", "adapters/code.lora"]
    done = run_cli(*experts, "--steps", "1", "--batch-size", "2", "--max-new-tokens", "4", "--no-eval")
    assert done.returncode == 0, done.stderr
    assert "note     adapters/math.lora was trained with another chat template" in done.stderr
    (warning,) = json.loads((tmp_path / "merged.lora" / "merge.json").read_text())["base"]["warnings"]
    assert "another chat template" in warning


def test_the_template_may_stand_in_the_tokenizers_config(with_tokenizer):
    (with_tokenizer / "chat_template.jinja").unlink()
    config = with_tokenizer / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "other"}))
    (warning,) = base_of(with_tokenizer).warnings
    assert "another chat template" in warning
