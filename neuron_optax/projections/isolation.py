"""Safety per neuron: one that is not finite stands still, and what happened is counted.

The counts are integers with one number per neuron, fan-in axes at length 1.
"""

import itertools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neuron_optax.axes import (
    FLAX,
    Layout,
    MatrixAxes,
    Neurons,
    as_layout,
    check_numbers,
    lend,
    map_axes,
    unview,
    view,
)
from neuron_optax.boxes import box_numbers, rebox, unbox
from neuron_optax.numerics import widen
from neuron_optax.pieces import sum_over
from neuron_optax.statistics import sum_square
from neuron_optax.trees import (
    cast_like,
    check_dtypes,
    check_leaves,
    is_masked,
    move,
    named_leaves,
)


class IsolationState(NamedTuple):
    """State of `isolate_nonfinite`.

    Attributes:
      skipped: how many steps each neuron has skipped, int32; a tree like the params.
      inner: the state of what is isolated.

    Example:
      >>> optimizer = isolate_nonfinite(optax.adam(0.1))
      >>> optimizer.init(jnp.ones((3, 2))).skipped.tolist()
      [[0, 0]]
    """

    skipped: Any
    inner: optax.OptState


class ChangeState(NamedTuple):
    """State of `count_changes`.

    Attributes:
      changed: in how many steps each neuron's update was changed, int32; a tree like
        the params.
      inner: the state of what changes them.

    Example:
      >>> counted = count_changes(optax.clip(1.0))
      >>> counted.init(jnp.ones((3, 2))).changed.tolist()
      [[0, 0]]
    """

    changed: Any
    inner: optax.OptState


def isolate_nonfinite(
    inner: optax.GradientTransformation,
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
    bias: Literal["own", "kernel"] = "own",
) -> optax.GradientTransformationExtraArgs:
    """Let a neuron whose gradient is not finite skip the step, whole, and count it.

    Its update is zero, weight decay and momentum included, and every number of the
    state that is its own (per neuron or per entry) stays as it was. What belongs to the
    layer or to all, such as the number of steps, moves on as if its gradient were zero.
    Put it around the whole optimizer: around all that has a state, that looks at all
    gradients at once (``clip_by_global_norm``) or adds them up (``MultiSteps``).

    Args:
      inner: the transformation. It sees zeros for a neuron whose gradient has a square
        that overflows or is not finite.
      neurons: the axes that index the neurons, by leaf; as ``inner`` has them.
      bias: ``"kernel"`` for a bias that also skips the steps that its kernel's neuron
        skips.

    Returns:
      A transformation with an `IsolationState`, whose counts `report` shows.

    Raises:
      ValueError: at ``init``, naming it, for a state of which it cannot be told what
        belongs to a neuron (`apollo`, factored moments, Optax's Muon, L-BFGS and SM3);
        as `scale_per_neuron`.

    Note:
      It reads gradient and state once more than ``inner`` does. `scale_per_neuron`
      skips such neurons of itself, and so do `row_adagrad` and its kin, of which this
      knows nothing; beside that, it keeps momentum and Adam's moments, spares the
      neuron its decay, and counts.

    Example:
      >>> optimizer = isolate_nonfinite(optax.sgd(1.0, momentum=0.5))
      >>> state = optimizer.init(jnp.ones((1, 2)))
      >>> for gradient in ([[1.0, 1.0]], [[1.0, jnp.nan]]):
      ...     update, state = optimizer.update(jnp.array(gradient), state)
      >>> update.tolist(), state.skipped.tolist()
      ([[-1.5, 0.0]], [[0, 1]])
    """
    layout = as_layout(neurons)
    inner = optax.with_extra_args_support(inner)
    if bias not in ("own", "kernel"):
        raise ValueError(f"bias must be 'own' or 'kernel', got {bias!r}")

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        axes = layout.resolve(plain)
        blank = jax.eval_shape(lambda p: _unsound(axes, view(axes, p), bias), plain)
        state = inner.init(params)
        _require_separable(inner, state, axes, plain)
        return IsolationState(_zeros(blank, axes, params), state)

    def update(updates, state, params=None, **extra_args):
        plain = unbox(updates)
        check_leaves(plain, unbox(state.skipped), unbox(params))
        axes = layout.resolve(plain)
        check_numbers(axes, unbox(state.skipped), "the state")
        bad = _unsound(axes, view(axes, plain), bias)
        clean = rebox(_zeroed(axes, bad, plain), updates)
        moved, new = move(inner, clean, state.inner, params, extra_args)
        new = _restored(inner, axes, bad, cast_like(new, state.inner), state.inner)
        skipped = _increased(state.skipped, bad)
        moved = rebox(_zeroed(axes, bad, unbox(moved)), updates)
        return moved, IsolationState(skipped, new)

    return optax.GradientTransformationExtraArgs(init, update)


