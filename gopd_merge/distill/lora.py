"""How adapters enter a pass. PEFT's own layers do the same with more copies; theirs are put back when a pass is over.

Scoring runs each row of a batch through an adapter of its own. PEFT does that too (`adapter_names`), and gathers and scatters the rows of
every adapter in every layer; here rows of one adapter stand together, and a layer adds to slices of what the base has computed.

Training adds the student's update to the base's output where that is, forward and backward.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def adapters_by_row(model: nn.Module, roles: Sequence[str]) -> Iterator[None]:
    """While it lasts row b of a batch is computed with the adapter `roles[b]`, or by the base where there is none of that name.

    Without gradient. The numbers are PEFT's, to the bit: an adapter runs all of its rows at once, as there. Rows of one role that follow
    each other need no copies.
    """
    rows_of: dict[str, list[int]] = {}
    for row, role in enumerate(roles):
        rows_of.setdefault(role, []).append(row)
    places = [(role, _together(rows)) for role, rows in rows_of.items()]
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    with running(layers, lambda layer: partial(_by_row, layer, places)):
        yield


@contextmanager
def trained_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """While it lasts every linear layer that has this adapter runs with it, and no other, and gradients reach it and the layer's input."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and name in layer.lora_A]
    plain = [layer for layer in layers if isinstance(layer.get_base_layer(), nn.Linear) and name not in layer.lora_variant]
    with running(plain, lambda layer: partial(_trained, layer, name)):
        yield


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While it lasts each layer keeps its input alone, and runs again when its gradient is wanted, which must be before the end.

    Transformers has that too, for models in training mode; the roles need evaluation mode, and one layer in training mode may drop out.
    """
    with running(layers, lambda layer: partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)):
        yield


@contextmanager
def running(layers: Iterable[Any], forward: Callable[[Any], Callable[..., Tensor]]) -> Iterator[None]:
    """While it lasts each layer's forward is what `forward` makes of the layer; hooks stay around it."""
    changed = []
    try:
        for layer in layers:
            layer.forward = forward(layer)
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward  # the class's own comes back


def _together(rows: list[int]) -> slice | list[int]:
    """Rows as a slice, where they are one."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] + 1 - rows[0] == len(rows) else rows


def _by_row(layer: Any, places: Sequence[tuple[str, slice | list[int]]], x: Tensor) -> Tensor:
    output: Tensor = layer.base_layer(x)
    for role, at in places:
        if role in layer.lora_A or role in layer.lora_embedding_A:
            output[at] += _update(layer, role, x[at]).to(output.dtype)
    return output


def _update(layer: Any, role: str, x: Tensor) -> Tensor:
    """What an adapter adds to a layer's output: B A x, scaled, in the order in which PEFT multiplies."""
    if role in layer.lora_A:
        a, b = layer.lora_A[role], layer.lora_B[role]
        update: Tensor = b(a(x.to(a.weight.dtype))).mul_(layer.scaling[role])
        return update
    a, b = layer.lora_embedding_A[role].T, layer.lora_embedding_B[role].T
    update = (F.embedding(x, a) @ b).mul_(layer.scaling[role])
    scale = getattr(layer.get_base_layer(), "embed_scale", None)  # of a base that multiplies its embeddings
    return update if scale is None else update * torch.as_tensor(scale, dtype=update.dtype, device=update.device)


def _trained(layer: Any, name: str, x: Tensor) -> Tensor:
    base, b, scaling = layer.get_base_layer(), layer.lora_B[name].weight, layer.scaling[name]
    place, inner = _Adapted.apply(x, layer.lora_A[name].weight, b, base, scaling)  # type: ignore[no-untyped-call]

    def product() -> Tensor:
        output: Tensor = base(x)  # (…, out)
        _add_product(output.view(-1, output.shape[-1]), inner, b.T)  # a view, or an error: a copy would be lost
        return output

    output: Tensor = _Computed.apply(place, product)  # type: ignore[no-untyped-call]
    return output


class _Adapted(torch.autograd.Function):
    """The way back of W x + s·B A x, W being frozen. It keeps x and A x, and gives a place for the output, which takes no memory.

    What is kept is known before the output is: a layer that is computed again stops where it has the last of it, and so without its last
    large product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, base: nn.Module, scaling: float) -> tuple[Tensor, Tensor]:
        inner = F.linear(_rows(x).to(a.dtype), a).mul_(scaling)  # (n, r)
        ctx.base, ctx.scaling = base, scaling
        ctx.save_for_backward(x, inner, a, b)
        ctx.mark_non_differentiable(inner)
        ctx.set_materialize_grads(False)
        return x.new_empty(1).expand(*x.shape[:-1], len(b)), inner

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, inner, a, b = ctx.saved_tensors
        grad = _rows(grad_outputs[0])  # (n, out)
        grad_of_update = grad.to(b.dtype)
        grad_inner = (grad_of_update @ b).mul_(ctx.scaling)  # (n, r)
        grad_b = grad_of_update.T @ inner
        grad_a = grad_inner.T @ _rows(x).to(a.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ dense_weight(ctx.base).to(grad.dtype)  # (n, in)
            _add_product(grad_x, grad_inner, a)
            grad_x = grad_x.reshape(x.shape).to(x.dtype)
        return grad_x, grad_a, grad_b, None, None


class _Computed(torch.autograd.Function):
    """What stands in the place that `_Adapted` gave; the gradient goes there as it is."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, product: Callable[[], Tensor]) -> Tensor:
        return product()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def dense_weight(layer: Any) -> Tensor:
    """The weight of a linear layer as numbers, (out, in), whatever it is kept as."""
    if getattr(layer, "quant_state", None) is not None:  # a shared base's weights come back without what bitsandbytes keeps with them
        from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module

        fix_4bit_weight_quant_state_from_module(layer)
    weight: Tensor = layer.dense_weight() if hasattr(layer, "dense_weight") else dequantize_module_weight(layer)
    return weight


def _rows(x: Tensor) -> Tensor:
    """(…, k) to (n, k)."""
    return x.reshape(-1, x.shape[-1])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += (left @ right).to(total.dtype)
