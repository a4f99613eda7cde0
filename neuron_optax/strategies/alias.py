"""What the aliases share: bounds on the factor, decay, the learning rate, matrices."""

import re
from collections.abc import Hashable
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.accumulators import require_decay
from neuron_optax.axes import Layout, MatrixAxes, Neurons, as_layout
from neuron_optax.boxes import is_box, unbox
from neuron_optax.numerics import widen
from neuron_optax.projections import is_matrix, skip_nonfinite
from neuron_optax.rates import Rate, bounded, redistributed, require_positive
from neuron_optax.trees import map_named

Scalar = float | Array
NeuronsLike = Layout | Neurons | MatrixAxes
Bias = Literal["own", "kernel"]
AUXILIARY = r"(?i)embed|(^|/)(lm_)?head(/|$)"  # matrices whose rows are tokens


def shaped(rate: Rate, low, high, redistribute: bool) -> Rate:
    """Bound a rate, redistributed first if so asked."""
    return bounded(redistributed(rate) if redistribute else rate, low, high)


def decoupled_decay(weight_decay, mask) -> optax.GradientTransformation:
    """Return decoupled decay; without any, nothing asks for the params."""
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask)


def descend(scaled, learning_rate, weight_decay, mask):
    """Turn what is scaled into a step against the gradient, with decoupled decay."""
    return optax.chain(
        scaled,
        decoupled_decay(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def descend_then_decay(scaled, learning_rate, weight_decay, mask):
    """Do as `descend`, but what decays are the weights after the step."""
    step = optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))
    decay = optax.chain(
        decoupled_decay(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )

    def update(updates, state, params=None, **extra_args):
        moved = None if params is None else optax.apply_updates(params, updates)
        zeros = optax.tree.zeros_like(updates)
        decayed, state = decay.update(zeros, state, moved, **extra_args)
        return optax.tree.add(updates, decayed), state

    then = optax.GradientTransformationExtraArgs(decay.init, update)
    return optax.chain(step, then)


def times(rate: optax.ScalarOrSchedule, factor: Scalar) -> optax.ScalarOrSchedule:
    """Return a multiple of a learning rate or of its schedule."""
    if callable(rate):
        return lambda step: jnp.asarray(rate(step)) * factor
    return rate * factor


def at_step(rate: optax.ScalarOrSchedule, step: Array) -> Any:
    """Return a learning rate, of a schedule that of the step."""
    return rate(step) if callable(rate) else rate


def mean_momentum(b1: Scalar, nesterov: bool = False) -> optax.GradientTransformation:
    """Return the running mean of the gradients, or Nesterov's look ahead of it."""
    require_decay("b1", b1)
    return optax.chain(optax.scale(1 - b1), optax.trace(b1, nesterov))


def correct_late(b2: Scalar) -> optax.GradientTransformation:
    r"""Scale by :math:`\sqrt{1 - \beta_2^t}`, where eps is added before correcting."""
    return optax.scale_by_schedule(lambda step: jnp.sqrt(1 - widen(b2) ** (step + 1)))


def matrices_and_rest(matrices, rest, neurons: NeuronsLike, auxiliary: str):
    """Give matrices one transformation, other leaves and those named so another."""
    layout = as_layout(neurons)
    try:
        re.compile(auxiliary)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"auxiliary must be a regular expression, got {auxiliary!r}"
        ) from error

    def labels(params):
        axes = layout.resolve(unbox(params))

        def label(path, _):
            known = path in axes and not re.search(auxiliary, path)
            return "matrix" if known and is_matrix(axes[path]) else "rest"

        return map_named(label, params, is_leaf=is_box)

    both: dict[Hashable, optax.GradientTransformation] = {
        "matrix": matrices,
        "rest": skip_nonfinite(rest, neurons=neurons),
    }
    return optax.partition(both, labels)


def heavy_ball(
    momentum: Scalar, nesterov: bool = False
) -> optax.GradientTransformation:
    """Return momentum; without any, nothing is remembered."""
    require_decay("momentum", momentum)
    if isinstance(momentum, int | float) and momentum == 0:
        return optax.identity()
    return optax.trace(momentum, nesterov)


def adam(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformation:
    """Return Adam with a finite derivative at zero gradients.

    Its ``eps_root`` of 1e-30 counts where both gradient and ``eps`` are below 1e-14.
    """
    return optax.scale_by_adam(b1, b2, eps, eps_root=1e-30)


def require_adam(b1, b2, eps):
    """Raise ``ValueError`` for hyperparameters of Adam out of range."""
    require_decay("b1", b1)
    require_decay("b2", b2)
    require_positive("eps", eps)
