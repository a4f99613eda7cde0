"""The table of what a layout takes for the neurons of every leaf."""

import math
import re
from typing import Any

import jax

from neuron_optax.axes.evidence import Leaves, explained, leaves_of
from neuron_optax.axes.layouts import Layout, as_layout
from neuron_optax.axes.libraries import FLAX, HAIKU, PER_ENTRY, PER_LAYER, TORCH
from neuron_optax.axes.neurons import MatrixAxes, Neurons
from neuron_optax.axes.siblings import kernel_of
from neuron_optax.axes.views import TreeAxes

LIBRARIES = FLAX, TORCH, HAIKU, PER_ENTRY, PER_LAYER
READY_MADE = [rule for layout in LIBRARIES for rule in layout.rules]


def describe(params: Any, layout: Layout | Neurons | MatrixAxes = FLAX) -> None:
    """Print what ``layout`` takes for the neurons of every leaf of ``params``.

    The note says ``check`` where the rank exceeds what the name explains (a scanned
    stack whose layers would be merged, say), the bias beside it has another number of
    neurons, or `infer_layout` could not decide: name its axes by `Layout.override`. It
    says so if a leaf that was named has fewer neurons than the bias beside it, and of a
    bias which leaf beside it lends its rate for ``bias="kernel"``. Last come rules of
    your own that no leaf is the first to match.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.
      layout: as ``neurons`` of the strategies.

    Raises:
      TypeError: as `scale_per_neuron`.
      ValueError: as `scale_per_neuron`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> describe({"Dense_0": layer, "scanned": {"kernel": jnp.ones((4, 3, 2))}})
      path            shape      output  stack  fan-in  neurons  note
      Dense_0/bias    (2,)       (0,)    ()     1       2        beside kernel
      Dense_0/kernel  (3, 2)     (1,)    ()     3       2
      scanned/kernel  (4, 3, 2)  (2,)    ()     12      2        check
    """
    layout, leaves = as_layout(layout), leaves_of(params)
    axes = layout.resolve(
        {
            path: jax.ShapeDtypeStruct(shape, float)
            for path, shape in leaves.shapes.items()
        }
    )
    rows = [["path", "shape", "output", "stack", "fan-in", "neurons", "note"]]
    for path, of in axes.items():
        fan_in = math.prod(of.view[axis] for axis in of.fan_in)
        output, stack = of.whole.output, of.whole.stack
        cells = path, of.shape, output, stack, fan_in, math.prod(of.numbers)
        rows.append([*map(str, cells), _note(path, leaves, axes, layout)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    used = [layout.rule(path, len(shape)) for path, shape in leaves.shapes.items()]
    for rule in layout.rules:
        if rule not in READY_MADE and rule not in used:
            print(f"no leaf is the first to match {rule.pattern!r}")


def _note(path: str, leaves: Leaves, axes: TreeAxes, layout: Layout) -> str:
    kernel = kernel_of(path, axes)
    if kernel is not None and len(axes[kernel].shape) > 1:
        return f"beside {kernel.rpartition('/')[2]}"
    if re.search(r"(^|/)(bias|b)$", path):
        return "own statistic"
    if not explained(path, leaves, layout):
        return "check"
    rank = len(axes[path].shape)
    blocks = layout.neurons(path, rank).blocks
    notes = [f"{count} blocks of axis {axis % rank}" for axis, count in blocks]
    bias = leaves.biases.get(path)
    if bias is not None and axes[path].fan_in:
        ours, theirs = (math.prod(axes[x].whole.numbers) for x in (path, bias))
        rule = layout.rule(path, rank)
        named = rule is not None and rule.ranks is None
        if ours != theirs and not (named and ours and theirs % ours == 0):
            return "check"
        notes += ["coarser than its bias"] * (ours < theirs)
    return ", ".join(notes)
