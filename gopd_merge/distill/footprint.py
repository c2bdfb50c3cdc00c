"""How much memory the phases of a step take, found by running them without numbers: the real code on tensors without storage.

Nothing is loaded and nothing computed, so a model of 8 B parameters takes seconds. What PyTorch would allocate is counted as it
would allocate it: a storage lives from the operation that makes it until the last reference to it is gone.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone, expert, layers_of
from gopd_merge.distill.fused import backward_in_chunks, normalise_
from gopd_merge.distill.mixture import float_logits
from gopd_merge.distill.objective import HIDDEN, gradient_of, hidden_distance
from gopd_merge.distill.sizes import PROBED_TOKENS, Sizes, nf4_bytes
from gopd_merge.experts.base import load_dtypes
from gopd_merge.experts.intake import Expert


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that were made inside it and still live, and the most that there have been."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count what it made."""
        self._known.update(_storages((args, kwargs)))  # what was there before, of which the operation may make views
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> list[Any]:
    return [tensor.untyped_storage() for tensor in tree_leaves(values) if isinstance(tensor, Tensor)]


class _MatMul4Bit(torch.autograd.Function):
    """x Wᵀ with a copy of W at full precision while it is needed, as bitsandbytes makes it forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return x @ torch.empty_like(weight).T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] @ torch.empty_like(ctx.weight), None


class _Linear4bit(nn.Linear):
    """Stands for a 4-bit layer, with the shapes of a plain one."""

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = _MatMul4Bit.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def dense_weight(self) -> Tensor:
        """The copy at full precision."""
        return torch.empty_like(self.weight)


class Footprint:
    """A base with all experts and a student on it, as shapes. All figures are bytes."""

    def __init__(self, location: str, experts: Sequence[Expert], rank: int, targets: Sequence[str], quantize: str, device: str) -> None:
        """`location` is a folder with the base's config.json; its weights are not needed. With rank 0 there is no student on it.

        A model whose code does not run without values raises what it raises, here or in a phase; `Forecast` makes one error of it.
        """
        config = AutoConfig.from_pretrained(location)
        self._roles = [expert(e.domain) for e in experts]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=load_dtypes(quantize, device)[0] or config.dtype)
            head = model.get_output_embeddings()
            quantised = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head] if quantize == "nf4" else []
            for module in quantised:
                module.__class__ = _Linear4bit
            self.weights = weights = _stored(model)  # not quantised
            self.parameters = model.num_parameters()
            self.base = weights - sum(m.weight.nbytes - nf4_bytes(m.weight.numel()) for m in quantised)
            packed = {id(m.weight): m.weight.numel() // 2 for m in quantised}  # their scales are not shared out
            self.layers = [sum(packed.get(id(p), p.nbytes) for p in layer.parameters()) for layer in layers_of(model)]
            self._backbone = Backbone(model, None, experts, as_shapes=True)
            self.experts = _stored(model) - weights
            self._answers = STUDENT if rank else self._roles[0] if experts else REFERENCE
            if rank:
                self._backbone.add_student(rank, targets, seed=0)
            self.student = _stored(model) - weights - self.experts
        self._fake = FakeTensorMode()
        with self._fake:
            _give_fake_storage(model)
        self._rollouts: dict[tuple[bool, int, int, int], int] = {}

    def rollout(self, sizes: Sizes) -> int:
        """The prompts' pass, and the last token's pass with the keys and values of all others kept."""
        return self._longest(False, sizes)

    def mixture(self, sizes: Sizes) -> int:
        """The same where a target is sampled: expert and base run every prompt side by side, and their logits are mixed."""
        return self._longest(True, sizes)

    def _longest(self, mixed: bool, sizes: Sizes) -> int:
        key = (mixed, sizes.batch_size, sizes.prompt_tokens, sizes.max_new_tokens)
        if key not in self._rollouts:
            self._rollouts[key] = self._rollout(*key)
        return self._rollouts[key]

    @torch.no_grad()
    def _rollout(self, mixed: bool, batch: int, prompt_tokens: int, max_new_tokens: int) -> int:
        total = prompt_tokens + max_new_tokens
        live = LiveBytes()
        with self._fake, live, self._playing(mixed, batch) as decode:
            cache = DynamicCache(config=self._backbone.model.config)
            decode(cache, prompt_tokens)
            prompt_peak = live.peak
            while (length := cache.get_seq_length()) < total - 1:  # in long strides: the peak is at the last token
                decode(cache, min(length, total - 1 - length))
            live.peak = live.now
            decode(cache, 1)
        return max(prompt_peak, live.peak)

    @contextmanager
    def _playing(self, mixed: bool, batch: int) -> Iterator[Callable[[DynamicCache, int], None]]:
        """What goes on from a cache by so many tokens: one role, or expert and base in one batch."""
        backbone = self._backbone
        if not mixed:
            with backbone.role(self._answers) as model:
                yield lambda cache, tokens: self._decode(model, cache, batch, tokens)
            return
        rows = [role for role in (self._roles[0], REFERENCE) for _ in range(batch)]
        with float_logits(backbone), backbone.mixed_batch(rows):
            yield lambda cache, tokens: self._decode_mixed(cache, batch, tokens)

    def _decode_mixed(self, cache: DynamicCache, batch: int, tokens: int) -> None:
        scores = self._next(self._backbone.peft, cache, 2 * batch, tokens)  # (2·B, V)
        mixed = torch.einsum("r,rbv->bv", scores.new_ones(2), scores.reshape(2, batch, -1))
        drawn = _drawn(mixed).unsqueeze(1)
        torch.full_like(scores, 0.0).scatter_(1, drawn.repeat(2, 1), 1.0)

    def _decode(self, model: Any, cache: DynamicCache, batch: int, tokens: int) -> None:
        _drawn(self._next(model, cache, batch, tokens))

    def _next(self, model: Any, cache: DynamicCache, batch: int, tokens: int) -> Tensor:
        """(B, V) float32 logits after so many more tokens, as generate() makes them."""
        mask = torch.ones(batch, cache.get_seq_length() + tokens, dtype=torch.long)
        ids = torch.zeros(batch, tokens, dtype=torch.long)
        positions = (mask.cumsum(-1) - 1)[:, -tokens:]
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1].to(torch.float32, copy=True)
        return logits

    @torch.no_grad()
    def score(self, sizes: Sizes, apart: bool = False, ratios: bool = False) -> int:
        """Expert and reference of one micro-batch in one pass, beside what earlier micro-batches left.

        `apart`: the hidden states of both roles are kept, not their mixture. `ratios`: both are projected, a chunk at a time.
        """
        rows, tokens, backbone = sizes.micro_batch_size, sizes.max_new_tokens, self._backbone
        live = LiveBytes()
        with self._fake, live, backbone.float_head():
            kept = 2 if apart or not backbone.head_is_shared else 1
            left = torch.zeros(kept * sizes.batch_size * tokens, backbone.hidden_size)
            roles = [self._roles[i % len(self._roles)] for i in range(rows)] if self._roles else []
            roles = sorted([*roles, *[REFERENCE] * rows])
            backbone.logits(left[:1], roles[0])  # earlier micro-batches have left the head in float32
            hidden = backbone.hidden(roles, _ids(len(roles), sizes))
            own = hidden.flatten(0, 1)[torch.arange(len(roles) * tokens)]  # any places will do
            if ratios:
                log_probs = [backbone.logits(own[: sizes.chunk_tokens], roles[0]).log_softmax(-1) for _ in range(2)]
                torch.stack(log_probs).exp().sum(-1)
                del log_probs
            del hidden
            normalise_(backbone.logits(own[: min(rows * PROBED_TOKENS, sizes.chunk_tokens)], roles[0]))
            part = own[: rows * tokens].float() * 1.0
            del part, left
        return live.peak

    def update(self, sizes: Sizes, estimator: str, top_k: int = 64, apart: bool = False, recompute: bool = False) -> int:
        """Forward and backward of one micro-batch, the gradients of the student included.

        `apart`: the target is projected once for each role. `recompute`: only the layers' inputs are kept for the way back.
        """
        backbone, tokens = self._backbone, sizes.max_new_tokens
        backbone.recompute_activations(recompute)
        for parameter in backbone.student_parameters():
            parameter.grad = None
        live = LiveBytes()
        with self._fake, live, backbone.float_head(), backbone.training():
            target = torch.empty(sizes.batch_size * tokens, backbone.hidden_size)  # of the whole step
            count = sizes.micro_batch_size * tokens
            places = torch.arange(count)  # any will do

            def log_q(rows: slice, logits: Tensor) -> Tensor:
                part = target[:count][rows]
                if not apart and backbone.head_is_shared:
                    return normalise_(backbone.logits(part))
                return normalise_(backbone.logits(part, *self._roles[:1]) + backbone.logits(part, REFERENCE))

            hidden = backbone.hidden(STUDENT, _ids(sizes.micro_batch_size, sizes)).flatten(0, 1)[places]  # (n, H)
            ids = torch.zeros(count, dtype=torch.long)
            if estimator == HIDDEN:
                leaf = hidden.detach().requires_grad_()
                torch.autograd.backward(hidden_distance(leaf, target[:count]).sum())
                torch.autograd.backward(hidden, leaf.grad)
            else:  # chunks are alike: one tells the most that there is
                rest = torch.empty(max(0, count - sizes.chunk_tokens), backbone.hidden_size)  # of the gradient
                chunk = slice(min(count, sizes.chunk_tokens))
                of_logits = gradient_of(estimator, top_k)
                backward_in_chunks(hidden[chunk], ids[chunk], backbone.logits, log_q, of_logits, count, sizes.chunk_tokens)
                del rest
            del hidden
        return live.peak


def _drawn(logits: Tensor) -> Tensor:
    """(B, V) to (B,), as `decoding.Draw` takes its noise."""
    return torch.empty_like(logits).exponential_().log_().mul_(-1).add_(logits).argmax(-1)


def _ids(rows: int, sizes: Sizes) -> Tensor:
    return torch.zeros(rows, sizes.prompt_tokens + sizes.max_new_tokens, dtype=torch.long)


def _stored(model: nn.Module) -> int:
    """Bytes of all distinct parameters and buffers."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.nbytes for t in tensors.values())


def _give_fake_storage(model: nn.Module) -> None:
    """Meta tensors become fake ones of the CPU, which libraries do not treat specially. Tied ones stay tied."""
    replaced: dict[int, Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], dict[str, Any]] = (module._parameters, module._buffers)
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in replaced:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    replaced[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
                tensors[name] = replaced[id(tensor)]
