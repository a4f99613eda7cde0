"""Weights kept on a surface: neurons at mean zero and norm one, or within a norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.axes import FLAX, Axes, Layout, MatrixAxes, Neurons, as_layout
from neuron_optax.pieces import max_over, mean_over, size_over
from neuron_optax.projections.stateless import changed, stateless
from neuron_optax.rates import require_positive
from neuron_optax.statistics import norm


def project_neurons(
    params: Any, *, neurons: Layout | Neurons | MatrixAxes = FLAX
) -> Any:
    r"""Return weights whose neurons have mean zero and norm one.

    .. math::
      P(w_i) = (w_i - \bar w_i) / \lVert w_i - \bar w_i \rVert_2

    Args:
      params: the weights.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A tree like ``params``. A neuron of one entry stays as it is, and so do leaves
      without fan-in (biases). A
      neuron whose entries are all equal becomes zero.

    Raises:
      TypeError: for a leaf that is not floating or complex.
      ValueError: naming the leaf, if its axes do not exist.

    Reference:
      Liu et al., *Nero* (2021), arXiv:2102.07227, section 3.

    Example:
      >>> kernel = jnp.array([[3.0, 5.0], [1.0, 5.0]])  # the second is constant
      >>> project_neurons({"kernel": kernel})["kernel"].round(4).tolist()
      [[0.707099974155426, 0.0], [-0.707099974155426, 0.0]]
    """
    layout = as_layout(neurons)
    return changed(lambda weights, _, of: projected(weights, of), layout, params)


def project_steps(
    *, neurons: Layout | Neurons | MatrixAxes = FLAX
) -> optax.GradientTransformationExtraArgs:
    r"""Change every step so that it ends on projected weights.

    .. math:: u_t = P(w_t + \Delta_t) - w_t

    It is the last member of a chain, behind sign and learning rate: what changes the
    step after it leaves the surface.

    Args:
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation without state; :math:`P` is that of `project_neurons`.

    Raises:
      ValueError: as `scale_per_neuron`; at ``update``, naming the leaf, if ``params``
        is ``None``.

    Example:
      >>> kernel = jnp.array([[3.0], [1.0]])
      >>> optimizer = optax.chain(optax.sgd(1.0), project_steps())
      >>> update, _ = optimizer.update(kernel, optimizer.init(kernel), kernel)
      >>> (kernel + update).tolist()  # constant after the first member
      [[0.0], [0.0]]
    """

    def step(update, param, of):
        if param is None:
            raise ValueError("the projection needs the weights: pass params")
        return projected(param + update, of) - param

    return stateless(step, neurons)


def limit_norms(
    max_norm: float | Array, *, neurons: Layout | Neurons | MatrixAxes = FLAX
) -> optax.GradientTransformationExtraArgs:
    r"""Change every step so that no neuron's weights end longer than a limit.

    .. math::
      u_i = (w_i + \Delta_i) \min\Big(1, \frac{c}{\lVert w_i + \Delta_i \rVert_2}\Big)
      - w_i

    It is the last member of a chain, behind sign and learning rate: what changes the
    step after it passes the limit.

    Args:
      max_norm: :math:`c > 0`, in units of the parameter.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation without state. A leaf of one entry per neuron (a bias) is
      limited entry by entry.

    Raises:
      ValueError: for a number that is not positive; as `scale_per_neuron`; at
        ``update``, naming the leaf, if ``params`` is ``None``.

    Note:
      The limit holds up to the rounding of the update in its dtype.

    Reference:
      Srivastava et al., *Dropout* (2014), section 5.1, max-norm regularization.

    Example:
      >>> optimizer = optax.chain(optax.sgd(1.0), limit_norms(10.0))
      >>> kernel, gradient = jnp.array([[3.0, 3.0]]), jnp.array([[-17.0, -1.0]])
      >>> update, _ = optimizer.update(gradient, optimizer.init(kernel), kernel)
      >>> (kernel + update).tolist()
      [[10.0, 4.0]]
    """
    require_positive("max_norm", max_norm)

    def step(update, param, of):
        if param is None:
            raise ValueError("the limit needs the weights: pass params")
        size = norm(param + update, None, of.reduced)
        long = size > max_norm
        shrink = jnp.where(long, max_norm / jnp.where(long, size, 1.0), 1.0)
        return jnp.where(long, (param + update) * shrink - param, update)

    return stateless(step, neurons)


def projected(weights: Array, of: Axes) -> Array:
    """Project one leaf in its view."""
    if size_over(weights, of.reduced) < 2:
        return weights
    size_of = jax.lax.stop_gradient(jnp.abs(weights))  # cancels below
    largest = max_over(size_of, of.reduced)
    near_one = weights / jnp.where(largest == 0, 1.0, largest)  # squares neither
    mean = mean_over(near_one, of.reduced)  # overflow
    centred = near_one - mean  # nor underflow
    size = norm(centred, None, of.reduced)
    # Equal entries leave no more than the rounding of their mean; NaN stays NaN.
    length = jnp.hypot(size, jnp.sqrt(size_over(weights, of.reduced)) * jnp.abs(mean))
    rounding = 4 * jnp.finfo(weights.dtype).eps * length
    constant = size <= rounding
    return jnp.where(constant, 0.0, centred / jnp.where(constant, 1.0, size))
