"""Learned rates: they grow where successive steps agree, and shrink elsewhere."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.accumulators import (
    Accumulator,
    compounded,
    require_decay,
    stepwise,
)
from neuron_optax.axes import FLAX
from neuron_optax.core import scale_per_neuron
from neuron_optax.pieces import sum_over
from neuron_optax.rates import Rate, identity
from neuron_optax.statistics import Statistic, norm
from neuron_optax.strategies.alias import (
    Bias,
    NeuronsLike,
    Scalar,
    adam,
    descend,
    heavy_ball,
    require_adam,
    shaped,
)
from neuron_optax.trees import check_same_shapes


def dot(update, previous, fan_in):
    """Inner product of a neuron's gradient with what was remembered."""
    product = jnp.real(jnp.conj(update) * previous)
    return sum_over(product, fan_in)


def cosine(update, previous, fan_in):
    """Cosine of the angle between them; 0 where either is zero."""
    size = norm(update, None, fan_in) * norm(previous, None, fan_in)
    return dot(update, previous, fan_in) / jnp.where(size > 0, size, 1.0)


class Remembered(NamedTuple):
    """State of a direction and what the next gradient is compared with.

    Attributes:
      inner: state of the direction.
      previous: the remembered tree, like the params.
    """

    inner: optax.OptState
    previous: Any


