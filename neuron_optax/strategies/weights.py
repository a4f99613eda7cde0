"""Rates from the weights before the step."""

from typing import Any, Literal

import optax

from neuron_optax.accumulators import latest
from neuron_optax.axes import FLAX
from neuron_optax.core import scale_per_neuron
from neuron_optax.rates import affine
from neuron_optax.statistics import param_norm, param_rms
from neuron_optax.strategies.alias import (
    Bias,
    NeuronsLike,
    Scalar,
    adam,
    descend,
    require_adam,
    shaped,
)


def scale_by_weight_norm(
    scaling_factor: Scalar = 0.01,
    *,
    norm: Literal["l2", "rms"] = "l2",
    neurons: NeuronsLike = FLAX,
    direction: optax.GradientTransformation | None = None,
    bias: Bias = "kernel",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale by the norm of each neuron's weights, :math:`(1 + s \lVert w_i \rVert) u`.

    Chain it after the direction (SGD, momentum, Adam) or pass that. The weights are
    those before the step, and no gradient flows through their norm.

    Args:
      scaling_factor: :math:`s`, in units of one over the parameter.
      norm: ``"l2"``, or ``"rms"`` for the root mean square. The L2 norm grows with the
        root of the fan-in and feeds back on itself: a larger neuron takes larger
        steps. ``"rms"`` does not depend on the fan-in, and ``high`` ends the feedback.
      neurons: the axes that index the neurons, by leaf.
      direction: what is scaled; ``None`` for the update itself.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron whose weights are all 0 does not count in the mean.

    Returns:
      A transformation whose state is a `NeuronState`; its memory is the norm.

    Raises:
      ValueError: if ``norm`` is unknown, or as `scale_per_neuron`; at ``update``, if
        ``params`` is ``None``.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = scale_by_weight_norm(0.1)
      >>> kernel = jnp.array([[3.0, 0.0], [4.0, 0.0]])  # two neurons, norms 5 and 0
      >>> update, _ = optimizer.update(kernel, optimizer.init(kernel), kernel)
      >>> update.tolist()
      [[4.5, 0.0], [6.0, 0.0]]
    """
    if norm not in ("l2", "rms"):
        raise ValueError(f"norm must be 'l2' or 'rms', got {norm!r}")
    return scale_per_neuron(
        param_norm if norm == "l2" else param_rms,
        latest(),
        shaped(affine(scaling_factor), low, high, redistribute),
        neurons=neurons,
        direction=direction,
        bias=bias,
    )


def weight_norm_adam(
    learning_rate: optax.ScalarOrSchedule,
    scaling_factor: Scalar = 0.01,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    norm: Literal["l2", "rms"] = "l2",
    neurons: NeuronsLike = FLAX,
    bias: Bias = "kernel",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose steps grow with the norm of the neuron's weights.

    .. math::
      \Delta_i = -\eta\, \big( (1 + s \lVert w_i \rVert_2)\,
      \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w_i \big)

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      scaling_factor: :math:`s`, in units of one over the parameter.
      b1: decay of Adam's first moment, in ``[0, 1)``.
      b2: decay of Adam's second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt{\hat v}`, in units of the gradient, positive. Optax's
        Adam divides zero by zero in float16 if it is below 6e-8.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      norm: as `scale_by_weight_norm`, which says why ``"l2"`` feeds back on itself.
      neurons: the axes that index the neurons, by leaf.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds. A
        neuron whose weights are all 0 does not count in the mean.

    Returns:
      A chain; Adam's state is the direction of its `NeuronState`.

    Raises:
      ValueError: as `scale_by_weight_norm`, or for a decay or ``eps`` out of range.

    Note:
      Under the root stands 1e-30 beside :math:`\hat v`, for a finite derivative at zero
      gradients. It counts where both the gradient and ``eps`` are below 1e-14.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = weight_norm_adam(0.1, scaling_factor=0.2)
      >>> kernel = jnp.array([[3.0], [4.0]])  # one neuron of norm 5
      >>> update, _ = optimizer.update(kernel, optimizer.init(kernel), kernel)
      >>> round(float(update[0, 0]), 4)
      -0.2
    """
    require_adam(b1, b2, eps)
    scaled = scale_by_weight_norm(
        scaling_factor,
        norm=norm,
        neurons=neurons,
        direction=adam(b1, b2, eps),
        bias=bias,
        low=low,
        high=high,
        redistribute=redistribute,
    )
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)
