"""Which axes of a leaf index its neurons: the first of the four parts of a strategy.

Axes follow from path and shape alone; see `trees` for the paths.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from types import EllipsisType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from neuron_optax.trees import named_leaves, unbox


class Neurons(NamedTuple):
    """Axes of one leaf that index its neurons; every axis not named is fan-in.

    Attributes:
      output: axes that index the neurons; ``...`` for all axes (each entry is a
        neuron), ``()`` for none (the leaf is one neuron).
      stack: axes that index independent copies: scanned layers, experts, batch dims.
      blocks: ``((axis, count), ...)``, heads folded into an axis. Not built yet.
      reduce_over: mesh axes over which the fan-in is sharded inside ``shard_map``:
        ``()`` if it is whole, ``None`` if not said. Names are not built yet.

    Example:
      >>> Neurons(output=(2,), stack=(0,))  # kernels (layers, in, out)
      Neurons(output=(2,), stack=(0,), blocks=(), reduce_over=None)
    """

    output: tuple[int, ...] | EllipsisType = (-1,)
    stack: tuple[int, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()
    reduce_over: tuple[str, ...] | None = None


@runtime_checkable
class MatrixAxes(Protocol):
    """What ``optax.contrib.MuonDimensionNumbers`` says: axes not named are kept."""

    @property
    def reduction_axis(self) -> Any:
        """Fan-in axes."""

    @property
    def output_axis(self) -> Any:
        """Axes that index the neurons."""


class Axes(NamedTuple):
    """Axes of one leaf of known rank, counted from 0; together they are all axes."""

    output: tuple[int, ...]
    stack: tuple[int, ...]
    fan_in: tuple[int, ...]


class Rule(NamedTuple):
    """Neurons of the leaves whose path has ``pattern`` in it, if of one of ``ranks``.

    Example:
      >>> Rule(r"query/kernel$", Neurons((1, 2)), ranks=(3,)).pattern
      'query/kernel$'
    """

    pattern: str
    neurons: Neurons | MatrixAxes
    ranks: Collection[int] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rules that find the neurons of every leaf by its path; the first match wins.

    Leaves of rank 0 and 1 that match no rule have one neuron per entry.

    Attributes:
      rules: tried in order; a pattern is searched in the path (``re.search``).
      fallback: neurons of leaves of rank 2 and more that match no rule.

    Raises:
      ValueError: if a pattern is no regular expression.
      TypeError: if a rule gives no neurons.

    Example:
      >>> layout = Layout(rules=(Rule(r"table$", Neurons(output=(0,))),))
      >>> layout.axes("table", (100, 8)).fan_in, layout.axes("kernel", (3, 2)).fan_in
      ((1,), (0,))
    """

    rules: tuple[Rule, ...] = ()
    fallback: Neurons | MatrixAxes = dataclasses.field(default_factory=Neurons)

    def __post_init__(self):
        for rule in self.rules:
            try:
                re.compile(rule.pattern)
            except re.error as error:
                raise ValueError(f"layout rule {rule.pattern!r}: {error}") from error
            if not isinstance(rule.neurons, Neurons | MatrixAxes):
                got = rule.neurons
                raise TypeError(f"layout rule {rule.pattern!r}: not Neurons, {got!r}")

    def override(self, rules: Mapping[str, Neurons | MatrixAxes]) -> "Layout":
        """Return a layout that tries ``rules`` (pattern to neurons) before its own.

        Example:
          >>> stacked = Neurons(output=(2,), stack=(0,))
          >>> FLAX.override({r"layers/.*kernel$": stacked}).rules[0].neurons == stacked
          True
        """
        first = tuple(Rule(pattern, neurons) for pattern, neurons in rules.items())
        return dataclasses.replace(self, rules=first + self.rules)

    def rule(self, path: str, ndim: int) -> Rule | None:
        """Return the first rule for a leaf, ``None`` if it is left to the default."""
        for rule in self.rules:
            if rule.ranks is not None and ndim not in rule.ranks:
                continue
            if re.search(rule.pattern, path):
                return rule
        return None

    def neurons(self, path: str, ndim: int) -> Neurons:
        """Return the neurons of a leaf as its rule says them, axes unresolved."""
        rule = self.rule(path, ndim)
        if rule is None and ndim < 2:
            return Neurons(output=...)
        neurons = self.fallback if rule is None else rule.neurons
        if isinstance(neurons, Neurons):
            return neurons
        output, fan_in = _axes(neurons.output_axis), _axes(neurons.reduction_axis)
        taken = [axis % ndim for axis in output + fan_in if -ndim <= axis < ndim]
        if len(set(taken)) < len(output + fan_in):
            raise ValueError(f"{path}: {neurons} does not fit a leaf of rank {ndim}")
        return Neurons(output, tuple(a for a in range(ndim) if a not in taken))

    def axes(self, path: str, shape: tuple[int, ...]) -> Axes:
        """Resolve the axes of a leaf.

        Raises:
          ValueError: naming the leaf, if an axis is out of range or named twice.
          NotImplementedError: for ``blocks`` and for mesh axes in ``reduce_over``.
        """
        return resolve(self.neurons(path, len(shape)), path, shape)


