"""Rates from gradient statistics."""

import functools
from typing import Any, Literal

import optax

from neuron_optax.accumulators import ema, total
from neuron_optax.axes import FLAX
from neuron_optax.core import scale_per_neuron
from neuron_optax.projections import where_touched
from neuron_optax.rates import inverse_root
from neuron_optax.statistics import mean_square
from neuron_optax.strategies.alias import (
    Bias,
    NeuronsLike,
    Scalar,
    decoupled_decay,
    descend,
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


def rowwise_adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.0,
    eps: Scalar = 1e-10,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    decay: Literal["decoupled", "l2"] = "decoupled",
    lazy: bool = True,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaGrad per row of an embedding, which spares the rows of absent tokens.

    The formula is that of `neuron_adagrad`. With ``decay="l2"``, :math:`\lambda w` is
    added to the gradient before everything else.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      initial_accumulator_value: :math:`a_0 \ge 0`, in units of the gradient squared.
      eps: added to :math:`\sqrt a`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`; multiplied by the base learning rate if decoupled.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      decay: ``"decoupled"``, or ``"l2"`` for decay that enters the statistic.
      lazy: rows whose gradient is zero do not decay, as if they were not looked at.
      neurons: the axes that index the rows, by leaf: of an embedding the tokens, of a
        kernel the neurons.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        row without gradient so far does not count in the mean.

    Returns:
      A chain; its `NeuronState` holds :math:`a` with fan-in axes of length 1.

    Raises:
      ValueError: for a hyperparameter out of range, an unknown ``decay``, or as
        `scale_per_neuron`.

    Reference:
      Naumov et al., *DLRM* (2019), arXiv:1906.00091; ``EXACT_ROWWISE_ADAGRAD`` of
      https://github.com/pytorch/FBGEMM.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = rowwise_adagrad(0.1, weight_decay=0.5)
      >>> table = {"embedding": jnp.ones((2, 4))}
      >>> grads = {"embedding": jnp.array([[1.0] * 4, [0.0] * 4])}  # the first token
      >>> update, _ = optimizer.update(grads, optimizer.init(table), table)
      >>> [abs(round(float(row[0]), 4)) for row in update["embedding"]]
      [0.15, 0.0]
    """
    if decay not in ("decoupled", "l2"):
        raise ValueError(f"decay must be 'decoupled' or 'l2', got {decay!r}")
    if not isinstance(lazy, bool):
        raise TypeError(f"lazy must be True or False, got {lazy!r}")
    decayed = decoupled_decay(weight_decay, weight_decay_mask)
    alike = isinstance(weight_decay, int | float) and weight_decay == 0
    lazy = lazy and not alike  # a gradient of zero is a step of zero then
    lazily = functools.partial(where_touched, neurons=neurons)
    scaled = scale_per_neuron(
        mean_square,
        total(initial_accumulator_value),
        shaped(inverse_root(eps), low, high, redistribute),
        neurons=neurons,
        bias=bias,
    )
    if decay == "l2":
        step = optax.chain(lazily(decayed) if lazy else decayed, scaled)
    else:
        step = optax.chain(scaled, decayed)
        step = lazily(step) if lazy else step
    return optax.chain(step, optax.scale_by_learning_rate(learning_rate))
