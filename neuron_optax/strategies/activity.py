"""Rates from how often a neuron was active: rare neurons take larger steps."""

from typing import Any

import optax

from neuron_optax.accumulators import average, ema
from neuron_optax.axes import FLAX
from neuron_optax.core import scale_per_neuron
from neuron_optax.numerics import require_within
from neuron_optax.rates import power
from neuron_optax.statistics import touched
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


def scale_by_frequency(
    exponent: Scalar = 0.5,
    *,
    decay: Scalar | None = None,
    neurons: NeuronsLike = FLAX,
    direction: optax.GradientTransformation | None = None,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = 100.0,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale by how seldom a neuron was active, :math:`f_i^{-p}`.

    :math:`f_i` is the share of the steps so far in which any entry of the neuron's
    gradient was not zero. It is measured of what comes in: chain nothing before it that
    fills in zeros, as momentum does, but pass that as the direction.

    Args:
      exponent: :math:`p \ge 0`, without unit: a neuron active in one step of a hundred
        steps ten times as far with 0.5, a hundred times with 1, which makes up for the
        steps it missed.
      decay: of a running mean in place of the share of all steps, in ``[0, 1)``;
        ``None`` for all.
      neurons: the axes that index the neurons, by leaf.
      direction: what is scaled; ``None`` for the update itself.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron that was never active does not count in the mean.

    Returns:
      A transformation whose state is a `NeuronState`; its memory is the number of
      active steps, or their running mean.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = scale_by_frequency(1.0)
      >>> often, seldom = jnp.ones((1, 2)), jnp.array([[1.0, 0.0]])
      >>> state = optimizer.init(often)
      >>> for gradient in (seldom, often):
      ...     update, state = optimizer.update(gradient, state)
      >>> update.tolist()
      [[1.0, 2.0]]
    """
    require_within("exponent", exponent, 0)
    return scale_per_neuron(
        touched,
        average() if decay is None else ema(decay),
        shaped(power(-exponent), low, high, redistribute),
        neurons=neurons,
        direction=direction,
        bias=bias,
    )


def frequency_sgd(
    learning_rate: optax.ScalarOrSchedule,
    exponent: Scalar = 0.5,
    momentum: Scalar = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    decay: Scalar | None = None,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = 100.0,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD whose steps are larger for neurons that are seldom active.

    .. math::
      f_i = \tfrac1t \#\{s \le t : g_{s,i} \ne 0\}, \qquad
      \Delta_i = -\eta\, \big( f_i^{-p}\, M_i + \lambda w_i \big)

    with the momentum :math:`M_t = \mu M_{t-1} + g_t`.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      exponent: :math:`p \ge 0`, without unit: a neuron active in one step of a hundred
        steps ten times as far with 0.5, a hundred times with 1, which makes up for the
        steps it missed.
      momentum: :math:`\mu`, in ``[0, 1)``; it moves a neuron on in steps in which it
        is not active.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      decay: of a running mean in place of the share of all steps, in ``[0, 1)``;
        ``None`` for all.
      neurons: the axes that index the neurons, by leaf.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron that was never active does not count in the mean.

    Returns:
      A chain; the memory of its `NeuronState` is the number of active steps, or their
      running mean. A neuron that was never active has the
      factor 0, or ``low``.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Note:
      Not published; it answers the wish for larger steps where updates are rare.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = frequency_sgd(0.1, exponent=1.0)
      >>> gradients = jnp.array([[[1.0, 0.0]], [[1.0, 1.0]]])  # a rare one
      >>> state = optimizer.init(gradients[0])
      >>> for gradient in gradients:
      ...     update, state = optimizer.update(gradient, state)
      >>> [round(float(u), 4) for u in update[0]]
      [-0.1, -0.2]
    """
    scaled = scale_by_frequency(
        exponent,
        decay=decay,
        neurons=neurons,
        direction=heavy_ball(momentum),
        bias=bias,
        low=low,
        high=high,
        redistribute=redistribute,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)


def frequency_adam(
    learning_rate: optax.ScalarOrSchedule,
    exponent: Scalar = 0.5,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    decay: Scalar | None = None,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = 100.0,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose steps are larger for neurons that are seldom active.

    .. math::
      f_i = \tfrac1t \#\{s \le t : g_{s,i} \ne 0\}, \qquad
      \Delta_i = -\eta\, \big( f_i^{-p}\,
      \hat m_i / (\sqrt{\hat v_i} + \epsilon) + \lambda w_i \big)

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      exponent: :math:`p \ge 0`, without unit: a neuron active in one step of a hundred
        steps ten times as far with 0.5, a hundred times with 1, which makes up for the
        steps it missed.
      b1: decay of Adam's first moment, in ``[0, 1)``.
      b2: decay of Adam's second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt{\hat v}`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      decay: of a running mean in place of the share of all steps, in ``[0, 1)``;
        ``None`` for all.
      neurons: the axes that index the neurons, by leaf.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron that was never active does not count in the mean.

    Returns:
      A chain; the memory of its `NeuronState` is the number of active steps, or their
      running mean. A neuron that was never active has the
      factor 0, or ``low``.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Note:
      Not published; it answers the wish for larger steps where updates are rare.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = frequency_adam(0.1, exponent=1.0)
      >>> gradients = jnp.array([[[1.0, 0.0]], [[1.0, 1.0]]])  # a rare one
      >>> state = optimizer.init(gradients[0])
      >>> for gradient in gradients:
      ...     update, state = optimizer.update(gradient, state)
      >>> [round(float(rate), 2) for rate in state[0].rate[0]]
      [1.0, 2.0]
    """
    require_adam(b1, b2, eps)
    scaled = scale_by_frequency(
        exponent,
        decay=decay,
        neurons=neurons,
        direction=adam(b1, b2, eps),
        bias=bias,
        low=low,
        high=high,
        redistribute=redistribute,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)
