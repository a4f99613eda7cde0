"""Changes of an update per neuron that remember nothing; chain them anywhere.

They find the neurons as the strategies do. A leaf of one entry per neuron (a bias) is
each entry on its own; give it one neuron by ``FLAX.override({"bias": Neurons(())})``.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.axes import FLAX, Layout, MatrixAxes, Neurons
from neuron_optax.pieces import mean_over
from neuron_optax.projections.stateless import stateless
from neuron_optax.rates import require_positive
from neuron_optax.statistics import norm, param_norm


def clip_per_neuron(
    clipping: float | Array,
    eps: float | Array = 1e-3,
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""Clip each neuron's update to a share of its weights: adaptive gradient clipping.

    .. math::
      u_i = g_i \min\Big(1,\; c\,
      \frac{\max(\lVert w_i \rVert_2, \epsilon)}{\lVert g_i \rVert_2}\Big)

    Args:
      clipping: :math:`c > 0`, in units of the update over those of the parameter.
      eps: :math:`\epsilon > 0`, the least norm that weights count with, in units of the
        parameter; lets neurons of zero weights move.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation without state. An update whose square overflows becomes 0, or NaN
      where it is infinite.

    Raises:
      ValueError: for numbers that are not positive; as `scale_per_neuron`; at
        ``update``, naming the leaf, if ``params`` is ``None``.

    Note:
      ``optax.adaptive_grad_clip`` guesses the axes from the rank, and clips a bias as a
      whole.

    Reference:
      Brock et al., *NFNet* (2021), arXiv:2102.06171, equation 3.

    Example:
      >>> optimizer = clip_per_neuron(0.1)
      >>> kernel = jnp.array([[3.0, 0.6], [4.0, 0.8]])  # two neurons, norms 5 and 1
      >>> update, _ = optimizer.update(jnp.ones((2, 2)), optimizer.init(kernel), kernel)
      >>> jnp.linalg.norm(update, axis=0).round(3).tolist()
      [0.5, 0.10000000149011612]
    """
    require_positive("clipping", clipping)
    require_positive("eps", eps)

    def clip(update, param, of):
        limit = clipping * jnp.maximum(param_norm(update, param, of.reduced), eps)
        size = norm(update, None, of.reduced)
        loud = size > limit
        return update * jnp.where(loud, limit / jnp.where(loud, size, 1.0), 1.0)

    return stateless(clip, neurons)


def centralize_per_neuron(
    *, neurons: Layout | Neurons | MatrixAxes = FLAX
) -> optax.GradientTransformationExtraArgs:
    r"""Subtract from each neuron's update its mean over the fan-in.

    .. math:: u_i = g_i - \tfrac1k \textstyle\sum_j g_{ij}

    Args:
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation without state. Leaves without fan-in (biases) stay as they are;
      a neuron with a fan-in of one gets 0.

    Raises:
      ValueError: as `scale_per_neuron`.

    Note:
      ``optax.centralize`` averages over all axes but the first, which of a Flax kernel
      are the outputs.

    Reference:
      Yong et al., *Gradient Centralization* (2020), arXiv:2004.01461, equation 1.

    Example:
      >>> optimizer = centralize_per_neuron()
      >>> kernel = jnp.array([[3.0, 1.0], [4.0, 2.0]])
      >>> optimizer.update(kernel, optimizer.init(kernel))[0].tolist()
      [[-0.5, -0.5], [0.5, 0.5]]
    """

    def centralize(update, param, of):
        if not of.fan_in:
            return update
        return update - mean_over(update, of.reduced)

    return stateless(centralize, neurons)


def normalize_per_neuron(
    eps: float | Array = 1e-8, *, neurons: Layout | Neurons | MatrixAxes = FLAX
) -> optax.GradientTransformationExtraArgs:
    r"""Divide each neuron's update by its norm.

    .. math:: u_i = g_i / \max(\lVert g_i \rVert_2, \epsilon)

    Args:
      eps: :math:`\epsilon > 0`, in units of the update.
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation without state; updates are without unit. An entry that is a
      neuron of its own (of a bias) keeps its sign alone. A neuron whose square
      overflows or underflows becomes 0.

    Raises:
      ValueError: if ``eps`` is a number that is not positive; as `scale_per_neuron`.

    Reference:
      Yu et al., *Block-normalized gradient* (2017), arXiv:1707.04822, with one neuron
      as a block.

    Example:
      >>> optimizer = normalize_per_neuron()
      >>> kernel = jnp.array([[3.0, 0.0], [4.0, 0.0]])
      >>> optimizer.update(kernel, optimizer.init(kernel))[0].round(3).tolist()
      [[0.6000000238418579, 0.0], [0.800000011920929, 0.0]]
    """
    require_positive("eps", eps)
    return stateless(
        lambda update, param, of: (
            update / jnp.maximum(norm(update, None, of.reduced), eps)
        ),
        neurons,
    )
