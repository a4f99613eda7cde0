"""How a bias finds its kernel, and uses the numbers of that kernel's neurons."""

import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neuron_optax.axes.neurons import Axes
from neuron_optax.axes.views import TreeAxes
from neuron_optax.pieces import manual_axes
from neuron_optax.trees import PART, is_masked, map_named, named_leaves


def kernel_of(path: str, paths: Collection[str]) -> str | None:
    """Return the path of the kernel beside the bias at ``path``, if both are such.

    Example:
      >>> kernel_of("Dense_0/bias", ["Dense_0/bias", "Dense_0/kernel"])
      'Dense_0/kernel'
    """
    leaf = re.sub(PART, "", path)
    part = path.removeprefix(leaf)
    parent, slash, name = leaf.rpartition("/")
    if name not in ("bias", "b"):
        return None
    kernels = (f"{parent}{slash}{name}{part}" for name in ("kernel", "weight", "w"))
    return next((kernel for kernel in kernels if kernel in paths), None)


def lend(tree: Any, axes: TreeAxes) -> Any:
    """Give every bias the numbers of its kernel's neurons in place of its own.

    Raises:
      ValueError: naming both leaves, if the kernel is masked away or has others.
    """
    leaves = dict(named_leaves(tree, is_masked))

    def lent(path, own):
        kernel = kernel_of(path, leaves)
        if kernel is None:
            return own
        if is_masked(leaves[kernel]):
            raise ValueError(
                f"{path} uses the rate of {kernel}, which is masked away: keep both "
                "under one mask or label, or use bias='own'"
            )
        ours, theirs = axes[kernel], axes[path]
        if len(ours.shape) < 2 or ours.shape == theirs.shape:
            return own  # a normalisation
        numbers = leaves[kernel]
        if ours.view != ours.shape and theirs.view == theirs.shape:
            numbers = jnp.broadcast_to(numbers, _undone(ours))  # entries of a block
            ours = ours.whole
            numbers = numbers.reshape(ours.numbers)
        _check_neurons(path, theirs, kernel, ours)
        numbers = jnp.transpose(numbers, ours.stack + ours.output + ours.fan_in)
        order = theirs.stack + theirs.output + theirs.fan_in
        numbers = numbers.reshape([own.shape[axis] for axis in order])
        return _reshard(jnp.transpose(numbers, np.argsort(order).tolist()), own)

    return map_named(lent, tree)


def _check_neurons(bias: str, theirs: Axes, kernel: str, ours: Axes) -> None:
    has, wanted = _lengths(ours), _lengths(theirs)
    if has != wanted:
        pieces = "inside shard_map cut both alike, " * bool(manual_axes())
        raise ValueError(
            f"{bias} uses the rate of {kernel}, so both must have the same neurons "
            f"along (stack, output), got {wanted} and {has}: {pieces}override the "
            "layout (are there stacked copies?), see describe and infer_layout, or use "
            "bias='own'"
        )


def _lengths(axes: Axes) -> tuple[list[int], list[int]]:
    stack = [axes.numbers[axis] for axis in axes.stack]
    output = [axes.numbers[axis] for axis in axes.output]
    return stack, [length for length in output if length != 1]


def _undone(axes: Axes) -> tuple[int, ...]:
    """Shape of the numbers with those of a block repeated for each of its entries."""
    kept = {axes.source[axis] for axis in axes.output + axes.stack}
    sizes = zip(axes.source, axes.view, strict=True)
    return tuple(size if source in kept else 1 for source, size in sizes)


def _reshard(numbers: jax.Array, like: jax.Array) -> jax.Array:
    sharding = jax.typeof(like).sharding  # a bias may be sharded unlike its kernel
    explicit = sharding.mesh.explicit_axes
    return jax.sharding.reshard(numbers, sharding) if explicit else numbers