def resolve(neurons: Neurons, path: str, shape: tuple[int, ...]) -> Axes:
    """Count the axes of ``neurons`` from 0 and add the fan-in; see `Layout.axes`."""
    if neurons.blocks or neurons.reduce_over:
        raise NotImplementedError(f"{path}: blocks and reduce_over, got {neurons}")
    ndim = len(shape)
    stack = _axes(neurons.stack)
    output = () if neurons.output is ... else _axes(neurons.output)
    named = output + stack
    axes = [axis % ndim for axis in named if -ndim <= axis < ndim]
    if len(set(axes)) < len(named):
        raise ValueError(
            f"{path}: neuron axes of shape {shape} must be distinct and in "
            f"[{-ndim}, {ndim}), got output={neurons.output}, stack={neurons.stack}"
        )
    rest = tuple(axis for axis in range(ndim) if axis not in axes)
    if neurons.output is ...:
        return Axes(output=rest, stack=tuple(axes), fan_in=())
    return Axes(tuple(axes[: len(output)]), tuple(axes[len(output) :]), rest)


def _axes(axes: Any) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.atleast_1d(np.asarray(axes, int)))


def as_layout(neurons: Layout | Neurons | MatrixAxes) -> Layout:
    """Return a layout; one `Neurons` is the rule of all leaves of rank 2 and more."""
    if isinstance(neurons, Layout):
        return neurons
    if isinstance(neurons, Neurons | MatrixAxes):
        return Layout(fallback=neurons)
    raise TypeError(
        f"neurons must be a Layout, Neurons or MuonDimensionNumbers, got {neurons!r}"
    )


PER_ENTRY = Layout(rules=(Rule("", Neurons(output=...)),))
"""Every entry of every leaf is a neuron: the known per-parameter optimizers.

The state then holds two numbers per entry; one with ``store_rate=False`` of
`scale_per_neuron`.
"""

PER_LAYER = Layout(rules=(Rule("", Neurons(output=())),))
"""Every leaf is one neuron."""

FLAX = Layout(
    rules=(
        Rule(r"(^|/)(bias|scale)$", Neurons(output=...)),
        Rule(r"(^|/)embedding$", Neurons(output=(0,)), ranks=(2,)),
        Rule(r"(^|/)(query|key|value)/kernel$", Neurons(output=(1, 2)), ranks=(3,)),
        Rule(r"(?i)att(entio)?n[^/]*/out/kernel$", Neurons(), ranks=(3,)),
        Rule(r"(?i)conv[^/]*/kernel$", Neurons(), ranks=(3, 4, 5)),
    )
)
"""Flax: kernels (..., in, out), embeddings (token, feature), biases per entry."""

TORCH = Layout(
    rules=(
        Rule(r"(^|/)bias$", Neurons(output=...)),
        Rule(r"(?i)(^|[/_])(layer|batch|group|rms)?_?norm[_\d]*/weight$", Neurons(...)),
        Rule(r"(?i)conv[^/]*/weight$", Neurons(output=(0,)), ranks=(3, 4, 5)),
    ),
    fallback=Neurons(output=(0,)),
)
"""PyTorch and Equinox: weights (out, in, ...), biases per entry.

Not so torch's transposed convolutions, (in, out, ...): override them.
"""


def kernel_of(path: str, paths: Collection[str]) -> str | None:
    """Return the path of the kernel beside the bias at ``path``, if both are such.

    Example:
      >>> kernel_of("Dense_0/bias", ["Dense_0/bias", "Dense_0/kernel"])
      'Dense_0/kernel'
    """
    parent, slash, name = path.rpartition("/")
    kernels = (parent + slash + kernel for kernel in ("kernel", "weight", "w"))
    if name not in ("bias", "b"):
        return None
    return next((kernel for kernel in kernels if kernel in paths), None)


def describe(params: Any, layout: Layout | Neurons | MatrixAxes = FLAX) -> None:
    """Print what ``layout`` takes for the neurons of every leaf of ``params``.

    The note says ``check`` where the rank exceeds what the name explains (a scanned
    stack whose layers would be merged, say) or the bias beside it has another number of
    neurons: name its axes by `Layout.override`. Of a bias it names the kernel beside
    it, whose rate ``bias="kernel"`` uses.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.
      layout: as ``neurons`` of the strategies.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> describe({"Dense_0": layer, "scanned": {"kernel": jnp.ones((4, 3, 2))}})
      path            shape      output  stack  fan-in  neurons  note
      Dense_0/bias    (2,)       (0,)    ()     1       2        beside Dense_0/kernel
      Dense_0/kernel  (3, 2)     (1,)    ()     3       2
      scanned/kernel  (4, 3, 2)  (2,)    ()     12      2        check
    """
    layout = as_layout(layout)
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(unbox(params))}
    rows = [["path", "shape", "output", "stack", "fan-in", "neurons", "note"]]
    for path, shape in shapes.items():
        output, stack, fan_in = layout.axes(path, shape)
        entries = math.prod(shape[axis] for axis in fan_in)
        count = _count(path, shapes, layout)
        note = _note(path, shapes, layout)
        rows.append([*map(str, (path, shape, output, stack, entries, count, note))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _note(path: str, shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> str:
    kernel = kernel_of(path, shapes)
    if kernel is not None and len(shapes[kernel]) > 1:
        return f"beside {kernel}"
    if re.search(r"(^|/)(bias|b)$", path):
        return "own statistic"
    explained = layout.rule(path, len(shapes[path])) or len(shapes[path]) <= 2
    counts = {
        _count(leaf, shapes, layout)
        for leaf in shapes
        if leaf == path or kernel_of(leaf, shapes) == path
    }
    whole = not layout.axes(path, shapes[path]).fan_in
    return "" if explained and (whole or len(counts) == 1) else "check"


def _count(path: str, shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> int:
    output, stack, _ = layout.axes(path, shapes[path])
    return math.prod(shapes[path][axis] for axis in output + stack)
