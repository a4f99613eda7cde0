"""Torch's side: the layers of a module or a ``state_dict``, tensors and arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn

from neuron_optax.interop.layers import Layer

Source = nn.Module | Mapping[str, Any]
KINDS = (
    ("attention", nn.MultiheadAttention),
    ("linear", nn.Linear),
    ("transposed", nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d),
    ("convolution", nn.Conv1d | nn.Conv2d | nn.Conv3d),
    ("embedding", nn.Embedding | nn.EmbeddingBag),
    ("batch_norm", nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d),
    ("batch_norm", nn.SyncBatchNorm),
    ("norm", nn.LayerNorm | nn.GroupNorm | nn.RMSNorm),
    ("lstm", nn.LSTM | nn.LSTMCell),
    ("gru", nn.GRU | nn.GRUCell),
)
RECURRENT = {3: "gru", 4: "lstm"}  # by how many rows a unit has
UNLIKE = {"attention": "add_zero_attn", "embedding": "max_norm"}  # no one else's
COUNT = "num_batches_tracked"  # of a normalisation; JAX has none


def tensors_of(source: Source) -> dict[str, torch.Tensor]:
    """Return the ``state_dict`` without counts of batches.

    Raises:
      TypeError: for what is neither module nor ``state_dict``.
    """
    named = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(named, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in named.values()
    ):
        kind = type(source).__name__
        raise TypeError(f"must be a torch.nn.Module or its state_dict, got {kind}")
    return {k: v for k, v in named.items() if k.rpartition(".")[2] != COUNT}


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy; NumPy has bfloat16 by ``ml_dtypes``."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def to_tensor(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Return a copy in dtype and on the device of ``like``."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(dtype=like.dtype, device=like.device)


def tied_to(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return, of every tensor that has several names, the first of them by each."""
    named: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        place = tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()
        named.setdefault(place if tensor.data_ptr() else name, []).append(name)
    several = [names for names in named.values() if len(names) > 1]
    return {name: names[0] for names in several for name in names}


def layers_of(source: Source, names: Iterable[str]) -> list[Layer]:
    """Return the layers that the tensors ``names`` belong to.

    Raises:
      ValueError: naming the layer, where a ``state_dict`` does not tell its kind, or
        an option that only torch has.
    """
    tensors = tensors_of(source)
    module = source if isinstance(source, nn.Module) else None
    modules = dict(module.named_modules(remove_duplicate=False)) if module else {}
    layers = []
    for owner, own in _by_owner(names, modules).items():
        prefix = f"{owner}." if owner else ""
        shapes = {tensor: tuple(tensors[prefix + tensor].shape) for tensor in own}
        found = modules.get(owner)
        if module is None:
            kind = _guess(owner, shapes)
        else:
            kind = next((kind for kind, of in KINDS if isinstance(found, of)), "")
        option = UNLIKE.get(kind, "")
        if getattr(found, option, None) not in (None, False):
            raise ValueError(
                f"{owner or kind}: neither Flax nor Equinox has torch's {option}"
            )
        groups, heads = getattr(found, "groups", 1), getattr(found, "num_heads", 0)
        layer = Layer(owner, kind, prefix, "", shapes, groups, heads)
        layers += _cells(layer) if kind in RECURRENT.values() else [layer]
    return layers


def _by_owner(
    names: Iterable[str], modules: Mapping[str, nn.Module]
) -> dict[str, list[str]]:
    """Return the tensors of every module; the output layer is part of attention."""
    owned: dict[str, list[str]] = {}
    for name in names:
        owner, _, tensor = name.rpartition(".")
        parent, _, last = owner.rpartition(".")
        if last and isinstance(modules.get(parent), nn.MultiheadAttention):
            owner, tensor = parent, f"{last}.{tensor}"
        owned.setdefault(owner, []).append(tensor)
    return owned


def _cells(layer: Layer) -> list[Layer]:
    """Return the cells of a recurrent layer, ``l0``, ``l0_reverse``, ``l1`` ..."""
    cells: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor, shape in layer.shapes.items():
        name, _, cell = tensor.partition("_l")
        cells.setdefault(cell and f"l{cell}", {})[name] = shape
    return [
        layer._replace(
            name=".".join(filter(None, (layer.name, cell))),
            suffix=cell and f"_{cell}",
            shapes=shapes,
        )
        for cell, shapes in cells.items()
    ]


def _guess(owner: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the kind of a layer by the names and ranks of its tensors.

    Raises:
      ValueError: where a convolution could be a transposed one, and for attention, of
        which the tensors do not tell the heads.
    """
    if "weight_hh_l0" in shapes or "weight_hh" in shapes:
        rows, width = shapes.get("weight_hh_l0") or shapes["weight_hh"]
        return RECURRENT.get(rows // width, "")
    if any(name.endswith("_proj_weight") for name in shapes):
        raise ValueError(
            f"{owner}: a state_dict does not say how many heads attention has: give "
            "the module"
        )
    if "running_mean" in shapes:
        return "batch_norm"
    rank = len(shapes.get("weight", ()))
    if rank > 2:
        raise ValueError(
            f"{owner}.weight of shape {shapes['weight']}: a state_dict does not say "
            "whether a convolution is a transposed one: give the module"
        )
    return {1: "norm", 2: "matrix"}.get(rank, "")
