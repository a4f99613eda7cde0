"""Apply a change of one leaf to a tree of updates, its axes found by the layout."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array

from neuron_optax.axes import (
    Axes,
    Layout,
    MatrixAxes,
    Neurons,
    as_layout,
    unview,
    view,
)
from neuron_optax.boxes import rebox, unbox
from neuron_optax.numerics import widen
from neuron_optax.trees import (
    cast_like,
    check_dtypes,
    check_leaves,
    map_named,
    move,
)

Change = Callable[[Array, Array | None, Axes], Array]


def stateless(
    change: Change, neurons: Layout | Neurons | MatrixAxes
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that changes every leaf and remembers nothing.

    Args:
      change: ``change(update, param, axes)`` of one leaf, in at least 32 bits and in
        the view of its axes; ``param`` is ``None`` where ``update`` got no params.
      neurons: the axes that index the neurons, by leaf.
    """
    layout = as_layout(neurons)

    def init(params):
        check_dtypes(unbox(params))
        layout.resolve(unbox(params))
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        return changed(change, layout, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def around(
    inner: optax.GradientTransformation,
    layout: Layout,
    after: Change,
    before: Change | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return ``inner`` with its updates changed, the dtypes of its state kept.

    Args:
      inner: the transformation.
      layout: where the neurons are.
      after: ``after(update of inner, update that came, axes)`` of one leaf.
      before: ``before(update, update, axes)``, what ``inner`` gets.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        layout.resolve(unbox(params))
        return inner.init(params)

    def update(updates, state, params=None, **extra_args):
        seen = changed(before, layout, updates, updates) if before else updates
        new, moved = move(inner, seen, state, params, extra_args)
        return changed(after, layout, new, updates), cast_like(moved, state)

    return optax.GradientTransformationExtraArgs(init, update)


def changed(change: Change, layout: Layout, updates: Any, params: Any = None) -> Any:
    """Return the updates with every leaf changed, see `stateless`."""
    plain, weights = unbox(updates), unbox(params)
    check_dtypes(plain)
    check_leaves(plain, plain if params is None else weights, weights)
    axes = layout.resolve(plain)
    blank = jax.tree.map(lambda _: None, plain)
    weights = blank if params is None else view(axes, weights)

    def leaf(path, update, param):
        param = None if param is None else widen(param)
        try:
            return change(widen(update), param, axes[path])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    new = unview(axes, map_named(leaf, view(axes, plain), weights))
    return rebox(cast_like(new, plain), updates)
