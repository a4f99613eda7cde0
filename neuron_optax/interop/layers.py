"""Which leaf every tensor of a torch layer is in Flax and Equinox, by tables.

A leaf is named by its path below its layer. Whether a layer is Flax's or Equinox's is
told by the names of its leaves.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from neuron_optax.interop.moves import (
    Move,
    Part,
    Shape,
    as_is,
    convolution,
    dense,
    linear,
    transposed,
    transposed_rows,
)

Pieces = tuple[tuple[Part, ...], ...]


class Layer(NamedTuple):
    """A torch layer, or one cell of a recurrent one.

    Attributes:
      name: of the module; ``""`` for the root.
      kind: a key of `WANTED`; ``""`` for one that no table knows.
      prefix: what comes before the names below in the ``state_dict``.
      suffix: what comes after them.
      shapes: of its tensors.
      groups: of a transposed convolution.
      heads: of attention.
      path: of what is above its leaves.
    """

    name: str
    kind: str
    prefix: str
    suffix: str
    shapes: Mapping[str, Shape]
    groups: int = 1
    heads: int = 0
    path: str = ""

    def full(self, tensor: str) -> str:
        """Return the name in the ``state_dict``."""
        return f"{self.prefix}{tensor}{self.suffix}"


class Wanted(NamedTuple):
    """A leaf that tensors of a layer are looked for in.

    Attributes:
      leaf: path below the layer; ``None`` if there is none and the pieces must be zero.
      pieces: as of `Link`, with the layer's names.
      move: from the shapes of pieces and leaf to a `Move`.
    """

    leaf: str | None
    pieces: Pieces
    move: Callable[[Shape, Shape], Move]


TENSORS = {  # of torch, Flax and Equinox
    "linear": (("weight", "kernel", "weight"), ("bias", "bias", "bias")),
    "embedding": (("weight", "embedding", "weight"),),
    "norm": (("weight", "scale", "weight"), ("bias", "bias", "bias")),
    "batch_norm": (
        ("weight", "scale", "weight"),
        ("bias", "bias", "bias"),
        ("running_mean", "mean", "mean"),
        ("running_var", "var", "var"),
    ),
}
TENSORS["convolution"] = TENSORS["transposed"] = TENSORS["linear"]
PROJECTIONS = ("query", "key", "value")
GATES = {"lstm": "ifgo", "gru": "rzn"}


def is_equinox(leaves: Mapping[str, Shape]) -> bool:
    """Whether the leaves below a layer have Equinox's names, which are torch's."""
    return any(re.search(r"(^|/)weight(_[ih]h)?$", name) for name in leaves)


def _named(
    layer: Layer, leaves: Mapping[str, Shape], transpose_kernel: bool | None
) -> Iterator[Wanted]:
    """Yield the leaves of a layer that has one for each tensor.

    In Flax ``out`` is the name of attention's last layer, whose inputs have two axes.
    """
    equinox, of_attention = is_equinox(leaves), layer.path.rpartition("/")[2] == "out"
    said = {"transpose_kernel": transpose_kernel, "groups": layer.groups}
    moves = {
        "linear": linear if of_attention else dense,
        "convolution": convolution,
        "transposed": functools.partial(transposed, **said),
    }
    if equinox:
        rows = functools.partial(transposed_rows, groups=layer.groups)
        moves = {"transposed": rows}
    for tensor, flax, name in TENSORS[layer.kind]:
        if tensor in layer.shapes:
            move = moves.get(layer.kind, as_is) if tensor == "weight" else as_is
            yield Wanted(name if equinox else flax, (((tensor, ...),),), move)


def _attention(
    layer: Layer, leaves: Mapping[str, Shape], transpose_kernel: bool | None
) -> Iterator[Wanted]:
    """Yield projections: rows of one tensor, or a tensor each if inputs differ."""
    equinox = is_equinox(leaves)
    weight, end = ("weight", "_proj") if equinox else ("kernel", "")
    width = layer.shapes["out_proj.weight"][0]
    for n, name in enumerate(PROJECTIONS):
        rows = slice(n * width, (n + 1) * width)
        alone = f"{name[0]}_proj_weight"
        part = (alone, ...) if alone in layer.shapes else ("in_proj_weight", rows)
        move = as_is if equinox else functools.partial(_heads, heads=layer.heads)
        yield Wanted(f"{name}{end}/{weight}", ((part,),), move)
        if "in_proj_bias" in layer.shapes:
            yield Wanted(f"{name}{end}/bias", ((("in_proj_bias", rows),),), as_is)
    out = f"output{end}" if equinox else "out"
    move = as_is if equinox else linear
    yield Wanted(f"{out}/{weight}", ((("out_proj.weight", ...),),), move)
    if "out_proj.bias" in layer.shapes:
        yield Wanted(f"{out}/bias", ((("out_proj.bias", ...),),), as_is)


def _heads(source: Shape, leaf: Shape, heads: int) -> Move:
    if len(leaf) == 3 and leaf[1] != heads:
        raise ValueError(f"torch has {heads} heads, the leaf of shape {leaf} {leaf[1]}")
    return linear(source, leaf)


def _recurrent(
    layer: Layer, leaves: Mapping[str, Shape], transpose_kernel: bool | None
) -> Iterator[Wanted]:
    """Yield the leaves of a cell: one for each gate, or one for all of them."""
    separate = "hi/kernel" in leaves or "hr/kernel" in leaves
    return _by_gate(layer, leaves) if separate else _all_gates(layer, leaves)


def _both(rows: Any) -> tuple[Part, ...]:
    return ("bias_ih", rows), ("bias_hh", rows)


def _by_gate(layer: Layer, leaves: Mapping[str, Shape]) -> Iterator[Wanted]:
    """Yield kernels and biases of gates: of the inputs ``i?``, the hidden units ``h?``.

    LSTM's biases are those of the hidden units, GRU's those of the inputs, but the last
    gate of GRU has both: its hidden units' is within the reset gate.
    """
    width = layer.shapes["weight_hh"][1]
    for n, gate in enumerate(GATES[layer.kind]):
        rows = slice(n * width, (n + 1) * width)
        entry = "if_" if "if_/kernel" in leaves and gate == "f" else f"i{gate}"
        yield Wanted(f"{entry}/kernel", ((("weight_ih", rows),),), linear)
        yield Wanted(f"h{gate}/kernel", ((("weight_hh", rows),),), linear)
        if "bias_ih" not in layer.shapes:
            continue
        if gate == "n":
            yield Wanted("in/bias", ((("bias_ih", rows),),), as_is)
            yield Wanted("hn/bias", ((("bias_hh", rows),),), as_is)
        else:
            side = "h" if layer.kind == "lstm" else "i"
            yield Wanted(f"{side}{gate}/bias", (_both(rows),), as_is)


def _all_gates(layer: Layer, leaves: Mapping[str, Shape]) -> Iterator[Wanted]:
    """Yield weights and biases of all gates: of nnx's fused cells and Equinox's."""
    equinox = is_equinox(leaves)
    for side in ("ih", "hh"):
        name = f"weight_{side}" if equinox else f"dense_{side[0]}/kernel"
        yield Wanted(name, (((f"weight_{side}", ...),),), as_is if equinox else linear)
    if "bias_ih" not in layer.shapes:
        return
    if layer.kind == "lstm":
        yield Wanted("bias" if equinox else "dense_h/bias", (_both(...),), as_is)
        return
    summed = 2 * layer.shapes["weight_hh"][1]
    first, last = slice(0, summed), slice(summed, summed // 2 * 3)
    pieces = _both(first), (("bias_ih", last),)
    yield Wanted("bias" if equinox else "dense_i/bias", pieces, as_is)
    yield Wanted("bias_n" if equinox else None, ((("bias_hh", last),),), as_is)


def _matrix(
    layer: Layer, leaves: Mapping[str, Shape], transpose_kernel: bool | None
) -> Iterator[Wanted]:
    """Yield the leaves of a layer of which only the rank of its weight is known."""
    kinds = {"embedding": "embedding", "scale": "norm"}
    kind = next((kinds[name] for name in leaves if name in kinds), "linear")
    return _named(layer._replace(kind=kind), leaves, transpose_kernel)


WANTED = dict.fromkeys(TENSORS, _named) | {
    "matrix": _matrix,
    "attention": _attention,
    "lstm": _recurrent,
    "gru": _recurrent,
}
