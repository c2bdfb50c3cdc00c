"""One base in memory, playing every role: an expert with its adapter on, the reference with all off, the student with a fresh one.

A role is a name given to the backbone: `STUDENT`, `REFERENCE`, or `expert(domain)`. What is on is set in `role()` alone and
restored on error; between calls the student is on, and only its adapter ever has gradients.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gopd_merge.disk import as_os_error
from gopd_merge.distill.lora import adapters_by_row, recomputed, trained_adapter
from gopd_merge.errors import GopdError, InputError
from gopd_merge.experts.base import check_patterns_on
from gopd_merge.experts.deltas import LAYER_PREFIX, Update
from gopd_merge.experts.intake import CONFIG, WEIGHTS, Expert
from gopd_merge.experts.schema import SAVE_AGAIN

STUDENT, REFERENCE = "student", "__base__"  # "__base__" is what PEFT calls a row of a batch without any adapter
START = "start"  # the student as it began, where it did not begin at the base


def expert(domain: str) -> str:
    """The role of a domain's expert."""
    return f"expert-{domain}"


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder's layers: what Transformers says must stay on one device. None where a model does not say it."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.get_decoder().modules() if kinds & {kind.__name__ for kind in type(module).__mro__}]


class Backbone:
    """The base with all adapters on it. Always in evaluation mode: no dropout, so a role is one deterministic function."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, experts: Sequence[Expert], as_shapes: bool = False
    ) -> None:
        """Without experts it is the bare base, until a student comes.

        With `as_shapes` the adapters' tensors are not read, only made room for: what `footprint` needs.
        """
        self.tokenizer = tokenizer
        self.device = model.device
        self.is_shared = False  # whether each process holds a part of it only, see `sharding`
        self.peft: Any = model  # a PeftModel as soon as there is an adapter
        self.recomputes_activations = False
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._float_weights: dict[int, Tensor] | None = None  # by head, see `float_head`
        self._softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        names = [name for name, _ in model.named_modules()]
        for one in experts:
            check_patterns_on(one, names)  # some modules hold no tensor, so that intake cannot know them
        self._alone = {expert(one.domain) for one in experts if not one.mixes}  # roles that no other can share a batch with
        for one in experts:
            if as_shapes:
                self._add(expert(one.domain), _fresh(one))
            else:
                self.load_adapter(one.path, expert(one.domain))
        self._freeze()

    def add_student(self, rank: int, targets: Sequence[str], seed: int) -> None:
        """A fresh adapter, a no-op until it is trained, on every kind of module that an expert adapts; switched on."""
        torch.manual_seed(seed)
        self._add(STUDENT, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM"))
        self._freeze()

    @torch.no_grad()
    def start_student(self, updates: Mapping[str, Update]) -> None:
        """Begin at these updates instead of at the base: a fresh student whose first ranks are theirs. START keeps them as they are.

        What of the student's rank they leave free stays as it was made, a no-op until it is trained.
        Raises ValueError for an update of more ranks than the student has, or of a module that it does not adapt.
        """
        layers = {
            name.removeprefix(LAYER_PREFIX): layer for name, layer in self.peft.named_modules() if STUDENT in getattr(layer, "lora_A", ())
        }
        for module, update in updates.items():
            if module not in layers or len(update.a) > layers[module].r[STUDENT]:
                raise ValueError(f"{module}: an update of rank {len(update.a)} does not fit the student")
            layer, rank = layers[module], len(update.a)
            layer.lora_A[STUDENT].weight[:rank] = update.a
            layer.lora_B[STUDENT].weight[:, :rank] = update.b / layer.scaling[STUDENT]
        self._add(START, deepcopy(self.peft.peft_config[STUDENT]))
        state = get_peft_model_state_dict(self.peft, adapter_name=STUDENT, save_embedding_layers=False)
        set_peft_model_state_dict(self.peft, state, adapter_name=START)
        self._freeze()

    def add_updates(self, role: str, updates: dict[str, Update]) -> None:
        """An adapter that is given by its updates, as `experts.static` makes them."""
        ranks = {module: len(update.a) for module, update in updates.items()}
        rank = max(ranks.values())
        # With α = r everywhere the scale is 1, and b already holds it.
        config = LoraConfig(
            r=rank, lora_alpha=rank, rank_pattern=ranks, alpha_pattern=dict(ranks), target_modules=list(updates), task_type="CAUSAL_LM"
        )
        self._add(role, config)
        state = {f"{LAYER_PREFIX}{module}.lora_A.weight": update.a for module, update in updates.items()}
        state |= {f"{LAYER_PREFIX}{module}.lora_B.weight": update.b for module, update in updates.items()}
        loaded = set_peft_model_state_dict(self.peft, state, adapter_name=role)
        if loaded.unexpected_keys:
            raise GopdError(f"{role}: the base has no place for {loaded.unexpected_keys[0]}; please report this")
        self._freeze()

    def load_adapter(self, folder: Path, role: str) -> None:
        """An adapter folder under a role of its own, read by PEFT. Raises InputError unless all of its tensors found their place."""
        with _peft_errors(folder):
            if isinstance(self.peft, PeftModel):
                self.peft.load_adapter(folder, adapter_name=role)
            else:
                self.peft = PeftModel.from_pretrained(self.peft, folder, adapter_name=role)
        self._check_loaded(folder, role)
        self._freeze()

    def add_reference(self, one: Expert) -> None:
        """An adapter beside the experts, to measure rewards against; its role is its domain. Raises InputError as `load_adapter`."""
        self.load_adapter(one.path, one.domain)
        if not one.mixes:
            self._alone.add(one.domain)

    def remove(self, role: str) -> None:
        """Delete a role's adapter."""
        self.peft.delete_adapter(role)
        if not any(isinstance(module, ModulesToSaveWrapper) for module in self.peft.modules()):  # PEFT leaves these where they were
            self._alone.discard(role)
        self._freeze()

    def student_parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is trained."""
        return [parameter for name, parameter in self.peft.named_parameters() if f".{STUDENT}." in name]

    @contextmanager
    def role(self, role: str) -> Iterator[PeftModel]:
        """The model as that role, for generation or scoring without gradient. Afterwards the student is on again."""
        try:
            if role == REFERENCE:
                with self.peft.disable_adapter() if isinstance(self.peft, PeftModel) else nullcontext():
                    yield self.peft
            else:
                self.peft.base_model.set_adapter(role, inference_mode=role != STUDENT)
                yield self.peft
        finally:
            self._freeze()

    def hidden(self, roles: Sequence[str] | str, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states (B, T, H), as the head receives them; row b is computed by `roles[b]`.

        Without a mask every row begins at column 0, and may end in anything: what comes after a token has no part in its state.
        Gradients flow only where every row is the student's.
        """
        if isinstance(roles, str):
            roles = [roles] * len(ids)
        distinct = sorted(set(roles))
        if distinct == [STUDENT]:
            return self._forward(ids, attention_mask)
        with torch.no_grad():
            if not isinstance(self.peft, PeftModel):
                return self._forward(ids, attention_mask)
            if self.can_mix:
                with self.mixed_batch(roles):
                    return self._forward(ids, attention_mask)
            parts = {}
            for role in distinct:
                rows = torch.tensor([index for index, r in enumerate(roles) if r == role], device=ids.device)
                with self.role(role):
                    parts[role] = (rows, self._forward(ids[rows], None if attention_mask is None else attention_mask[rows]))
            hidden = torch.empty(len(roles), *next(iter(parts.values()))[1].shape[1:], device=ids.device)
            for rows, part in parts.values():
                hidden[rows] = part.to(hidden.dtype)
            return hidden

    @property
    def can_mix(self) -> bool:
        """Whether all roles can run in one batch, see `Expert.mixes`; else `hidden` runs them one after the other."""
        return not self._alone

    @contextmanager
    def mixed_batch(self, roles: Sequence[str]) -> Iterator[None]:
        """While it lasts, row b of a batch is computed by `roles[b]`, without gradient."""
        with torch.no_grad(), adapters_by_row(self.peft, roles):
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around forward and backward passes of the student: the same numbers with less memory and time, but for rounding."""
        with ExitStack() as stack:
            stack.enter_context(trained_adapter(self._decoder, STUDENT))
            if self.recomputes_activations:
                stack.enter_context(recomputed(layers_of(self.model)))
            yield

    def recompute_activations(self, wanted: bool = True) -> None:
        """Whether `training` keeps no more than each layer's input from now on, and runs every layer again on the way back.

        Raises InputError for a model of which Transformers does not say what its layers are.
        """
        if wanted and not layers_of(self.model):
            raise InputError(
                f"--activation-checkpointing: Transformers does not say what the layers of {type(self.model).__name__} are; "
                "leave it out, and take a smaller --micro-batch-size"
            )
        self.recomputes_activations = wanted

    @property
    def hidden_size(self) -> int:
        """H, what the head takes in."""
        return int(self._head.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """V, how many logits the head gives."""
        return int(self._head.weight.shape[0])

    @property
    def head_has_bias(self) -> bool:
        """Whether the head adds a bias."""
        return getattr(self._head, "bias", None) is not None

    @property
    def model(self) -> PreTrainedModel:
        """The base itself, with what adapters put in it."""
        return self.peft.get_base_model() if isinstance(self.peft, PeftModel) else self.peft

    @property
    def head_is_shared(self) -> bool:
        """Whether all roles project hidden states alike and linearly, so that mixing hidden states mixes logits."""
        head: torch.nn.Module = self.model.get_output_embeddings()
        return self._softcap is None and not isinstance(head, ModulesToSaveWrapper) and not hasattr(head, "lora_A")

    def logits(self, hidden: Tensor, role: str = STUDENT) -> Tensor:
        """(n, H) hidden states of a role to (n, V) logits, in float32: rounding is amplified by λ + |1 − λ|."""
        head = self._head_of(role)
        if not hasattr(head, "lora_A"):
            logits = F.linear(hidden.float(), self._float_weight(head), None if head.bias is None else head.bias.float())
        elif role == STUDENT:
            logits = head(hidden.to(self._head.weight.dtype)).float()
        else:
            with self.role(role):
                logits = head(hidden.to(self._head.weight.dtype)).float()
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    @contextmanager
    def float_head(self) -> Iterator[None]:
        """While it lasts, heads of less than float32 are kept in float32 too, each made at its first use; without it, at every use."""
        self._float_weights = {}
        try:
            yield
        finally:
            self._float_weights = None

    def _float_weight(self, head: Any) -> Tensor:
        weight: Tensor = head.weight
        if weight.dtype == torch.float32 or self._float_weights is None:
            return weight.float()
        if id(head) not in self._float_weights:
            self._float_weights[id(head)] = weight.detach().float()
        return self._float_weights[id(head)]

    def save_student(self, folder: Path, base_name: str, base_revision: str | None) -> None:
        """The student as a plain PEFT adapter: adapter_config.json and adapter_model.safetensors."""
        config = self.peft.peft_config[STUDENT]
        config.base_model_name_or_path = base_name
        config.revision = base_revision
        shutil.rmtree(folder / STUDENT, ignore_errors=True)  # of a save that was killed
        with as_os_error(folder / WEIGHTS):
            # Where the student adapts embeddings or head, PEFT would put the base's own (tied, frozen) weights beside its tensors.
            self.peft.save_pretrained(folder, selected_adapters=[STUDENT], save_embedding_layers=False)
        for file in (folder / STUDENT).iterdir():  # PEFT puts every adapter but "default" in a folder of its own
            file.rename(folder / file.name)
        (folder / STUDENT).rmdir()

    def load_student(self, folder: Path) -> None:
        """Bring the student back to what `save_student` wrote. Raises InputError for the adapter of another student."""
        self._check_loaded(folder, STUDENT)
        set_peft_model_state_dict(self.peft, load_file(folder / WEIGHTS), adapter_name=STUDENT)
        self._freeze()

    def _add(self, role: str, config: PeftConfig) -> None:
        if isinstance(self.peft, PeftModel):
            self.peft.add_adapter(role, config)
        else:
            self.peft = PeftModel(self.peft, config, adapter_name=role)

    def _check_loaded(self, folder: Path, role: str) -> None:
        """PEFT passes over tensors that its config does not speak of, and leaves at random what the file lacks, without an error."""
        loaded = {_tensor_name(name) for name in get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)}
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            written = {_tensor_name(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        for names, problem in ((written - loaded, "has no place on the base"), (loaded - written, "is missing from the file")):
            if names:
                raise InputError(
                    f"{folder}: {len(names)} tensor(s) do not fit its {CONFIG} and the base: {min(names)} {problem}; "
                    "put the config and the tensors of one training together"
                )

    def _head_of(self, role: str) -> Any:
        """The head of that role: an expert may have saved one of its own. With a LoRA on it, it is all roles' at once."""
        head = self.model.get_output_embeddings()
        if not isinstance(head, ModulesToSaveWrapper):
            return head
        return head.modules_to_save[role] if role in head.modules_to_save else head.original_module  # noqa: SIM401 - it has no get()

    def _forward(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """By the decoder alone: even for one token a row the head would read all of its weights."""
        given = {}
        if attention_mask is not None:  # left padding must not move a token
            given = {"attention_mask": attention_mask, "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)}
        hidden: Tensor = self._decoder(input_ids=ids, use_cache=False, **given)[0]
        return hidden  # (B, T, H)

    def _freeze(self) -> None:
        """The student on (once there is one), and gradients for its adapter alone: PEFT's switching turns on others' as well."""
        if isinstance(self.peft, PeftModel) and STUDENT in self.peft.peft_config:
            self.peft.base_model.set_adapter(STUDENT)
        for name, parameter in self.peft.named_parameters():
            parameter.requires_grad_(f".{STUDENT}." in name)
        self.peft.eval()

    @torch.no_grad()
    def check_head(self) -> None:
        """Raises GopdError where the model does more to its logits than the head and a soft-cap."""
        ids = torch.arange(8, device=self.device).unsqueeze(0)  # (1, 8)
        mask = torch.ones_like(ids)
        with self.role(REFERENCE) as model:  # an expert's own head, if it is on, says nothing of the base's
            expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
        found = self.logits(self.hidden(REFERENCE, ids, mask)[0], REFERENCE)
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()):
            raise GopdError(
                f"{type(self.model).__name__} changes its logits after the output head, which is not supported yet; use another base"
            )


def _fresh(expert: Expert) -> PeftConfig:
    """An adapter's config for an untrained one of the same shapes."""
    config = PeftConfig.from_pretrained(expert.path)
    config.init_lora_weights = True
    return config


@contextmanager
def _peft_errors(folder: Path) -> Iterator[None]:
    """What PEFT says about an adapter that it cannot load, in one line."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{folder}: PEFT cannot load it: {' '.join(str(error).split())[:300]}; {SAVE_AGAIN}") from error


def _tensor_name(name: str) -> str:
    """DoRA's magnitudes have had two names."""
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name
