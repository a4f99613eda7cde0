"""Trust ratios: steps in proportion to the weights they change."""

from typing import Any

import jax.numpy as jnp
import optax

from neuron_optax.accumulators import latest
from neuron_optax.axes import FLAX
from neuron_optax.core import scale_per_neuron
from neuron_optax.numerics import require_within
from neuron_optax.projections import skip_nonfinite
from neuron_optax.rates import identity, require_positive
from neuron_optax.statistics import norm, param_norm, trust_ratio
from neuron_optax.strategies.alias import (
    Bias,
    NeuronsLike,
    Scalar,
    adam,
    decoupled_decay,
    heavy_ball,
    require_adam,
    shaped,
)


def neuron_lars(
    learning_rate: optax.ScalarOrSchedule,
    trust_coefficient: Scalar = 0.001,
    eps: Scalar = 0.0,
    momentum: Scalar = 0.9,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    nesterov: bool = False,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""LARS with one trust ratio per neuron instead of one per layer.

    .. math::
      u = g + \lambda w, \qquad
      r_i = c\, \lVert w_i \rVert / (\lVert u_i \rVert + \epsilon), \qquad
      M_t = \mu M_{t-1} + \eta\, r\, u, \qquad \Delta_t = -M_t

    with :math:`r_i = 1` where one of the norms is zero: a neuron of zero weights takes
    a step that the coefficient does not make small.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      trust_coefficient: :math:`c`, without unit.
      eps: :math:`\epsilon \ge 0`, in units of the gradient.
      momentum: :math:`\mu`, in ``[0, 1)``.
      weight_decay: :math:`\lambda`, in units of the gradient over the parameter.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      nesterov: step by :math:`\eta r u + \mu M_t` in place of :math:`M_t`.
      neurons: the axes that index the neurons, by leaf. Under ``PER_LAYER`` it is
        ``optax.lars``.
      bias: whose factor a bias uses, see `scale_per_neuron`. With its own, each entry
        of a bias is a neuron and moves by a share of itself, as under ``PER_LAYER``
        the whole bias does; ``"kernel"`` lets it move with its neuron.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; the memory of its `NeuronState` is the trust ratio.
      Its rates: what goes into the momentum is the rate times the gradient.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`; at
        ``update``, if ``params`` is ``None``.

    Note:
      As in LARS, decay is a part of what the ratio is taken of.

    Reference:
      You et al., *LARS* (2017), arXiv:1708.03888, per neuron.

    Example:
      >>> optimizer = neuron_lars(1.0, trust_coefficient=0.5)
      >>> kernel = jnp.array([[3.0, 0.0], [4.0, 2.0]])  # norms 5 and 2
      >>> grads = jnp.array([[0.0, 1.0], [0.1, 0.0]])
      >>> optimizer.update(grads, optimizer.init(kernel), kernel)[0].tolist()
      [[0.0, -1.0], [-2.5, 0.0]]
    """
    require_positive("trust_coefficient", trust_coefficient)
    require_within("eps", eps, 0)

    def ratio(update, param, fan_in):
        weight, size = param_norm(update, param, fan_in), norm(update, None, fan_in)
        defined = (weight > 0) & (size > 0)
        trusted = trust_coefficient * weight / (jnp.where(defined, size, 1.0) + eps)
        return jnp.where(defined, trusted, 1.0)

    scaled = scale_per_neuron(
        ratio,
        latest(),
        shaped(identity(), low, high, redistribute),
        neurons=neurons,
        bias=bias,
    )
    step = optax.chain(
        decoupled_decay(weight_decay, weight_decay_mask),
        scaled,
        optax.scale_by_learning_rate(learning_rate),
        heavy_ball(momentum, nesterov),
    )
    return skip_nonfinite(step, neurons=neurons)


def neuron_lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""LAMB with one trust ratio per neuron instead of one per layer.

    .. math::
      u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w, \qquad
      \Delta_i = -\eta\, u_i\, \lVert w_i \rVert / \lVert u_i \rVert

    with the ratio 1 where one of the norms is zero.

    Args:
      learning_rate: :math:`\eta`, without unit, a share of the weights; scalar or
        schedule.
      b1: decay of Adam's first moment, in ``[0, 1)``.
      b2: decay of Adam's second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt{\hat v}`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, in units of one over the parameter.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the axes that index the neurons, by leaf. Under ``PER_LAYER`` it is
        ``optax.lamb``.
      bias: whose factor a bias uses, see `scale_per_neuron`. With its own, each entry
        of a bias is a neuron and moves by a share of itself, as under ``PER_LAYER``
        the whole bias does; ``"kernel"`` lets it move with its neuron.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; the memory of its `NeuronState` is the trust ratio.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`; at
        ``update``, if ``params`` is ``None``.

    Note:
      As in LAMB, decay is a part of what the ratio is taken of.

    Reference:
      You et al., *LAMB* (2019), arXiv:1904.00962, Algorithm 2, per neuron.

    Example:
      >>> optimizer = neuron_lamb(0.1)
      >>> kernel = jnp.array([[3.0], [4.0]])  # one neuron of norm 5
      >>> update, _ = optimizer.update(kernel, optimizer.init(kernel), kernel)
      >>> round(float(jnp.linalg.norm(update)), 4)
      0.5
    """
    require_adam(b1, b2, eps)
    scaled = scale_per_neuron(
        trust_ratio,
        latest(),
        shaped(identity(), low, high, redistribute),
        neurons=neurons,
        bias=bias,
    )
    step = optax.chain(
        adam(b1, b2, eps),
        decoupled_decay(weight_decay, weight_decay_mask),
        scaled,
        optax.scale_by_learning_rate(learning_rate),
    )
    return skip_nonfinite(step, neurons=neurons)
