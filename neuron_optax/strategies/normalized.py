"""Normalised SGD: steps of one size for every neuron, whatever its gradient."""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from neuron_optax.accumulators import ema, latest, require_decay
from neuron_optax.axes import FLAX, as_layout, map_axes, unview, view
from neuron_optax.boxes import box_numbers, rebox, unbox
from neuron_optax.core import scale_per_neuron
from neuron_optax.numerics import widen
from neuron_optax.pieces import require_whole
from neuron_optax.projections import (
    aspect_ratio,
    project_steps,
    projected,
    scale_by_shape,
    skip_nonfinite,
)
from neuron_optax.rates import power, reciprocal
from neuron_optax.statistics import norm as l2
from neuron_optax.statistics import rms, sum_square
from neuron_optax.strategies.alias import (
    Bias,
    NeuronsLike,
    Scalar,
    descend,
    heavy_ball,
    shaped,
)
from neuron_optax.trees import cast_like, check_dtypes, check_leaves

SHAPE_FACTORS = {
    "none": None,
    "aspect": aspect_ratio,
    "fan_in": lambda outputs, inputs: 1.0 / math.sqrt(max(inputs, 1)),
}


def neuron_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Scalar = 0.9,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    nesterov: bool = False,
    norm: Literal["rms", "l2"] = "rms",
    shape_factor: Literal["none", "aspect", "fan_in"] = "none",
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum whose update has one size for every neuron.

    .. math::
      M_t = \mu M_{t-1} + g_t, \qquad
      \Delta_i = -\eta\, \big( f\, M_i / \max(\lVert M_i \rVert, \epsilon)
      + \lambda w_i \big)

    It holds no second moment. The published variants are choices of its options:

    - SCALE: ``norm="rms"``; momentum 0 but for the head.
    - RMNP: ``norm="l2", nesterov=True, shape_factor="aspect"``.
    - Scion's RowNorm: ``norm="l2", shape_factor="fan_in"``.
    - Scion's ColNorm: ``norm="rms", neurons=Neurons(output=(0,))`` for kernels (in,
      out), which normalises over the fan-out.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      momentum: :math:`\mu`, in ``[0, 1)``; 0 for none.
      eps: :math:`\epsilon`, the least norm to divide by, in units of the gradient.
      weight_decay: :math:`\lambda`, multiplied by the base learning rate.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      nesterov: normalise :math:`g_t + \mu M_t` in place of :math:`M_t`.
      norm: ``"rms"``, the root mean square over the fan-in, or ``"l2"``.
      shape_factor: :math:`f`, for a matrix of :math:`m` neurons with a fan-in of
        :math:`k`; ``"aspect"`` for :math:`\sqrt{\max(1, m/k)}`, ``"fan_in"`` for
        :math:`1/\sqrt k`; 1 for biases.
      neurons: the axes that index the neurons, by leaf. An entry that is a neuron of
        its own (of a bias) keeps its sign alone.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; the memory of its `NeuronState` is the norm.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a shape factor of a leaf that may
        be a piece.

    Note:
      The authors train biases, and SCALE and RMNP embeddings, with AdamW: use
      ``optax.partition``.

    Reference:
      Glentis et al., *SCALE* (2025), arXiv:2506.16659; *RMNP*,
      https://github.com/Dominator-Index/RMNP; Pethick et al., *Scion* (2025),
      arXiv:2502.07529.

    Example:
      >>> optimizer = neuron_sgd(0.1)
      >>> gradient = jnp.array([[0.01, 10.0], [0.01, 10.0]])  # a quiet and a loud one
      >>> update, _ = optimizer.update(gradient, optimizer.init(gradient))
      >>> [round(float(u), 4) for u in update[0]]
      [-0.1, -0.1]
    """
    if norm not in ("rms", "l2"):
        raise ValueError(f"norm must be 'rms' or 'l2', got {norm!r}")
    if shape_factor not in SHAPE_FACTORS:
        raise ValueError(
            f"shape_factor must be one of {list(SHAPE_FACTORS)}, got {shape_factor!r}"
        )
    factor = SHAPE_FACTORS[shape_factor]
    normalized = scale_per_neuron(
        rms if norm == "rms" else l2,
        latest(),
        shaped(reciprocal(eps), low, high, redistribute),
        neurons=neurons,
        bias=bias,
    )
    scaled = optax.chain(
        heavy_ball(momentum, nesterov),
        normalized,
        scale_by_shape(factor, neurons=neurons) if factor else optax.identity(),
    )
    scaled = skip_nonfinite(scaled, neurons=neurons)
    return descend(scaled, learning_rate, weight_decay, weight_decay_mask)


def nero(
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar = 0.999,
    *,
    neurons: NeuronsLike = FLAX,
    bias: Bias = "own",
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Relative updates per neuron, on weights of mean zero and norm one.

    .. math::
      v_t = \beta v_{t-1} + (1 - \beta) \lVert g_t \rVert^2, \qquad
      w \leftarrow P\big( w - \eta\, \sigma\, g_t / \sqrt{\hat v_t} \big)

    with :math:`P` of `project_neurons` and :math:`\sigma` the mean norm that the
    neurons of the leaf had at the first step, after projection: 1, or of a bias its
    mean size, or 0.01 if that is 0.

    The projection is the last member of the chain. Nothing may be chained after it, or
    the weights leave the surface. Start from ``project_neurons(params)``; other weights
    are projected by the first step.

    Args:
      learning_rate: :math:`\eta`, without unit, a share of the weights; scalar or
        schedule.
      decay: :math:`\beta`, in ``[0, 1)``.
      neurons: the axes that index the neurons, by leaf.
      bias: whose factor a bias uses, see `scale_per_neuron`.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain; its `NeuronState` holds :math:`v` with fan-in axes of length 1. A neuron
      without gradient so far has the factor 0, one of a fan-in of one is not projected,
      and one whose weights are all equal becomes zero.
      Its rates: the step is the rate times gradient and the layer's first norm,
      projected.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`; at
        ``update``, if ``params`` is ``None``.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Note:
      There is no weight decay: the norm is fixed. No epsilon is added anywhere.

    Reference:
      Liu et al., *Nero* (2021), arXiv:2102.07227, Algorithm 1.

    Example:
      >>> from neuron_optax import project_neurons
      >>> kernel = project_neurons(jnp.array([[1.0], [0.0], [0.5]]))
      >>> optimizer = nero(0.01)
      >>> update, _ = optimizer.update(jnp.ones((3, 1)), optimizer.init(kernel), kernel)
      >>> round(float(jnp.linalg.norm(kernel + update)), 4)
      1.0
    """
    require_decay("decay", decay)
    relative = scale_per_neuron(
        sum_square,
        ema(decay),
        shaped(power(-0.5), low, high, redistribute),
        neurons=neurons,
        bias=bias,
    )
    return optax.chain(
        relative,
        scale_by_initial_norm(neurons=neurons),
        optax.scale_by_learning_rate(learning_rate),
        project_steps(neurons=neurons),
    )


