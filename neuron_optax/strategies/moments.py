"""Adam with a second moment shared by some entries of a layer."""

from collections.abc import Callable
from typing import Any

import optax

from neuron_optax.accumulators import ema
from neuron_optax.axes import FLAX, SLIM_ADAM, as_layout
from neuron_optax.boxes import is_box, unbox
from neuron_optax.core import scale_per_neuron
from neuron_optax.rates import inverse_root
from neuron_optax.statistics import mean_square, sum_square
from neuron_optax.strategies.alias import (
    Bias,
    NeuronsLike,
    Scalar,
    correct_late,
    descend,
    descend_then_decay,
    require_adam,
    shaped,
)
from neuron_optax.trees import map_named


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
      The default layout has one number per neuron in every kernel. The authors'
      partition, with one per head in queries and keys, is ``neurons=ADAM_MINI``.

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


def slim_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    neurons: NeuronsLike = SLIM_ADAM,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with one second moment for the entries along any axes of a leaf.

    The formula is that of `adam_mini`; :math:`v` is averaged over the axes that the
    layout does not keep, which may be the fan-out:
    ``FLAX.override({"Dense_0/kernel": Neurons(output=(0,))})`` keeps one number per
    input of that layer.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      b1: decay of the first moment, in ``[0, 1)``.
      b2: decay of the second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt{\hat v}`, in units of the gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``); ``None`` for leaves of
        rank 2 and more, stacks not counted.
      neurons: the axes to keep, by leaf; the others share one number.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; its `NeuronState` holds :math:`v` with shared axes of length 1.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Reference:
      Kalra et al., *SlimAdam* (2025), https://github.com/dayal-kalra/low-memory-adam;
      its rules for the axes are the layout ``SLIM_ADAM``.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2))}}
      >>> slim_adam(1e-3).init(params)[0].memory["Dense_0"]["kernel"].shape
      (3, 1)
    """
    mask = _matrices(neurons) if weight_decay_mask is None else weight_decay_mask
    return adam_mini(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay,
        mask,
        neurons=neurons,
        bias=bias,
        low=low,
        high=high,
        redistribute=redistribute,
    )


def subset_norm_adam(
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
    r"""Adam that divides by the norm of a subset's gradients, not their mean square.

    With :math:`g_t` the gradient of subset :math:`i`,

    .. math::
      v_t = \beta_2 v_{t-1} + (1-\beta_2)\, \lVert g_t \rVert^2, \qquad
      w' = w - \eta \sqrt{1 - \beta_2^t}\, \hat m_t / (\sqrt{v_t} + \epsilon), \qquad
      w \leftarrow (1 - \eta \lambda)\, w'

    Steps are smaller than those of `adam_mini` by the root of the size of a subset: the
    authors' learning rates are ten times Adam's.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      b1: decay of the first moment, in ``[0, 1)``.
      b2: decay of the second moment, in ``[0, 1)``.
      eps: added to :math:`\sqrt v` before its bias is corrected, in units of the
        gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate; it shrinks
        the weights after the step.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      neurons: the subsets, by leaf: neurons, or parts of a neuron's fan-in as
        ``Neurons(output=(0, 1), blocks=((0, 4),))``, four for each neuron of a kernel.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; its `NeuronState` holds :math:`v`, one number for each subset. The root
      of the bias correction is not in its rate.
      Its rates: the step is the rate times the momentum times sqrt(1 - b2**t).

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.

    Reference:
      Nguyen and Nguyen, *Subset-Norm and Subspace-Momentum* (2024), arXiv:2411.07120;
      AdamWSN of https://github.com/timmytonga/sn-sm.

    Example:
      >>> import jax.numpy as jnp
      >>> from neuron_optax import Neurons
      >>> kernel = jnp.ones((6, 2))  # fan-in 6, two neurons
      >>> parts = Neurons(output=(0, 1), blocks=((0, 3),))  # of two entries each
      >>> subset_norm_adam(1e-2, neurons=parts).init(kernel)[0][0][0].memory.shape
      (3, 1, 2)
    """
    require_adam(b1, b2, eps)
    scaled = scale_per_neuron(
        sum_square,
        ema(b2, debias=False),
        shaped(inverse_root(eps), low, high, redistribute),
        neurons=neurons,
        bias=bias,
        direction=optax.ema(b1),
    )
    scaled = optax.chain(scaled, correct_late(b2))
    return descend_then_decay(scaled, learning_rate, weight_decay, weight_decay_mask)


def _matrices(neurons: NeuronsLike) -> Callable[[Any], Any]:
    """Return the mask of what decays in SlimAdam: all that has two axes in a layer."""

    def mask(params):
        axes = as_layout(neurons).resolve(unbox(params))
        rank = lambda of: len(of.shape) - len(of.whole.stack)
        return map_named(
            lambda path, _: path in axes and rank(axes[path]) >= 2,
            params,
            is_leaf=is_box,
        )

    return mask
