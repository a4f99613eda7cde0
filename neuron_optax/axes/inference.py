"""A layout found from the biases of a model, offline."""

import re
from typing import Any

import numpy as np

from neuron_optax.axes.evidence import Shapes, bias_of, explained, neurons_beside
from neuron_optax.axes.layouts import Layout, Rule
from neuron_optax.axes.libraries import FLAX, HAIKU, TORCH
from neuron_optax.axes.neurons import Neurons
from neuron_optax.axes.siblings import kernel_of
from neuron_optax.boxes import unbox
from neuron_optax.trees import named_leaves


def infer_layout(params: Any) -> Layout:
    """Find the neurons of every leaf from the bias beside it.

    A neuron is an entry of a bias: the axes of a kernel that have the lengths of the
    bias beside it index its neurons, those before the output stacked copies. What a
    bias leaves open follows `TORCH` for a leaf named ``weight``, `HAIKU` for ``w`` and
    `FLAX` for others. Biases have one neuron per entry.

    Use it once on the whole tree, not on what a mask or a label leaves of it, look at
    ``undecided`` (or at `describe`) and override what is wrong.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      A layout with one rule for each leaf; in its ``undecided`` the paths of leaves of
      which neither bias nor name tell the axes. They keep the default.

    Example:
      >>> import jax.numpy as jnp
      >>> experts = {"kernel": jnp.ones((4, 3, 2)), "bias": jnp.ones((4, 2))}
      >>> layout = infer_layout({"experts": experts, "wi": jnp.ones((4, 3, 2))})
      >>> layout.axes("experts/kernel", (4, 3, 2)).stack, layout.undecided
      ((0,), ('wi',))
    """
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(unbox(params))}
    rules, undecided = [], []
    for path, shape in shapes.items():
        default = _default(path)
        pattern = f"^{re.escape(path)}$"
        neurons = _neurons(path, shapes, default)
        rules.append(Rule(pattern, neurons or default.neurons(path, len(shape))))
        if neurons is None:
            rules[-1] = rules[-1]._replace(ranks=(len(shape),))
            undecided.append(path)
    return Layout(rules=tuple(rules), undecided=tuple(undecided))


def _default(path: str) -> Layout:
    if re.search(r"(^|[/_])(weight(_\w+)?|g)$", path):
        return TORCH
    return HAIKU if re.search(r"(^|/)(w|b|embeddings|offset)$", path) else FLAX


def _neurons(path: str, shapes: Shapes, default: Layout) -> Neurons | None:
    """Find the neurons of a kernel by its bias, of a bias by its kernel, or by name."""
    kernel, bias = kernel_of(path, shapes), bias_of(path, shapes)
    if bias is not None:
        return neurons_beside(shapes[bias], path, shapes, default)
    if kernel is not None:
        found = neurons_beside(shapes[path], kernel, shapes, _default(kernel))
        return Neurons(
            output=..., stack=tuple(range(len(found.stack if found else ())))
        )
    known = explained(path, shapes, default)
    return default.neurons(path, len(shapes[path])) if known else None