class InitialNormState(NamedTuple):
    """State of `scale_by_initial_norm`.

    Attributes:
      size: mean norm of a layer's neurons at the start, 0 before the first step; axes
        but stacks at length 1.
    """

    size: Any


def scale_by_initial_norm(
    *, neurons: NeuronsLike = FLAX
) -> optax.GradientTransformationExtraArgs:
    r"""Scale by the mean norm that a layer's projected neurons had at the first step.

    Args:
      neurons: the axes that index the neurons, by leaf.

    Returns:
      A transformation whose state holds one number for each layer, 0.01 for 0.

    Raises:
      TypeError: at ``init``, for a leaf that is not floating or complex.
      ValueError: as `scale_per_neuron`; at ``update``, if ``params`` is ``None``.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Example:
      >>> bias = jnp.array([3.0, -1.0])
      >>> optimizer = scale_by_initial_norm()
      >>> optimizer.update(jnp.ones(2), optimizer.init(bias), bias)[0].tolist()
      [2.0, 2.0]
    """
    layout = as_layout(neurons)

    def measure(of, weights):
        require_whole(weights, "its layer")
        norms = l2(projected(widen(weights), of), None, of.fan_in)
        count = math.prod(of.view[axis] for axis in of.output)
        size = jnp.sum(norms, axis=of.output, keepdims=True) / max(count, 1)
        return jnp.where(size == 0, 0.01, size)

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        axes = layout.resolve(plain)
        measured = lambda weights: map_axes(measure, axes, view(axes, weights))
        sizes = jax.tree.map(jnp.zeros_like, jax.eval_shape(measured, plain))
        names = lambda path: axes[path].layer.names
        return InitialNormState(box_numbers(sizes, params, names))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "scale_by_initial_norm needs the weights: pass params to update()"
            )
        plain, size, weights = unbox(updates), unbox(state.size), unbox(params)
        check_leaves(plain, size, weights)
        axes = layout.resolve(plain)
        size = map_axes(
            lambda of, s, w: _first(measure, of, s, w), axes, size, view(axes, weights)
        )
        scaled = jax.tree.map(jnp.multiply, size, view(axes, plain))
        scaled = rebox(cast_like(unview(axes, scaled), plain), updates)
        return scaled, InitialNormState(rebox(size, state.size))

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnums=(0, 1))  # eager steps compile it once
def _first(measure, of, size, weights):
    """Measure what has no size yet; later steps do not read the weights for it."""
    unset = size == 0
    first = lambda: jnp.where(unset, measure(of, weights), size).astype(size.dtype)
    return jax.lax.cond(jnp.any(unset), first, lambda: size)
