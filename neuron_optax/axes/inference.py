"""A layout found from the biases of a model, offline."""

import re
from typing import Any

from neuron_optax.axes.evidence import Leaves, explained, leaves_of, neurons_of
from neuron_optax.axes.layouts import Layout
from neuron_optax.axes.libraries import FLAX, HAIKU, TORCH
from neuron_optax.axes.neurons import Neurons


def infer_layout(params: Any) -> Layout:
    """Find the neurons of every leaf from the bias beside it.

    A neuron is an entry of a bias: the axes of a kernel that have the lengths of the
    bias beside it index its neurons. Of several, those apart from the output (at the
    end, of a ``weight`` the last of them) are stacked copies, which the bias has, too.
    Where other axes have the same lengths, or there is no bias, the name decides as in
    `TORCH` for a leaf named ``weight``, `HAIKU` for ``w`` and `FLAX` for others.

    Use it once on the whole tree, not on what a mask or a label leaves of it, look at
    ``undecided`` (or at `describe`) and override what is wrong. Copies whose axis comes
    after the output, or that are as many as the inputs, may be taken for outputs.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      A layout for this very tree: another leaf raises. In its ``undecided`` are the
      paths of leaves of which neither bias nor name tell the axes; they keep the
      default.

    Example:
      >>> import jax.numpy as jnp
      >>> experts = {"kernel": jnp.ones((4, 3, 2)), "bias": jnp.ones((4, 2))}
      >>> layout = infer_layout({"experts": experts, "wi": jnp.ones((4, 3, 2))})
      >>> layout.axes("experts/kernel", (4, 3, 2)).stack, layout.undecided
      ((0,), ('wi',))
    """
    leaves = leaves_of(params)
    found = {path: _found(path, leaves) for path in leaves.shapes}
    found = {path: _among(path, of, found, leaves) for path, of in found.items()}
    neurons = tuple(
        (path, of or _default(path).neurons(path, len(leaves.shapes[path])))
        for path, of in found.items()
    )
    undecided = tuple(path for path, of in found.items() if of is None)
    return Layout(leaves=neurons, undecided=undecided)


def _default(path: str) -> Layout:
    if re.search(r"(^|[/_])(weight(_\w+)?|g)$", path):
        return TORCH
    haiku = r"(^|/)(w|b|embeddings|offset)$|__layer_stack"
    return HAIKU if re.search(haiku, path) else FLAX


def _found(path: str, leaves: Leaves) -> Neurons | None:
    """Find the neurons of a kernel by its bias, of other leaves by their name."""
    default = _default(path)
    if path in leaves.biases:
        return neurons_of(path, leaves, default)
    if path in leaves.biases.values():
        return Neurons(output=...)
    known = explained(path, leaves, default)
    return default.neurons(path, len(leaves.shapes[path])) if known else None


def _among(
    path: str, own: Neurons | None, found: dict[str, Neurons | None], leaves: Leaves
) -> Neurons | None:
    """Take the copies of the layers in the same module for those of a lone leaf."""
    shape, module = leaves.shapes[path], path.rpartition("/")[0].rpartition("/")[0]
    near = [
        (tuple(leaves.shapes[leaf][axis] for axis in of.stack), of.stack)
        for leaf, of in found.items()
        if of is not None and of.stack and leaf.startswith(f"{module}/")
    ]
    if len(shape) < 2 or not near or path in leaves.biases or own is None:
        return own
    lengths, stack = near[0]
    copies = all(axis < len(shape) for axis in stack)
    if not copies or tuple(shape[axis] for axis in stack) != lengths:
        return own
    return own._replace(stack=stack) if own.output is ... else None
