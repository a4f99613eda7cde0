"""What one leaf says about its neurons, and the axes that follow from its shape."""

import math
import operator
from collections.abc import Iterable, Sequence
from types import EllipsisType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax


class Neurons(NamedTuple):
    """Axes of one leaf that index its neurons; every axis not named is fan-in.

    Attributes:
      output: axes that index the neurons; ``...`` for all axes (each entry is a
        neuron), ``()`` for none (the leaf is one neuron).
      stack: axes that index independent copies: scanned layers, experts, batch dims.
      blocks: ``((axis, count), ...)``; such an axis of ``output`` or ``stack`` indexes
        ``count`` blocks of equal length, whose entries are fan-in: heads folded into
        one axis, or the heads of a fused query, key and value, all by one rule.
      reduce_over: names of the mesh axes over which the fan-in is sharded inside
        ``shard_map``; ``()`` if it is whole, ``None`` if not said, which raises there.
        Elsewhere arrays are whole and it does not count.

    Example:
      >>> Neurons(output=(2,), stack=(0,))  # kernels (layers, in, out)
      Neurons(output=(2,), stack=(0,), blocks=(), reduce_over=None)
      >>> per_head = Neurons(blocks=((-1, 3),))  # kernels (in, 3 heads * dim)
      >>> resolve(per_head, "query/w", (5, 12)).numbers
      (1, 3, 1)
      >>> per_head = Neurons(output=(0,), blocks=((0, 3),))  # weights (3 * dim, in)
      >>> resolve(per_head, "query_proj/weight", (12, 5)).numbers
      (3, 1, 1)
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
    """Axes of one leaf of known shape, counted from 0.

    Attributes:
      shape: of the leaf.
      view: shape in which blocks and their entries have an axis each; without blocks
        that of the leaf. The other attributes are about the axes of the view.
      source: for each axis, the axis of the leaf that it is or is a part of.
      output: axes that index the neurons.
      stack: axes that index independent copies.
      fan_in: all others.
      over: mesh axes along which the fan-in is cut, inside ``shard_map``.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    source: tuple[int, ...]
    output: tuple[int, ...]
    stack: tuple[int, ...]
    fan_in: tuple[int, ...]
    over: tuple[str, ...] = ()

    @property
    def reduced(self) -> tuple[int | str, ...]:
        """The fan-in: its axes and the mesh axes that cut it."""
        return self.fan_in + self.over

    @property
    def numbers(self) -> tuple[int, ...]:
        """Shape of an array with one number per neuron."""
        return tuple(1 if a in self.fan_in else n for a, n in enumerate(self.view))

    @property
    def whole(self) -> "Axes":
        """The axes of the leaf as if it had no blocks."""
        kept = {self.source[axis] for axis in self.output + self.stack}
        return Axes(
            self.shape,
            self.shape,
            tuple(range(len(self.shape))),
            tuple(self.source[axis] for axis in self.output),
            tuple(self.source[axis] for axis in self.stack),
            tuple(axis for axis in range(len(self.shape)) if axis not in kept),
        )

    @property
    def layer(self) -> "Axes":
        """The axes of the leaf as if each of its copies were one neuron."""
        return self._replace(output=(), fan_in=self.output + self.fan_in, over=())

    @property
    def swapped(self) -> "Axes":
        """The axes of the leaf as if its fan-in were its neurons."""
        return self._replace(output=self.fan_in, fan_in=self.output, over=())

    def names(self, names: Sequence[Any]) -> tuple[Any, ...]:
        """Name the axes of an array with one number per neuron like the leaf's.

        Fan-in axes have no name, and blocks only one whose mesh axes divide them.
        """
        names = [*names, *[None] * (len(self.shape) - len(names))]
        return tuple(
            None
            if axis in self.fan_in
            or (size != self.shape[source] and not divides(names[source], size))
            else names[source]
            for axis, (size, source) in enumerate(
                zip(self.view, self.source, strict=True)
            )
        )


def resolve(neurons: Neurons, path: str, shape: tuple[int, ...]) -> Axes:
    """Count the axes of ``neurons`` from 0 and add the fan-in.

    Raises:
      TypeError: naming the leaf, for axes and counts that are not integers.
      ValueError: naming the leaf, for axes out of range or named twice, and for blocks
        that do not divide their axis or whose axis is fan-in.
    """
    check_reduce_over(neurons.reduce_over, path)
    ndim = len(shape)
    stack = as_axes(neurons.stack, path)
    output = () if neurons.output is ... else as_axes(neurons.output, path)
    named = [axis % ndim for axis in output + stack if -ndim <= axis < ndim]
    if len(set(named)) < len(output + stack):
        raise ValueError(
            f"{path}: neuron axes of shape {shape} must be distinct and in "
            f"[{-ndim}, {ndim}), got output={neurons.output}, stack={neurons.stack}"
        )
    output, stack = named[: len(output)], named[len(output) :]
    if neurons.output is ...:
        output = [axis for axis in range(ndim) if axis not in stack]
    counts = _blocks(neurons, path, shape, output + stack)
    parts = [
        (axis, part)
        for axis, size in enumerate(shape)
        for part in (
            (counts[axis], size // counts[axis]) if axis in counts else (size,)
        )
    ]
    source = [axis for axis, _ in parts]
    output, stack = (tuple(map(source.index, axes)) for axes in (output, stack))
    rest = tuple(a for a in range(len(parts)) if a not in output + stack)
    view = tuple(size for _, size in parts)
    return Axes(shape, view, tuple(source), output, stack, rest)


def check_reduce_over(mesh_axes: Any, holder: str) -> None:
    """Refuse what is neither ``None`` nor a tuple of distinct names.

    Raises:
      TypeError: naming the leaf or layout.
    """
    names = mesh_axes if isinstance(mesh_axes, tuple) else (None,)
    distinct = len(set(names)) == len(names)
    if mesh_axes is None or (distinct and all(isinstance(n, str) for n in names)):
        return
    raise TypeError(
        f"{holder}: reduce_over must be a tuple of distinct mesh axes or None, got "
        f"{mesh_axes!r}"
    )


def as_axes(axes: Any, path: str) -> tuple[int, ...]:
    """Return one axis or several as a tuple."""
    several = axes if isinstance(axes, Iterable) else (axes,)
    try:
        return tuple(operator.index(axis) for axis in several)
    except TypeError as error:
        raise TypeError(f"{path}: axes must be integers, got {axes!r}") from error


def _blocks(neurons, path, shape, named):
    """Return how many blocks each axis has that has any."""
    ndim, counts = len(shape), {}
    blocks = neurons.blocks if isinstance(neurons.blocks, Iterable) else (None,)
    pairs = [as_axes(pair, path) for pair in blocks]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"{path}: blocks must be ((axis, count), ...), got {neurons.blocks}"
        )
    for axis, count in pairs:
        place = axis % ndim if -ndim <= axis < ndim else None
        if place not in named or place in counts:
            raise ValueError(
                f"{path}: blocks of shape {shape} must be of distinct axes named in "
                f"output or stack, got {neurons}"
            )
        if count < 1 or shape[place] % count:
            raise ValueError(
                f"{path}: axis {axis} of length {shape[place]} has no {count} blocks "
                "of equal length"
            )
        counts[place] = count
    return counts


def divides(names: Any, count: int) -> bool:
    """Whether the mesh axes of these names cut ``count`` evenly, as far as is known."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (names,) if isinstance(names, str) else tuple(names or ())
    known = all(name in mesh.axis_names for name in names)
    return known and count % math.prod(mesh.shape[name] for name in names) == 0
