"""What is measured of one update: the second of the four parts of a strategy.

``statistic(update, param, fan_in)`` reduces the fan-in axes and keeps them at length 1.
`scale_per_neuron` calls it with at least 32-bit floats. Inside ``shard_map`` the fan-in
may have names of mesh axes, which `sum_over` and its like understand.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from neuron_optax.numerics import root
from neuron_optax.pieces import Along, size_over, sum_over

Leaf = Inexact[Array, "*leaf"]
PerNeuron = Float[Array, "*neuron"]
FanIn = Along
Statistic = Callable[[Array, Array | None, FanIn], Array]


def sum_square(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    r"""Sum of squares over the fan-in, :math:`\lVert g \rVert^2`.

    Args:
      update: :math:`g`; its modulus counts where it is complex.
      param: not used.
      fan_in: axes of ``update`` to reduce.

    Returns:
      One number per neuron, in units of the update squared.

    Example:
      >>> sum_square(jnp.array([[3.0, 1.0], [4.0, 1.0]]), None, (0,)).tolist()
      [[25.0, 2.0]]
    """
    square = jnp.real(jnp.conj(update) * update)
    return sum_over(square, fan_in)


def mean_square(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    r"""Mean of squares over the fan-in of :math:`k` entries, :math:`\|g\|^2 / k`.

    Args:
      update: :math:`g`; its modulus counts where it is complex.
      param: not used.
      fan_in: axes of ``update`` to reduce; a fan-in of size zero gives 0.

    Returns:
      One number per neuron, in units of the update squared.

    Example:
      >>> mean_square(jnp.array([[3.0, 1.0], [4.0, 1.0]]), None, (0,)).tolist()
      [[12.5, 1.0]]
    """
    return sum_square(update, param, fan_in) / max(size_over(update, fan_in), 1)


def norm(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    r"""L2 norm over the fan-in, :math:`\lVert g \rVert_2`.

    Args:
      update: :math:`g`.
      param: not used.
      fan_in: axes of ``update`` to reduce.

    Returns:
      One number per neuron, in units of the update.

    Example:
      >>> norm(jnp.array([[3.0], [4.0]]), None, (0,)).tolist()
      [[5.0]]
    """
    return root(sum_square(update, param, fan_in))


def rms(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    r"""Root mean square over the fan-in of :math:`k` entries, :math:`\|g\|_2/\sqrt k`.

    Args:
      update: :math:`g`.
      param: not used.
      fan_in: axes of ``update`` to reduce.

    Returns:
      One number per neuron, in units of the update.

    Example:
      >>> rms(jnp.array([[1.0], [7.0]]), None, (0,)).tolist()
      [[5.0]]
    """
    return root(mean_square(update, param, fan_in))


def param_norm(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    r"""L2 norm of a neuron's weights, :math:`\lVert w \rVert_2`, without gradient.

    Args:
      update: not used.
      param: :math:`w`, the weights before the step.
      fan_in: axes of ``param`` to reduce.

    Returns:
      One number per neuron, in units of the parameter.

    Raises:
      ValueError: if ``param`` is ``None``.

    Example:
      >>> param_norm(jnp.zeros((2, 1)), jnp.array([[3.0], [4.0]]), (0,)).tolist()
      [[5.0]]
    """
    return norm(_weights(param), None, fan_in)


def param_rms(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    r"""Root mean square of a neuron's :math:`k` weights, :math:`\|w\|_2 / \sqrt k`.

    Args:
      update: not used.
      param: :math:`w`, the weights before the step; no gradient flows through it.
      fan_in: axes of ``param`` to reduce.

    Returns:
      One number per neuron, in units of the parameter.

    Raises:
      ValueError: if ``param`` is ``None``.

    Example:
      >>> param_rms(jnp.zeros((2, 1)), jnp.array([[1.0], [7.0]]), (0,)).tolist()
      [[5.0]]
    """
    return rms(_weights(param), None, fan_in)


def trust_ratio(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    r"""Ratio :math:`\lVert w \rVert_2 / \lVert g \rVert_2`; 1 where either is zero.

    Args:
      update: :math:`g`.
      param: :math:`w`, the weights before the step; no gradient flows through it.
      fan_in: axes to reduce.

    Returns:
      One number per neuron, in units of the parameter over those of the update.

    Raises:
      ValueError: if ``param`` is ``None``.

    Reference:
      You et al., *LARS* (2017), arXiv:1708.03888, per neuron instead of per layer.

    Example:
      >>> trust_ratio(jnp.array([[0.5], [0.0]]), jnp.array([[3.0], [4.0]]), (0,))[0, 0]
      Array(10., dtype=float32)
    """
    weight = param_norm(update, param, fan_in)
    gradient = norm(update, None, fan_in)
    defined = (weight > 0) & (gradient > 0)
    return jnp.where(defined, weight / jnp.where(defined, gradient, 1.0), 1.0)


def touched(update: Leaf, param: Leaf | None, fan_in: FanIn) -> PerNeuron:
    """One where any entry of the neuron's update differs from zero, zero elsewhere.

    Args:
      update: the gradient.
      param: not used.
      fan_in: axes of ``update`` to reduce.

    Returns:
      One number per neuron; summed over steps, the steps in which it was active.

    Example:
      >>> touched(jnp.array([[0.0, 0.0], [0.0, 2.0]]), None, (0,)).tolist()
      [[0.0, 1.0]]
    """
    active = jnp.asarray(update != 0, jnp.real(update).dtype)
    return jnp.sign(sum_over(active, fan_in))


OF_SQUARES = (
    sum_square,
    mean_square,
    norm,
    rms,
)  # finite only where the sum of squares is


def _weights(param: Array | None) -> Array:
    if param is None:
        raise ValueError("the statistic needs the weights: pass params to update()")
    return jax.lax.stop_gradient(param)
