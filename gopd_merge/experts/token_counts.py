"""How many tokens prompts have in a base's chat template, without Transformers, which takes seconds to import. No torch.

Transformers makes a tokenizer out of several files, and of some classes anew, without what tokenizer.json says. Counted here is only
where the outcome is known to be tokenizer.json as it stands; a test compares.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from gopd_merge.experts.fingerprint import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, read_json

Counter = Callable[[Sequence[str]], list[int]]
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")  # classes that take tokenizer.json as it is
OTHER_FILES = ("tekken.json", "additional_chat_templates")  # that Transformers would look at, and this does not
LEGACY_FILES = ("special_tokens_map.json", "added_tokens.json")  # the same, unless the config lists the added tokens
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("additional_special_tokens", "extra_special_tokens")
QWEN_KINDS, QWEN_DEFAULT = ("qwen2", "qwen3"), "<|endoftext|>"
QWEN_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def token_counter(folder: Path, kind: str) -> Counter | None:
    """A function from prompts to their numbers of tokens as the roles read them; None where only Transformers can tell.

    `kind` is the `model_type` of the base in the folder.
    """
    from tokenizers import Tokenizer

    config = read_json(folder / TOKENIZER_CONFIG)
    template = _template(folder, config)
    if template is None or not _is_told_by(folder, config):
        return None
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception:  # whatever the library raises, Transformers' error says more
        return None
    special = _special_tokens(config, kind)
    if special is None or not _takes_it_as_it_is(tokenizer, config, kind) or not _adds_nothing(tokenizer, config, special):
        return None
    if (render := _renderer(template, special)) is None:
        return None

    def count(prompts: Sequence[str]) -> list[int]:
        return [len(found.ids) for found in tokenizer.encode_batch_fast([render(text) for text in prompts], add_special_tokens=False)]

    return count


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The one chat template of the base."""
    path = folder / CHAT_TEMPLATE
    template = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    return template if isinstance(template, str) and template else None


def _is_told_by(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether no file and no setting changes what tokenizer.json says."""
    here = [*OTHER_FILES, *(() if "added_tokens_decoder" in config else LEGACY_FILES)]
    return not any((folder / name).exists() for name in here) and not config.get("split_special_tokens") and "auto_map" not in config


def _special_tokens(config: Mapping[str, Any], kind: str) -> dict[str, str] | None:
    """The named special tokens, as templates see them; None where one is not understood."""
    found: dict[str, str | None] = dict.fromkeys(("eos_token", "unk_token", "pad_token"), QWEN_DEFAULT) if kind in QWEN_KINDS else {}
    for name, value in config.items():
        if not name.endswith("_token") or isinstance(value, bool):
            continue
        content = value.get("content") if isinstance(value, dict) else value
        if name not in NAMED or not isinstance(content, str | None):
            return None
        found[name] = content
    return {name: content for name, content in found.items() if content is not None}


def _takes_it_as_it_is(tokenizer: Any, config: Mapping[str, Any], kind: str) -> bool:
    """Whether the class that Transformers would choose does what tokenizer.json says."""
    named = str(config.get("tokenizer_class"))
    if tokenizer.truncation or tokenizer.padding:
        return False
    if kind not in QWEN_KINDS:
        is_large_mistral = kind == "mistral" and tokenizer.get_vocab_size() > 100_000  # its expression may be put right
        return named in GENERIC and not is_large_mistral
    if named.removesuffix("Fast") != "Qwen2Tokenizer" or config.get("add_prefix_space"):
        return False
    from tokenizers import Regex, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated", invert=False)
    split = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    model = tokenizer.model
    return (
        isinstance(model, BPE)
        and not any((model.dropout, model.unk_token, model.continuing_subword_prefix, model.end_of_word_suffix, model.fuse_unk))
        and not any((model.byte_fallback, model.ignore_merges))
        and _state(tokenizer.normalizer) == _state(normalizers.NFC())
        and _state(tokenizer.pre_tokenizer) == _state(split)
    )


def _state(part: Any) -> Any:
    """A part of a tokenizer as its file has it."""
    return json.loads(part.__getstate__()) if part is not None else None


def _adds_nothing(tokenizer: Any, config: Mapping[str, Any], special: Mapping[str, str]) -> bool:
    """Whether the special and added tokens of the config are in tokenizer.json already, and the same."""
    from tokenizers import AddedToken

    added = tokenizer.get_added_tokens_decoder()
    listed = config.get("added_tokens_decoder", {})
    extra = [token for name in EXTRA for token in config.get(name) or ()]
    if not isinstance(listed, dict) or not all(isinstance(token, str) for token in extra):
        return False
    try:
        same = all(added.get(int(number)) == AddedToken(**token) for number, token in listed.items())
    except (TypeError, ValueError):
        return False
    are_special = {token.content for token in added.values() if token.special}
    return same and {*special.values(), *extra} <= are_special


def _renderer(template: str, special: Mapping[str, str]) -> Callable[[str], str] | None:
    """A function from a prompt to the text of a chat with it, as `apply_chat_template` renders it; None where that cannot be."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        compiled = environment.from_string(template)

        def render(text: str) -> str:
            chat = [{"role": "user", "content": text}]
            return compiled.render(messages=chat, tools=None, documents=None, add_generation_prompt=True, **special)

        render("a prompt")
    except Exception:  # whatever it is that the template wants: Transformers' error says more
        return None
    return render
