"""Transformations that pass over some neurons: those not finite, those not touched."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.axes import FLAX, Axes, Layout, MatrixAxes, Neurons, as_layout
from neuron_optax.projections.stateless import around, stateless
from neuron_optax.statistics import sum_square, touched


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
    return around(inner, as_layout(neurons), _where_finite, _where_finite)


def zero_nonfinite(
    *, neurons: Layout | Neurons | MatrixAxes = FLAX
) -> optax.GradientTransformationExtraArgs:
    """Take an update that is not finite, or whose square overflows, for zero.

    Args:
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation without state.

    Raises:
      ValueError: as `scale_per_neuron`.

    Example:
      >>> optimizer = zero_nonfinite()
      >>> kernel = jnp.array([[1.0, jnp.nan], [1.0, 1.0]])
      >>> optimizer.update(kernel, optimizer.init(kernel))[0].tolist()
      [[1.0, 0.0], [1.0, 0.0]]
    """
    return stateless(lambda update, _, of: _where_finite(update, update, of), neurons)


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
    return around(inner, as_layout(neurons), _where_touched)


def _where_finite(update: Array, seen: Any, of: Axes) -> Array:
    finite = jnp.isfinite(sum_square(seen, None, of.reduced))
    return jnp.where(finite, update, 0)


def _where_touched(update: Array, seen: Any, of: Axes) -> Array:
    return jnp.where(touched(seen, None, of.reduced) > 0, update, 0)
