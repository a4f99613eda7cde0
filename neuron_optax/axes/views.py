"""Trees in the shapes in which every block of neurons has an axis of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from neuron_optax.axes.neurons import Axes, divides
from neuron_optax.pieces import differs
from neuron_optax.trees import map_named, named_leaves

TreeAxes = Mapping[str, Axes]


def map_axes(
    function: Callable[..., Any], axes: TreeAxes, tree: Any, *rest: Any
) -> Any:
    """Map ``function(axes of the leaf, leaf, *leaves of rest)`` over ``tree``."""
    return map_named(lambda path, *leaves: function(axes[path], *leaves), tree, *rest)


def view(axes: TreeAxes, tree: Any) -> Any:
    """Return the leaves in their views.

    Raises:
      ValueError: naming the leaf, if its explicit sharding cuts a block.
    """

    def viewed(path, leaf):
        of = axes[path]
        spec = jax.typeof(leaf).sharding.spec if of.view != of.shape else ()
        for axis, names in enumerate(spec):
            count = of.view[of.source.index(axis)]
            if count < of.shape[axis] and not divides(names, count):
                raise ValueError(
                    f"{path}: {count} blocks of axis {axis} of shape {of.shape} are "
                    f"cut by its sharding {spec}"
                )
        return jnp.reshape(leaf, of.view)

    return map_named(viewed, tree)


def unview(axes: TreeAxes, tree: Any) -> Any:
    """Return the leaves in their own shapes."""
    return map_axes(lambda of, leaf: jnp.reshape(leaf, of.shape), axes, tree)


def check_pieces(axes: TreeAxes, numbers: Any) -> None:
    """Refuse to sum different neurons, where ``shard_map`` checks what differs.

    Raises:
      ValueError: naming the leaf and the mesh axes that cut its neurons.
    """
    for path, leaf in named_leaves(numbers):
        if cut := [name for name in axes[path].over if differs(leaf, name)]:
            raise ValueError(f"{path}: reduce_over names {cut}, which cut its neurons")


def check_numbers(axes: TreeAxes, numbers: Any, holder: str) -> None:
    """Refuse arrays without one number per neuron.

    Raises:
      ValueError: naming the leaf, the shape that was wanted and that which came.
    """
    came = dict(named_leaves(numbers))
    for path, of in axes.items():
        if came[path].shape != of.numbers:
            raise ValueError(
                f"{path} of shape {of.shape} has one number per neuron in "
                f"{of.numbers}, but {holder} has {came[path].shape}"
            )