def scale_by_agreement(
    statistic: Statistic,
    accumulator: Accumulator,
    rate: Rate,
    *,
    neurons: NeuronsLike = FLAX,
    direction: optax.GradientTransformation | None = None,
    remember: Callable[[Array, Array], Array] | None = None,
    bias: Bias = "own",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale a direction by how a neuron's gradient agrees with those before.

    It is `scale_per_neuron` with the remembered tree in the place of the weights.

    Args:
      statistic: ``statistic(update, previous, fan_in)``.
      accumulator: how it is remembered from step to step.
      rate: how the remembered value becomes the factor.
      neurons: the axes that index the neurons, by leaf.
      direction: what is scaled, without sign and learning rate; ``None`` for the
        update itself.
      remember: ``remember(previous, update)``, what the next gradient is compared
        with, from zero; ``None`` for the direction.
      bias: whose factor a bias uses, see `scale_per_neuron`.

    Returns:
      A transformation whose state is a `NeuronState`.

    Raises:
      ValueError: as `scale_per_neuron`.

    Example:
      >>> from neuron_optax import compounded, identity
      >>> product = lambda update, previous, fan_in: jnp.sum(
      ...     update * previous, axis=fan_in, keepdims=True
      ... )
      >>> optimizer = scale_by_agreement(product, compounded(0.5), identity())
      >>> kernel = jnp.ones((1, 1))
      >>> state = optimizer.init(kernel)
      >>> for _ in range(2):
      ...     update, state = optimizer.update(kernel, state)
      >>> update.item()
      1.5
    """
    inner = optax.with_extra_args_support(direction or optax.identity())

    def init(params):
        return Remembered(inner.init(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None, *, weights=None, **extra_args):
        moved, of_inner = inner.update(updates, state.inner, weights, **extra_args)
        if remember is None:
            return moved, Remembered(of_inner, moved)
        kept = jax.tree.map(remember, state.previous, updates)
        return moved, Remembered(of_inner, kept)

    scaled = scale_per_neuron(
        statistic,
        accumulator,
        rate,
        neurons=neurons,
        direction=optax.GradientTransformationExtraArgs(init, update),
        bias=bias,
    )

    def compare(updates, state, params=None, **extra_args):
        previous = state.direction.previous
        check_same_shapes(updates, previous, "the direction of")
        return scaled.update(updates, state, previous, weights=params, **extra_args)

    return optax.GradientTransformationExtraArgs(scaled.init, compare)


def hypergradient_sgd(
    learning_rate: optax.ScalarOrSchedule,
    gain: Scalar = 0.05,
    momentum: Scalar = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = 0.01,
    high: Scalar | None = 100.0,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD that learns one rate per neuron by the multiplicative hypergradient.

    .. math::
      a_i \leftarrow a_i \Big(1 + \gamma\, \frac{\langle g_{t,i}, d_{t-1,i} \rangle}
      {\lVert g_{t,i} \rVert\, \lVert d_{t-1,i} \rVert}\Big), \qquad
      \Delta_i = -\eta\, (a_i\, d_{t,i} + \lambda w_i)

    with :math:`d` the gradient or its momentum.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      gain: :math:`\gamma`, in ``[0, 1)``, without unit.
      momentum: :math:`\mu` of :math:`d_t = \mu d_{t-1} + g_t`, in ``[0, 1)``.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the axes that index the neurons, by leaf.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least memory and factor, without unit; ``None`` for no bound.
      high: largest memory and factor, without unit; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; the memory of its `NeuronState` is the learned factor :math:`a`, which
      starts at 1, and its direction holds the previous one.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Reference:
      Baydin et al., *Hypergradient descent* (2017), arXiv:1703.04782, per neuron and
      with the cosine, so that it has no unit.

    Example:
      >>> optimizer = hypergradient_sgd(0.1, gain=0.5)
      >>> kernel = jnp.ones((1, 1))
      >>> state = optimizer.init(kernel)
      >>> for _ in range(2):
      ...     update, state = optimizer.update(kernel, state)
      >>> round(update.item(), 4)
      -0.15
    """
    require_decay("gain", gain)
    scaled = scale_by_agreement(
        cosine,
        compounded(gain, low, high),
        shaped(identity(), low, high, redistribute),
        neurons=neurons,
        direction=heavy_ball(momentum),
        bias=bias,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)


def hypergradient_adam(
    learning_rate: optax.ScalarOrSchedule,
    gain: Scalar = 0.05,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = 0.01,
    high: Scalar | None = 100.0,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam that learns one rate per neuron by the multiplicative hypergradient.

    .. math::
      a_i \leftarrow a_i \Big(1 + \gamma\, \frac{\langle g_{t,i}, d_{t-1,i} \rangle}
      {\lVert g_{t,i} \rVert\, \lVert d_{t-1,i} \rVert}\Big), \qquad
      \Delta_i = -\eta\, (a_i\, d_{t,i} + \lambda w_i)

    with :math:`d = \hat m / (\sqrt{\hat v} + \epsilon)`.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      gain: :math:`\gamma`, in ``[0, 1)``, without unit.
      b1: decay of Adam's first moment, in ``[0, 1)``.
      b2: decay of Adam's second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt{\hat v}`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the axes that index the neurons, by leaf.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least memory and factor, without unit; ``None`` for no bound.
      high: largest memory and factor, without unit; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; the memory of its `NeuronState` is the learned factor :math:`a`, which
      starts at 1, and its direction holds the previous one.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Reference:
      Baydin et al., *Hypergradient descent* (2017), arXiv:1703.04782, per neuron and
      with the cosine, so that it has no unit.

    Example:
      >>> optimizer = hypergradient_adam(0.1, gain=0.5)
      >>> kernel = jnp.ones((1, 1))
      >>> state = optimizer.init(kernel)
      >>> for _ in range(2):
      ...     update, state = optimizer.update(kernel, state)
      >>> round(update.item(), 4)
      -0.15
    """
    require_decay("gain", gain)
    require_adam(b1, b2, eps)
    scaled = scale_by_agreement(
        cosine,
        compounded(gain, low, high),
        shaped(identity(), low, high, redistribute),
        neurons=neurons,
        direction=adam(b1, b2, eps),
        bias=bias,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)


def delta_bar_delta(
    learning_rate: optax.ScalarOrSchedule,
    increase: Scalar = 0.05,
    decrease: Scalar = 0.1,
    smoothing: Scalar = 0.7,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = 0.01,
    high: Scalar | None = 100.0,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD that learns one rate per neuron: up by steps, down by shares.

    .. math::
      a_i \leftarrow a_i + \kappa \text{ if } \langle g_i, \bar g_i \rangle > 0, \qquad
      a_i \leftarrow (1 - \phi)\, a_i \text{ if it is} < 0, \qquad
      \bar g \leftarrow \theta \bar g + (1 - \theta) g

    and :math:`\Delta_i = -\eta\, (a_i g_i + \lambda w_i)`.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      increase: :math:`\kappa`, without unit.
      decrease: :math:`\phi`, in ``[0, 1)``, without unit.
      smoothing: :math:`\theta`, in ``[0, 1)``.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the axes that index the neurons, by leaf. Under ``PER_ENTRY`` it is the
        published rule.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least memory and factor, without unit; ``None`` for no bound.
      high: largest memory and factor, without unit; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; the memory of its `NeuronState` is the learned factor :math:`a`, which
      starts at 1, and its direction holds the mean of the gradients.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Reference:
      Jacobs, *Increased rates of convergence through learning rate adaptation* (1988),
      equation 4, per neuron.

    Example:
      >>> optimizer = delta_bar_delta(0.1, increase=0.5)
      >>> kernel = jnp.ones((1, 1))
      >>> state = optimizer.init(kernel)
      >>> for _ in range(2):
      ...     update, state = optimizer.update(kernel, state)
      >>> round(update.item(), 4)
      -0.15
    """
    require_decay("smoothing", smoothing)
    scaled = scale_by_agreement(
        dot,
        stepwise(increase, decrease, low, high),
        shaped(identity(), low, high, redistribute),
        neurons=neurons,
        remember=lambda mean, g: smoothing * mean + (1 - smoothing) * g,
        bias=bias,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)
