"""Rates from gradient statistics."""

from typing import Any

import optax

from neuron_optax.accumulators import ema, total
from neuron_optax.axes import FLAX
from neuron_optax.core import scale_per_neuron
from neuron_optax.rates import inverse_root
from neuron_optax.statistics import mean_square
from neuron_optax.strategies.alias import (
    Bias,
    NeuronsLike,
    Scalar,
    descend,
    require_adam,
    shaped,
)


def neuron_adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.0,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaGrad with one accumulator per neuron instead of one per entry.

    With :math:`g_t` the gradient of neuron :math:`i` (:math:`k` entries),

    .. math::
      a_t = a_{t-1} + \tfrac1k \lVert g_t \rVert^2, \qquad
      \Delta_t = -\eta\, \big( g_t / (\sqrt{a_t} + \epsilon) + \lambda w \big)

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      initial_accumulator_value: :math:`a_0 \ge 0`, in units of the gradient squared.
      eps: added to :math:`\sqrt a`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the axes that index the neurons, by leaf; fan-in axes are averaged over.
        ``PER_ENTRY`` is AdaGrad itself.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound. That of a neuron without gradient so
        far is :math:`1/\epsilon`, which no update shows, but every report of rates.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron without gradient so far does not count in the mean.

    Returns:
      A chain; its `NeuronState` holds :math:`a` with fan-in axes of length 1.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Reference:
      Duchi et al., *AdaGrad* (2011), with the row-wise mean of Naumov et al., *DLRM*
      (2019), arXiv:1906.00091.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = neuron_adagrad(0.1)
      >>> gradient = jnp.array([[0.01, 10.0], [0.01, 10.0]])  # a quiet and a loud one
      >>> update, _ = optimizer.update(gradient, optimizer.init(gradient))
      >>> [round(float(u), 4) for u in update[0]]
      [-0.1, -0.1]
    """
    scaled = scale_per_neuron(
        mean_square,
        total(initial_accumulator_value),
        shaped(inverse_root(eps), low, high, redistribute),
        neurons=neurons,
        bias=bias,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)


def neuron_rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSprop with one running mean per neuron instead of one per entry.

    With :math:`g_t` the gradient of neuron :math:`i` (:math:`k` entries),

    .. math::
      v_t = \beta v_{t-1} + (1 - \beta)\, \tfrac1k \lVert g_t \rVert^2, \qquad
      \Delta_t = -\eta\, \big( g_t / (\sqrt{v_t} + \epsilon) + \lambda w \big)

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      decay: :math:`\beta`, in ``[0, 1)``.
      eps: added to :math:`\sqrt v`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the axes that index the neurons, by leaf; fan-in axes are averaged over.
        ``PER_ENTRY`` is RMSprop itself.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound. That of a neuron without gradient so
        far is :math:`1/\epsilon`, which no update shows, but every report of rates.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron without gradient so far does not count in the mean.

    Returns:
      A chain; its `NeuronState` holds :math:`v` with fan-in axes of length 1.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Reference:
      Tieleman and Hinton, *RMSprop*, Coursera lecture 6.5 (2012).

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = neuron_rmsprop(0.1, decay=0.75)
      >>> gradient = jnp.array([[0.01, 10.0], [0.01, 10.0]])  # a quiet and a loud one
      >>> update, _ = optimizer.update(gradient, optimizer.init(gradient))
      >>> [round(float(u), 4) for u in update[0]]
      [-0.2, -0.2]
    """
    scaled = scale_per_neuron(
        mean_square,
        ema(decay, debias=False),
        shaped(inverse_root(eps), low, high, redistribute),
        neurons=neurons,
        bias=bias,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)


def adam_mini(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with one second moment per neuron instead of one per entry.

    With :math:`g_t` the gradient of neuron :math:`i` (:math:`k` entries),

    .. math::
      m_t = \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \qquad
      v_t = \beta_2 v_{t-1} + (1-\beta_2)\, \tfrac1k \lVert g_t \rVert^2, \qquad
      \Delta_t = -\eta\, \big( \hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda w \big)

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      b1: decay of the first moment, in ``[0, 1)``.
      b2: decay of the second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt{\hat v}`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the axes that index the neurons, by leaf; fan-in axes are averaged over.
        ``PER_ENTRY`` is Adam itself.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound. That of a neuron without gradient so
        far is :math:`1/\epsilon`, which no update shows, but every report of rates.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron without gradient so far does not count in the mean.

    Returns:
      A chain; its `NeuronState` holds :math:`m` at the shape of the parameters and
      :math:`v` with fan-in axes of length 1.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Note:
      The default layout has one number per neuron in every kernel; the authors'
      partition keeps one per head in queries and keys.

    Reference:
      Zhang et al., *Adam-mini* (2024), arXiv:2406.16793, Algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.ones((3, 2))  # fan-in 3, two neurons
      >>> state = adam_mini(1e-3).init(kernel)
      >>> state[0].memory.shape, optax.tree.get(state, "ema").shape
      ((1, 2), (3, 2))
    """
    require_adam(b1, b2, eps)
    scaled = scale_per_neuron(
        mean_square,
        ema(b2),
        shaped(inverse_root(eps), low, high, redistribute),
        neurons=neurons,
        bias=bias,
        direction=optax.ema(b1),
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)