def count_changes(
    inner: optax.GradientTransformation,
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
) -> optax.GradientTransformationExtraArgs:
    """Count in how many steps a transformation changed a neuron's update.

    Args:
      inner: what changes some neurons in some steps: `clip_per_neuron`, `limit_norms`.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation with a `ChangeState`, whose counts `report` shows.

    Raises:
      ValueError: as `scale_per_neuron`.

    Example:
      >>> optimizer = count_changes(optax.clip(1.0))
      >>> gradient = jnp.array([[0.5, 0.5], [0.5, 2.0]])  # of two neurons
      >>> _, state = optimizer.update(gradient, optimizer.init(gradient))
      >>> state.changed.tolist()
      [[0, 1]]
    """
    layout = as_layout(neurons)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        axes = layout.resolve(plain)
        blank = jax.eval_shape(lambda p: _differs(axes, *[view(axes, p)] * 2), plain)
        return ChangeState(_zeros(blank, axes, params), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        plain = unbox(updates)
        check_leaves(plain, unbox(state.changed), unbox(params))
        axes = layout.resolve(plain)
        check_numbers(axes, unbox(state.changed), "the state")
        moved, new = move(inner, updates, state.inner, params, extra_args)
        now = _differs(axes, view(axes, plain), view(axes, unbox(moved)))
        return moved, ChangeState(_increased(state.changed, now), new)

    return optax.GradientTransformationExtraArgs(init, update)


def _unsound(axes, updates, bias):
    """Return which neurons have updates that are not finite, or their kernels have."""
    size = lambda of, u: sum_square(widen(u), None, of.reduced)
    bad = jax.tree.map(lambda s: ~jnp.isfinite(s), map_axes(size, axes, updates))
    both = lend(bad, axes) if bias == "kernel" else bad
    return jax.tree.map(jnp.logical_or, bad, both)


def _differs(axes, updates, moved):
    """Return of which neurons any entry is other than it was; NaN is not."""
    same = lambda u, m: (u == m) | (jnp.isnan(u) & jnp.isnan(m))
    other = lambda of, u, m: sum_over(jnp.where(same(u, m), 0, 1), of.reduced) > 0
    return map_axes(other, axes, updates, moved)


def _zeros(blank, axes, params):
    counts = jax.tree.map(lambda b: jnp.zeros_like(b, jnp.int32), blank)
    return box_numbers(counts, params, lambda path: axes[path].names)


def _increased(counts, where):
    return rebox(jax.tree.map(jnp.add, unbox(counts), where), counts)


def _zeroed(axes, bad, tree):
    sound = lambda skips, update: jnp.where(skips, 0, update)
    return unview(axes, jax.tree.map(sound, bad, view(axes, tree)))


def _restored(inner, axes, bad, new, old):
    """Return the new state, but the old one where it is of neurons that skip."""
    skips, before = dict(named_leaves(bad)), jax.tree.leaves(unbox(old))
    owners = _owners(inner, new, bad)
    leaves = [
        leaf if own is None else _kept(axes[own], skips[own], was, leaf)
        for own, was, leaf in zip(owners, before, jax.tree.leaves(new), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(new), leaves)


def _kept(of, skips, old, new):
    if new.shape == of.numbers:
        return jnp.where(skips, old, new)
    if new.shape != of.shape:
        return new  # of the layer
    old, new = (jnp.reshape(leaf, of.view) for leaf in (old, new))
    return jnp.reshape(jnp.where(skips, old, new), of.shape)


def _owners(inner, state, tree):
    """Return for each leaf of a state the path of its parameter, None without one."""
    paths = [path for path, _ in named_leaves(tree)]
    numbers = itertools.count()
    order = jax.tree.map(lambda _: next(numbers), tree)
    owned = optax.tree.map_params(
        inner,
        lambda leaf, number: leaf if is_masked(leaf) else number,
        unbox(state),
        order,
        transform_non_params=lambda _: -1,
        is_leaf=is_masked,
    )
    return [None if own < 0 else paths[own] for own in jax.tree.leaves(owned)]


def _require_separable(inner, state, axes, tree):
    """Refuse numbers of which it cannot be told whether they are a neuron's."""
    try:
        owners = _owners(inner, state, tree)
    except (TypeError, ValueError) as error:  # JAX's own, of structures
        kind = type(state).__name__
        raise ValueError(
            f"isolate_nonfinite cannot tell which numbers of a {kind} are of which leaf"
        ) from error
    for own, (path, leaf) in zip(owners, named_leaves(unbox(state)), strict=True):
        shape = np.shape(leaf)
        if own is None:
            told = math.prod(shape) <= 1 or not jnp.issubdtype(leaf.dtype, jnp.inexact)
        else:
            told = shape in (axes[own].shape, axes[own].numbers)
            told = told or _is_of_layer(axes[own], shape)
        if not told:
            raise ValueError(
                f"{path} has the shape {shape}, of which cannot be told what belongs "
                "to one neuron: isolate_nonfinite needs state per entry, per neuron or "
                "per layer, and the neurons= of what it isolates"
            )


def _is_of_layer(of, shape):
    if math.prod(shape) <= 1:
        return True
    return len(shape) == len(of.view) and all(shape[axis] == 1 for axis in of.output)
