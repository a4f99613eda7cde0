"""How a remembered value becomes a factor: the last of the four parts of a strategy.

``apply(value, neurons)`` gets one number per neuron and the axes that index the neurons
of one layer; stack axes are not among them.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from neuron_optax.numerics import require_number, root
from neuron_optax.pieces import require_whole


class Rate(NamedTuple):
    """A factor as a pure function.

    Attributes:
      apply: ``apply(value, neurons)``, the factor of every neuron of one leaf.

    Example:
      >>> halved = Rate(lambda value, neurons: value / 2)
      >>> float(halved.apply(jnp.array(3.0), ()))
      1.5
    """

    apply: Callable[[Array, tuple[int, ...]], Array]


def inverse_root(eps: float | Array = 1e-8) -> Rate:
    r"""Inverse square root, :math:`1 / (\sqrt a + \epsilon)`.

    Args:
      eps: :math:`\epsilon > 0`, in units of :math:`\sqrt a`.

    Returns:
      A rate in units of one over :math:`\sqrt a`.

    Raises:
      ValueError: if ``eps`` is a number that is not positive.

    Example:
      >>> float(inverse_root(eps=1.0).apply(jnp.array(9.0), ()))
      0.25
    """
    require_positive("eps", eps)
    return Rate(lambda value, neurons: 1 / (root(value) + eps))


def reciprocal(floor: float | Array = 1e-8) -> Rate:
    r"""Reciprocal, :math:`1 / \max(a, \phi)`.

    Args:
      floor: :math:`\phi > 0`, in units of :math:`a`.

    Returns:
      A rate in units of one over :math:`a`.

    Raises:
      ValueError: if ``floor`` is a number that is not positive.

    Example:
      >>> reciprocal(floor=0.5).apply(jnp.array([0.0, 4.0]), (0,)).tolist()
      [2.0, 0.25]
    """
    require_positive("floor", floor)
    return Rate(lambda value, neurons: 1 / jnp.maximum(value, floor))


def affine(slope: float | Array) -> Rate:
    r"""Affine, :math:`1 + k a`.

    Args:
      slope: :math:`k`, in units of one over :math:`a`.

    Returns:
      A rate without unit.

    Raises:
      TypeError: if ``slope`` is neither a number nor an array.

    Example:
      >>> float(affine(0.5).apply(jnp.array(3.0), ()))
      2.5
    """
    require_number("slope", slope)
    return Rate(lambda value, neurons: 1 + slope * value)


def power(exponent: float | Array) -> Rate:
    r"""Power, :math:`a^p`; for :math:`p < 0`, 0 where :math:`a` is 0.

    Args:
      exponent: :math:`p`, without unit.

    Returns:
      A rate in units of :math:`a^p`.

    Example:
      >>> power(-0.5).apply(jnp.array([4.0, 0.0]), (0,)).tolist()
      [0.5, 0.0]
    """

    def apply(value, neurons):
        undefined = (value == 0) & (jnp.asarray(exponent) < 0)
        return jnp.where(undefined, 0.0, jnp.where(undefined, 1.0, value) ** exponent)

    return Rate(apply)


def identity() -> Rate:
    """Use the remembered value itself.

    Returns:
      A rate in units of the value.

    Example:
      >>> float(identity().apply(jnp.array(3.0), ()))
      3.0
    """
    return Rate(lambda value, neurons: value)


def bounded(
    rate: Rate, low: float | Array | None = None, high: float | Array | None = None
) -> Rate:
    r"""Clip a rate, :math:`\min(\max(r, l), h)`.

    Args:
      rate: :math:`r`.
      low: :math:`l`, in units of the rate; ``None`` for no bound.
      high: :math:`h`, in units of the rate; ``None`` for no bound.

    Returns:
      A rate in units of ``rate``.

    Raises:
      ValueError: for numbers other than ``0 <= low <= high > 0``.

    Example:
      >>> bounded(identity(), low=1.0).apply(jnp.array([0.5, 2.0]), (0,)).tolist()
      [1.0, 2.0]
    """
    least = low if isinstance(low, Real) else 0
    most = high if isinstance(high, Real) else math.inf
    if not (0 <= least <= most and most > 0):
        raise ValueError(f"bounds must be 0 <= low <= high > 0, got {low=}, {high=}")
    return Rate(lambda value, neurons: jnp.clip(rate.apply(value, neurons), low, high))


def redistributed(rate: Rate) -> Rate:
    r"""Divide a rate by its mean over the neurons of a layer, :math:`r_i / \bar r`.

    The factors of a layer then have mean 1, and a tuned base rate keeps its meaning.
    Each entry along a stack axis is a layer of its own. A neuron whose value is 0 (it
    had no gradient yet) does not count in the mean.

    Args:
      rate: :math:`r`.

    Returns:
      A rate without unit; a layer whose rates are all zero keeps them.

    Raises:
      NotImplementedError: when applied inside ``shard_map``, where a leaf may have a
        part of its layer's neurons.

    Example:
      >>> redistributed(identity()).apply(jnp.array([1.0, 3.0]), (0,)).tolist()
      [0.5, 1.5]
    """

    def apply(value, neurons):
        require_whole(value, "its layer, whose mean redistribute needs")
        factor = rate.apply(value, neurons)
        counts = jnp.broadcast_to(value != 0, factor.shape)
        mean = jnp.mean(factor, axis=neurons, keepdims=True, where=counts)
        return factor / jnp.where(mean > 0, mean, 1.0)  # NaN where none counts

    return Rate(apply)


def require_positive(name: str, number: float | Array) -> None:
    """Raise ``ValueError`` if ``number`` is a number that is not positive."""
    require_number(name, number)
    if isinstance(number, Real) and not np.float32(number) > 0:
        raise ValueError(f"{name} must be positive in float32, got {number}")
