"""What the aliases share: bounds on the factor, decoupled decay, the learning rate."""

from typing import Literal

import optax
from jaxtyping import Array

from neuron_optax.accumulators import require_decay
from neuron_optax.axes import Layout, MatrixAxes, Neurons
from neuron_optax.rates import Rate, bounded, redistributed, require_positive

Scalar = float | Array
NeuronsLike = Layout | Neurons | MatrixAxes
Bias = Literal["own", "kernel"]


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
