"""The table of what a layout takes for the neurons of every leaf."""

import math
import re
from typing import Any

import numpy as np

from neuron_optax.axes.evidence import Shapes, bias_of, explained
from neuron_optax.axes.layouts import Layout, as_layout
from neuron_optax.axes.libraries import FLAX
from neuron_optax.axes.neurons import Axes, MatrixAxes, Neurons
from neuron_optax.axes.siblings import kernel_of
from neuron_optax.axes.views import TreeAxes
from neuron_optax.boxes import unbox
from neuron_optax.trees import named_leaves


def describe(params: Any, layout: Layout | Neurons | MatrixAxes = FLAX) -> None:
    """Print what ``layout`` takes for the neurons of every leaf of ``params``.

    The note says ``check`` where the rank exceeds what the name explains (a scanned
    stack whose layers would be merged, say), the bias beside it has another number of
    neurons, or `infer_layout` could not decide: name its axes by `Layout.override`. It
    says so if a leaf that was named has fewer neurons than the bias beside it, and of a
    bias which leaf beside it lends its rate for ``bias="kernel"``.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.
      layout: as ``neurons`` of the strategies.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> describe({"Dense_0": layer, "scanned": {"kernel": jnp.ones((4, 3, 2))}})
      path            shape      output  stack  fan-in  neurons  note
      Dense_0/bias    (2,)       (0,)    ()     1       2        beside kernel
      Dense_0/kernel  (3, 2)     (1,)    ()     3       2
      scanned/kernel  (4, 3, 2)  (2,)    ()     12      2        check
    """
    layout = as_layout(layout)
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(unbox(params))}
    axes = {path: layout.axes(path, shape) for path, shape in shapes.items()}
    rows = [["path", "shape", "output", "stack", "fan-in", "neurons", "note"]]
    for path, of in axes.items():
        fan_in = math.prod(of.view[axis] for axis in of.fan_in)
        output, stack = of.whole.output, of.whole.stack
        cells = path, of.shape, output, stack, fan_in, math.prod(of.numbers)
        rows.append([*map(str, cells), _note(path, shapes, axes, layout)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _note(path: str, shapes: Shapes, axes: TreeAxes, layout: Layout) -> str:
    kernel, bias = kernel_of(path, shapes), bias_of(path, shapes)
    if kernel is not None and len(shapes[kernel]) > 1:
        return f"beside {kernel.rpartition('/')[2]}"
    if re.search(r"(^|/)(bias|b)$", path):
        return "own statistic"
    per_entry = not axes[path].fan_in
    ours, theirs = (_neurons(axes[leaf]) for leaf in (path, bias or path))
    rule = layout.rule(path, len(shapes[path]))
    coarser = rule is not None and rule.ranks is None and theirs % max(ours, 1) == 0
    agree = ours == theirs or per_entry or coarser
    if not explained(path, shapes, layout) or not agree:
        return "check"
    notes = [f"{n} blocks of axis {a}" for a, n in _blocks(axes[path])]
    notes += ["coarser than its bias"] * (ours < theirs)
    return ", ".join(notes)


def _neurons(axes: Axes) -> int:
    return math.prod(axes.whole.numbers)


def _blocks(axes: Axes) -> list[tuple[int, int]]:
    first = {source: axes.view[n] for n, source in reversed([*enumerate(axes.source)])}
    return [(axis, n) for axis, n in first.items() if n != axes.shape[axis]][::-1]
