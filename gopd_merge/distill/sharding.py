"""A base that is shared out: each process holds its part of every layer, and a layer is whole only while it runs (FSDP2).

All processes then run the base equally often: none can run it alone.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gopd_merge.distill.backbone import Backbone, layers_of
from gopd_merge.errors import InputError


def share_out(backbone: Backbone, device: torch.device, processes: int) -> None:
    """Cut the base's weights in its decoder layers into as many parts as there are processes, and put what is this one's on the device.

    Adapters stay whole, so that they are trained as without it, and so do embeddings, the last norm and the head, which the loss uses
    outside of a forward pass. Call it when all adapters are on the base. Raises InputError for roles or a model that cannot do it.
    """
    layers = layers_of(backbone.model)
    if not layers:
        raise InputError(f"--shard-base: Transformers does not say what the layers of {type(backbone.model).__name__} are; leave it out")
    if not backbone.can_mix:
        raise InputError(
            "--shard-base: all processes must run the base equally often, but an expert here (DoRA, modules_to_save) cannot share a batch "
            "with others; leave it out, or leave out --shard-base"
        )
    mesh = init_device_mesh(device.type, (processes,))
    roles = set(backbone.peft.peft_config)
    adapters = {parameter for name, parameter in backbone.peft.named_parameters() if roles & set(name.split("."))}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    decoder = backbone.model.get_decoder()
    whole = [tensor for tensor in (*backbone.peft.parameters(), *backbone.peft.buffers()) if not isinstance(tensor, DTensor)]
    for tensor in whole:
        tensor.data = tensor.data.to(device)
    fully_shard(
        decoder, mesh=mesh, reshard_after_forward=True, ignored_params={p for p in decoder.parameters() if not isinstance(p, DTensor)}
    )
    backbone.device, backbone.is_shared = device, True


def held_bytes(backbone: Backbone) -> int:
    """Bytes of weights in the decoder's layers, adapters included, that this process holds between two passes."""
    parameters = {p for layer in layers_of(backbone.model) for p in layer.parameters()}
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    return sum(part.numel() * part.element_size() for part in parts)
