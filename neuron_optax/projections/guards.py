"""Transformations that pass over some neurons: those not finite, those not touched."""

import jax.numpy as jnp
import optax

from neuron_optax.axes import FLAX, Layout, MatrixAxes, Neurons, as_layout
from neuron_optax.boxes import unbox
from neuron_optax.projections.stateless import changed
from neuron_optax.statistics import sum_square, touched
from neuron_optax.trees import cast_like, move


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
) -> optax.GradientTransformationExtraArgs:
    """Give a neuron whose update is not finite a step of zero; others go on.

    Args:
      inner: the transformation. It sees zeros for a neuron whose update has a square
        that overflows or is not finite.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation with the state of ``inner``, whose dtypes stay as they are.

    Raises:
      ValueError: as `scale_per_neuron`.

    Example:
      >>> optimizer = skip_nonfinite(optax.trace(0.9))
      >>> kernel = jnp.array([[1.0, jnp.nan], [1.0, 1.0]])
      >>> update, state = optimizer.update(kernel, optimizer.init(kernel))
      >>> update.tolist()
      [[1.0, 0.0], [1.0, 0.0]]
    """
    layout, inner = as_layout(neurons), optax.with_extra_args_support(inner)

    def where_finite(update, seen, of):
        finite = jnp.isfinite(sum_square(seen, None, of.fan_in))
        return jnp.where(finite, update, 0)

    def init(params):
        layout.resolve(unbox(params))
        return inner.init(params)

    def update(updates, state, params=None, **extra_args):
        clean = changed(where_finite, layout, updates, updates)
        new, moved = move(inner, clean, state, params, extra_args)
        return changed(where_finite, layout, new, updates), cast_like(moved, state)

    return optax.GradientTransformationExtraArgs(init, update)


def where_touched(
    inner: optax.GradientTransformation,
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
) -> optax.GradientTransformationExtraArgs:
    """Apply a transformation lazily: to neurons whose update is not all zero.

    Args:
      inner: the transformation; its state moves on for all neurons.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation with the state of ``inner``; it lets the other neurons' updates
      of zero stand.

    Raises:
      ValueError: as `scale_per_neuron`.

    Example:
      >>> optimizer = where_touched(optax.add_decayed_weights(0.5))
      >>> weights, grads = jnp.ones((1, 2)), jnp.array([[1.0, 0.0]])
      >>> optimizer.update(grads, optimizer.init(weights), weights)[0].tolist()
      [[1.5, 0.0]]
    """
    layout, inner = as_layout(neurons), optax.with_extra_args_support(inner)

    def where(update, seen, of):
        return jnp.where(touched(seen, None, of.fan_in) > 0, update, 0)

    def init(params):
        layout.resolve(unbox(params))
        return inner.init(params)

    def update(updates, state, params=None, **extra_args):
        new, state = inner.update(updates, state, params, **extra_args)
        return changed(where, layout, new, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
