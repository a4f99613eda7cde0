"""Signal to noise of second moments along what could share a number."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.axes import FLAX, Axes, Layout, Neurons, as_layout
from neuron_optax.axes.neurons import resolve
from neuron_optax.boxes import unbox
from neuron_optax.numerics import widen
from neuron_optax.strategies.alias import NeuronsLike
from neuron_optax.trees import check_same_shapes, named_leaves

WAYS = "neuron", "input", "head", "layer"  # may have one number each


class SignalToNoise(NamedTuple):
    """What `snr` found; ``str`` of it is a table.

    Attributes:
      ratios: by path, then by what would have one number: ``"neuron"`` (shared along
        the fan-in), ``"input"`` (along the neurons), ``"head"``, ``"layer"``. Those
        that share nothing are not in it.
      leaves: shape and dtype of the second moments, by path.
      layout: the neurons that were asked for.

    Example:
      >>> print(snr({"kernel": jnp.array([[1.0, 2.0], [3.0, 6.0]])}))
      path    shape   per neuron  per input  per head  per layer
      kernel  (2, 2)  4           9          -         2.57
    """

    ratios: Mapping[str, Mapping[str, float]]
    leaves: Mapping[str, jax.ShapeDtypeStruct]
    layout: Layout

    def __str__(self) -> str:
        return table(self, [()] * (1 + len(self.leaves)))


def snr(second_moment: Any, neurons: NeuronsLike = FLAX) -> SignalToNoise:
    r"""Return how well one number stands for many in a second moment.

    With :math:`V` the second moment of a leaf, :math:`K` the axes that would share one
    number and :math:`K'` the others,

    .. math::
      \mathrm{SNR}_K(V) = E_{K'}\!\left[ (E_K V)^2 / \mathrm{Var}_K V \right]

    Left out of :math:`E_{K'}` are rows of zeros, never active, and of equal entries,
    which would make it infinite whatever the others are; nearly equal ones still lead
    the mean, as they do in the paper. It is infinite if all active
    rows are of equal entries, not a number if none is active. Of the copies along stack
    axes, which have one rule, the least ratio counts.

    Args:
      second_moment: whatever holds a state of ``optax.adam``: chained, masked,
        partitioned, a ``TrainState``, an ``nnx.Optimizer``. A leaf that several hold (a
        list of states from the course of training) has the average of its finite
        ratios; for a state may stand a result of this function. Or the second moments
        themselves, a tree of arrays in units of the gradient squared.
      neurons: the axes that index the neurons, by leaf. A head is a block of
        `Neurons`, or an entry of the first of two neuron axes.

    Returns:
      Ratios by path; none of leaves of rank 0 and 1, stack axes not counted, of which
      every entry is a neuron (a bias), or without entries.

    Raises:
      TypeError: naming the leaf, if it is not floating or complex; for ``neurons``.
      ValueError: if a state has no Adam's in it; naming the leaf, if its second moment
        is reduced already, negative or not finite, or of several shapes; for
        ``neurons`` as `scale_per_neuron`, or that are not those of earlier results.

    Reference:
      Kalra et al., *SlimAdam* (2025), arXiv:2503.01843.

    Example:
      >>> kernel = jnp.outer(jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0, 2.0]))
      >>> snr({"kernel": kernel}).ratios["kernel"]
      {'input': inf, 'layer': 4.0, 'neuron': 4.0}
    """
    layout, leaves, ratios = as_layout(neurons), {}, {}
    for found in (_measured(source, layout) for source in _sources(second_moment)):
        for path, leaf in found.leaves.items():
            if (known := leaves.setdefault(path, leaf).shape) != leaf.shape:
                raise ValueError(f"{path}: got the shapes {known} and {leaf.shape}")
            ratios.setdefault(path, []).append(found.ratios[path])
    if not leaves:
        raise ValueError("second_moment must have leaves, got a tree of none")
    averages = {path: jax.tree.map(_mean, *of) for path, of in ratios.items()}
    return SignalToNoise(averages, leaves, layout)


def granularities(axes: Axes) -> dict[str, Neurons]:
    """Return by name what could share numbers in a leaf: coarser than its entries.

    Args:
      axes: of the leaf, as `Layout.axes` has them.

    Returns:
      Neurons with fewer numbers than the leaf has entries; none of a leaf without
      fan-in, whose stack axes do not count.

    Example:
      >>> list(granularities(FLAX.axes("kernel", (3, 2))))
      ['neuron', 'input', 'layer']
    """
    whole, size = axes.whole, math.prod(axes.shape)
    cut = [axis for axis, _ in enumerate(axes.shape) if axes.source.count(axis) > 1]
    blocks = tuple((axis, axes.view[axes.source.index(axis)]) for axis in cut)
    copies = tuple(block for block in blocks if block[0] in whole.stack)
    if len(axes.shape) - len(whole.stack) + len(copies) < 2 or not axes.fan_in:
        return {}
    shared = lambda output, blocks=copies: Neurons(output, whole.stack, blocks)
    ways = {"neuron": shared(whole.output), "input": shared(whole.fan_in)}
    if len(blocks) > len(copies):
        ways["head"] = shared(whole.output, blocks)
    elif len(whole.output) == 2:
        ways["head"] = shared(whole.output[:1])
    ways["layer"] = shared(())
    return {way: of for way, of in ways.items() if count(of, axes.shape) < size}


def _sources(tree: Any) -> list[Any]:
    """Return the Adam states and earlier results in a tree, or it if it holds none."""
    fields = set(optax.ScaleByAdamState._fields)
    restored = lambda node: isinstance(node, Mapping) and set(node) == fields
    is_source = lambda node: (
        restored(node) or isinstance(node, optax.ScaleByAdamState | SignalToNoise)
    )
    nodes = jax.tree.leaves(tree, is_leaf=is_source)
    if sources := [node for node in nodes if is_source(node)]:
        states = lambda of: optax.ScaleByAdamState(**of) if restored(of) else of
        return [states(node) for node in sources]
    named = lambda node: isinstance(node, tuple) and type(node).__name__[-5:] == "State"
    nodes = jax.tree.leaves(tree, is_leaf=named)  # states of Optax are named so
    if states := sorted({type(node).__name__ for node in nodes if named(node)}):
        raise ValueError(f"second_moment must hold a ScaleByAdamState, got {states}")
    return [tree]


def _measured(source: Any, layout: Layout) -> SignalToNoise:
    """Return the ratios of one state or tree."""
    if isinstance(source, SignalToNoise):
        if source.layout != layout:
            raise ValueError(f"neurons must be those of earlier ratios, got {layout}")
        return source
    known = isinstance(source, optax.ScaleByAdamState)
    moments = unbox(source.nu if known else source)
    axes, leaves = layout.resolve(moments), dict(named_leaves(moments))
    if known:
        check_same_shapes(unbox(source.mu), moments, "the second moment of")
    else:
        _check_whole([of for of in axes.values() if granularities(of)])
    ratios = {path: _ratios(path, leaf, axes[path]) for path, leaf in leaves.items()}
    return SignalToNoise(ratios, jax.eval_shape(dict, leaves), layout)


def _check_whole(matrices: list[Axes]) -> None:
    """Refuse matrices of which every one has a single row or column."""
    flat = lambda of, along: along and all(of.view[axis] == 1 for axis in along)
    shapes = [of.shape for of in matrices]
    if shapes and all(flat(of, of.fan_in) or flat(of, of.output) for of in matrices):
        raise ValueError(
            f"second_moment must have one number per entry, got {shapes}, reduced by "
            "their looks; if they are not, give the state of Adam that holds them"
        )


def _ratios(path: str, moment: Any, axes: Axes) -> dict[str, float]:
    dtype, ways = jnp.result_type(moment), granularities(axes)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{path}: second moment must be float or complex, got {dtype}")
    shared = tuple(resolve(of, path, axes.shape) for of in ways.values())
    sound, ratios = _signal_to_noise(moment, shared) if ways else (True, [])
    if not sound:
        raise ValueError(f"{path}: second moment must be finite and not negative")
    return dict(zip(ways, map(float, ratios), strict=True))


@functools.partial(jax.jit, static_argnums=1)
def _signal_to_noise(moment: Any, ways: tuple[Axes, ...]) -> tuple[Array, list[Array]]:
    """Return whether a second moment is one, and its ratio for each way of sharing."""
    moment = widen(jnp.real(moment))
    sound = jnp.all(jnp.isfinite(moment) & (moment >= 0))
    return sound, [_ratio(jnp.reshape(moment, of.view), of) for of in ways]


def _ratio(moment: Array, axes: Axes) -> Array:
    shared = functools.partial(jnp.mean, axis=axes.fan_in, keepdims=True)
    peak = jnp.max(moment, axis=axes.fan_in, keepdims=True)
    active = peak > 0
    # The square of 1e-23 is 0 in float32, so rows are in units of their peak.
    moment = moment / jnp.where(active, peak, 1)
    noise = shared(jnp.square(moment / jnp.where(active, shared(moment), 1) - 1))
    varies = active & (noise > jnp.finfo(noise.dtype).eps ** 2)
    mean = jnp.nanmean(1 / jnp.where(varies, noise, jnp.nan), axes.output)
    constant = jnp.isnan(mean) & jnp.any(active, axes.output)
    return jnp.nanmin(jnp.where(constant, jnp.inf, mean))


def _mean(*ratios: float) -> float:
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return sum(finite) / len(finite) if finite else max(ratios, key=math.isinf)


def table(found: SignalToNoise, cells: Sequence[tuple[str, ...]]) -> str:
    """Return the ratios as a table that ends in the cells of each line."""
    rows = [["path", "shape", *(f"per {way}" for way in WAYS)]]
    for path, leaf in found.leaves.items():
        ratios = (found.ratios[path].get(way) for way in WAYS)
        shown = ("-" if ratio is None else f"{ratio:.3g}" for ratio in ratios)
        rows.append([path, str(leaf.shape), *shown])
    rows = [[*row, *last] for row, last in zip(rows, cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def count(neurons: Neurons, shape: tuple[int, ...]) -> int:
    """Count the numbers of a leaf of this shape that has one per neuron."""
    return math.prod(resolve(neurons, "", shape).numbers)
