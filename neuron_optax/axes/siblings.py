"""How a bias finds its kernel, and uses the numbers of that kernel's neurons."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neuron_optax.axes.layouts import Layout
from neuron_optax.axes.neurons import resolve
from neuron_optax.axes.views import TreeAxes
from neuron_optax.trees import is_masked, map_named, named_leaves


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


def lend(tree: Any, layout: Layout, axes: TreeAxes) -> Any:
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
        shape = axes[kernel].shape
        if len(shape) < 2 or shape == axes[path].shape:
            return own  # a normalisation
        numbers, theirs = _in_axes_of_bias(leaves[kernel], kernel, path, layout, axes)
        order = theirs.stack + theirs.output + theirs.fan_in
        numbers = numbers.reshape([own.shape[axis] for axis in order])
        return _reshard(jnp.transpose(numbers, np.argsort(order).tolist()), own)

    return map_named(lent, tree)


def _in_axes_of_bias(numbers, kernel, bias, layout, axes):
    """Order a kernel's numbers by (stack, output); return the axes of its bias, too."""
    ours, theirs = axes[kernel], axes[bias]
    said = layout.neurons(bias, len(theirs.shape))
    if ours.stack and not theirs.stack:
        stack = layout.neurons(kernel, len(ours.shape)).stack
        theirs = resolve(said._replace(stack=stack), bias, theirs.shape)
    if ours.view != ours.shape and not said.blocks:  # all entries of a block share
        numbers = jnp.broadcast_to(numbers, _undone(ours)).reshape(ours.whole.numbers)
        ours = ours.whole
    counts, wanted = _counts(ours), _counts(theirs)
    if counts != wanted:
        raise ValueError(
            f"{bias} uses the rate of {kernel}, so both must have the same neurons "
            f"along (stack, output), got {wanted} and {counts}: override the layout or "
            "use bias='own'"
        )
    return jnp.transpose(numbers, ours.stack + ours.output + ours.fan_in), theirs


def _undone(axes):
    """Shape of the numbers with those of a block repeated for each of its entries."""
    kept = {axes.source[axis] for axis in axes.output + axes.stack}
    sizes = zip(axes.source, axes.view, strict=True)
    return tuple(size if source in kept else 1 for source, size in sizes)


def _counts(axes):
    output = [axes.numbers[axis] for axis in axes.output]
    stack = [axes.numbers[axis] for axis in axes.stack]
    return stack, [count for count in output if count != 1]


def _reshard(numbers, like):
    sharding = jax.typeof(like).sharding  # a bias may be sharded unlike its kernel
    explicit = sharding.mesh.explicit_axes
    return jax.sharding.reshard(numbers, sharding) if explicit else numbers
