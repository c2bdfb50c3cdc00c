"""What an adapter_config.json may say: the part of PEFT's LoRA settings that a merge can honour, and nothing that it cannot."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gopd_merge.errors import printable

KNOWN_PEFT = (0, 21)  # whose fields stand below
SAVE_AGAIN = "copy or save the adapter again"


def _printed(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it should be printable text")
    return text


Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0, le=1e5, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printed)]
Pattern = Annotated[str, Field(max_length=4096)]  # a regular expression, or a module's name
Patterns = Annotated[list[Pattern], Field(max_length=20_000)]

# Features that change what the other roles see, or that need more than one adapter switched on the shared base.
UNSUPPORTED = {
    "trainable_token_indices": "it changes the embeddings, which the roles share",
    "target_parameters": "it adapts bare parameters, which cannot be switched for one row of a batch",
    "layer_replication": "it changes the layers of the base, which the roles share",
    "alora_invocation_tokens": "it is on for a part of the text only",
    "arrow_config": "it routes between adapters by itself",
    "use_bdlora": "its tensors are laid out for several machines",
    "use_qalora": "it works on pooled inputs, not on the weight",
    "kasa_config": "it changes the base's weights",
    "monteclora_config": "its forward pass is random",
    "velora_config": "its forward pass is its own",
    # PEFT 0.21 finds the tied module by its name, which other adapters change: it then writes over their copies, or over the base.
    "ensure_weight_tying": "beside other adapters PEFT would tie the wrong tensors",
    "megatron_config": "it needs Megatron's layers",
}
INITS = ("gaussian", "eva", "orthogonal")  # that leave the base as it is; the others rewrite its weights
# Read by PEFT for training, or by nobody: any value is right.
IGNORED = {
    "task_type", "auto_mapping", "inference_mode", "lora_dropout", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "runtime_config",
}  # fmt: skip


class LoraSettings(BaseModel):
    """The fields that decide what the adapter computes. `extra` fields are looked at by `check_settings`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    peft_type: Literal["LORA"]
    base_model_name_or_path: Name
    revision: Name | None = None
    peft_version: str | None = None
    r: Rank
    lora_alpha: Alpha
    target_modules: Annotated[Pattern | Patterns, Field(min_length=1)]
    exclude_modules: Pattern | Patterns | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Pattern | Patterns | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=20_000)] = {}
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=20_000)] = {}
    fan_in_fan_out: bool = False
    bias: Literal["none"] = "none"
    lora_bias: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian", "eva", "orthogonal"] = True
    modules_to_save: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)] | None = None

    def scale(self, alpha: float, rank: int) -> float:
        """What PEFT multiplies B · A by: α/r, or α/√r for rsLoRA."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether the module is one of `modules_to_save`, or inside of one. PEFT compares the ends of names, not whole parts of them."""
        return any(f"{entry}." in f"{module}." for entry in self.modules_to_save or ())


REMEDIES = {
    "peft_type": "only a LoRA can be merged: train the expert as one",
    "base_model_name_or_path": "write the name of the expert's base there",
    "bias": "its biases would change the base for all roles: train the expert with bias='none'",
    "init_lora_weights": "it changes the base: convert the adapter with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)",
    "ensure_weight_tying": "set it to false and name the head too where the embeddings are named; the file holds the tensors of both",
}


def check_settings(content: dict[str, Any]) -> tuple[LoraSettings | None, list[tuple[str, str]], list[str]]:
    """The settings (None if they do not hold), findings as (problem, remedy), and warnings."""
    settings, findings, warnings = None, [], []
    try:
        settings = LoraSettings.model_validate(content)
    except ValidationError as error:
        for name in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
            errors = [e for e in error.errors() if e["loc"][0] == name]
            first = next((e for e in errors if not e["type"].endswith("_type")), errors[0])  # of a choice, the kind that was meant
            found = "is missing" if first["type"] == "missing" else f"is {short(content[name])}"
            findings.append((f"{name} {found}", REMEDIES.get(name, f"{_expected(first['msg'])}; {SAVE_AGAIN}")))
    for name, reason in UNSUPPORTED.items():
        if content.get(name):
            findings.append((f"{name} is set", f"{reason}: {REMEDIES.get(name, 'train the expert without it')}"))
    for name in sorted(content.keys() - LoraSettings.model_fields.keys() - UNSUPPORTED.keys() - IGNORED):
        if not content[name]:
            continue  # off, whatever it is
        version = content.get("peft_version")
        if _is_newer(version):
            warnings.append(f"{cut(name)} is a field of PEFT {cut(str(version))} that this version does not know; it is ignored")
        else:
            findings.append((f"{cut(name)} is no field of PEFT {'.'.join(map(str, KNOWN_PEFT))}", "remove it if it means nothing"))
    return settings, findings, warnings


def _is_newer(version: Any) -> bool:
    try:
        return tuple(int(part) for part in str(version).split(".")[:2]) > KNOWN_PEFT
    except ValueError:
        return False


def short(value: Any) -> str:
    """A value out of a file, for a message."""
    return cut(repr(value))


def cut(text: str) -> str:
    """At most 60 characters of a text out of a file, on one line."""
    return printable(text if len(text) <= 60 else text[:57] + "…")


def _expected(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should", "it should")
    return message[0].lower() + message[1:]
