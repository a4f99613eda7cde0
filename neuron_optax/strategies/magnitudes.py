"""Muon on the directions of the neurons, Adam on their magnitudes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.axes import FLAX, as_layout, check_numbers, map_axes, unview, view
from neuron_optax.boxes import box_numbers, rebox, unbox
from neuron_optax.numerics import require_within, widen
from neuron_optax.projections import (
    aspect_ratio,
    matrix_shape,
    newton_schulz,
    on_matrices,
    zero_nonfinite,
)
from neuron_optax.statistics import norm
from neuron_optax.strategies.alias import (
    AUXILIARY,
    NeuronsLike,
    Scalar,
    adam,
    at_step,
    decoupled_decay,
    descend,
    matrices_and_rest,
    mean_momentum,
    require_adam,
)
from neuron_optax.trees import cast_like, check_dtypes, check_leaves

LEAST = 1e-12  # norm that a neuron of zero weights counts with


class MuownState(NamedTuple):
    r"""State of the matrices in `muown`.

    Attributes:
      step: number of updates so far, int32.
      magnitude: :math:`\gamma`, one number per neuron, fan-in axes at length 1; 0
        before the first step.
      size: :math:`h`, the norms of the directions, likewise.
      direction: state of the momentum of the directions.
      moments: Adam's state of the magnitudes.
      decay: state of the weight decay.

    Example:
      >>> from neuron_optax import muown
      >>> state = muown(0.1).init({"kernel": jnp.ones((8, 3))})
      >>> optax.tree.get(state, "MuownState").magnitude["kernel"].shape
      (1, 3)
    """

    step: jax.Array
    magnitude: Any
    size: Any
    direction: optax.OptState
    moments: optax.OptState
    decay: optax.OptState


def muown(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.95,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    steps: int | Array = 5,
    auxiliary: str = AUXILIARY,
    neurons: NeuronsLike = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon on what neurons point at, Adam on how large they are; AdamW for the rest.

    Weights are read as :math:`w_i = \gamma_i z_i / h_i`, where :math:`h_i` is
    :math:`\lVert z_i \rVert`. With :math:`n_i = w_i / \gamma_i`,
    :math:`y_i = \langle g_i, n_i \rangle` and :math:`M` the running mean of
    :math:`(\gamma_i / h_i) (g_i - y_i n_i)`,

    .. math::
      z_i = h_i n_i - \eta \sqrt{\max(1, \tfrac mk)}\, \mathrm{NS}(M)_i, \qquad
      \gamma_i \leftarrow (1 - \eta\lambda) (\gamma_i - \eta\, \mathrm{Adam}(y_i)),
      \qquad w_i \leftarrow \gamma_i z_i / h_i

    Nothing may be chained after it: the weights would leave their magnitudes.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      b1: decay of the momentum of the directions, in ``[0, 1)``.
      adam_b1: decay of Adam's first moment, of magnitudes and biases, in ``[0, 1)``.
      adam_b2: decay of Adam's second moment, in ``[0, 1)``.
      eps: added to the root of Adam's second moment, in units of the gradient.
      weight_decay: :math:`\lambda`, multiplied by the learning rate; of matrices the
        magnitudes decay, after their step.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      adam_learning_rate: of the leaves that AdamW trains; ``None`` for the same.
      steps: of the Newton-Schulz iteration.
      auxiliary: leaves whose path has this pattern in it (``re.search``) are trained by
        AdamW even if they are matrices: embeddings and the head, whose rows are tokens.
      neurons: the axes that index the neurons, by leaf. Queries, keys and values are
        one matrix for all heads, a convolution is one row per output channel.

    Returns:
      A partition of the leaves; that of the matrices has a `MuownState`.
      Its rates: keeps no rates; an Adam moves the neurons' magnitudes.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`; at
        ``update``, if ``params`` is ``None``.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Note:
      It changes the coordinates of the weights, which does not fit `scale_per_neuron`:
      it is a transformation of its own, without factors to bound or redistribute. A
      neuron of zero weights counts with a norm of 1e-12, which is zero in float16:
      there it never moves. A gradient that is not finite counts as zero.

    Reference:
      *Muown* (2026), arXiv:2605.10797, as coded in
      https://github.com/NVIDIA-NeMo/Emerging-Optimizers.

    Example:
      >>> params = {"kernel": jnp.array([[3.0], [4.0]])}  # one neuron of magnitude 5
      >>> optimizer = muown(0.1)
      >>> state = optimizer.init(params)
      >>> _, state = optimizer.update(params, state, params)
      >>> round(optax.tree.get(state, "magnitude")["kernel"].item(), 3)
      4.9
    """
    require_within("steps", steps, 1)
    require_adam(adam_b1, adam_b2, eps)
    layout = as_layout(neurons)
    momentum = mean_momentum(b1)
    moments = adam(adam_b1, adam_b2, eps)
    decay = decoupled_decay(weight_decay, weight_decay_mask)

    def sizes(axes, tree):
        size = lambda of, w: jnp.maximum(norm(widen(w), None, of.fan_in), LEAST)
        return map_axes(size, axes, tree)

    def orthogonal(of, m):
        turned = on_matrices(lambda x: newton_schulz(x, steps), of, m)
        return aspect_ratio(*matrix_shape(of)) * turned

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        axes = layout.resolve(plain)
        blank = jax.eval_shape(lambda p: sizes(axes, view(axes, p)), plain)
        names = lambda path: axes[path].names
        zeros = lambda: box_numbers(jax.tree.map(jnp.zeros_like, blank), params, names)
        return MuownState(
            step=jnp.zeros([], jnp.int32),
            magnitude=zeros(),
            size=zeros(),
            direction=momentum.init(params),
            moments=moments.init(zeros()),
            decay=decay.init(zeros()),
        )

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("muown needs the weights: pass params to update()")
        plain, weights = unbox(updates), unbox(params)
        magnitude, size = unbox(state.magnitude), unbox(state.size)
        check_leaves(plain, magnitude, weights)
        axes = layout.resolve(plain)
        check_numbers(axes, magnitude, "the state")

        grads, weights = (jax.tree.map(widen, view(axes, t)) for t in (plain, weights))
        first = lambda old, now: jnp.where(state.step == 0, now, old)
        norms = sizes(axes, weights)
        magnitude, size = (jax.tree.map(first, t, norms) for t in (magnitude, size))
        eta = at_step(learning_rate, state.step)
        away_from_zero = lambda c: jnp.where(jnp.abs(c) < LEAST, LEAST, c)
        magnitude = jax.tree.map(away_from_zero, magnitude)
        unit = jax.tree.map(jnp.divide, weights, magnitude)
        product = jax.tree.map(lambda g, n: jnp.real(jnp.conj(n) * g), grads, unit)
        inner = lambda of, p: jnp.sum(p, axis=of.fan_in, keepdims=True)
        along = map_axes(inner, axes, product)
        across = jax.tree.map(lambda g, y, n: g - y * n, grads, along, unit)
        across = jax.tree.map(lambda c, h, q: c / h * q, magnitude, size, across)

        across = rebox(unview(axes, across), updates)
        moved, direction = momentum.update(across, state.direction)
        turned = map_axes(orthogonal, axes, view(axes, unbox(moved)))
        turned = jax.tree.map(lambda h, n, o: h * n - eta * o, size, unit, turned)
        size = sizes(axes, turned)

        grown, adams = moments.update(rebox(along, state.magnitude), state.moments)
        magnitude = jax.tree.map(lambda c, s: c - eta * s, magnitude, unbox(grown))
        boxed = rebox(magnitude, state.magnitude)
        lost, decays = decay.update(optax.tree.zeros_like(boxed), state.decay, boxed)
        magnitude = jax.tree.map(lambda c, d: c - eta * d, magnitude, unbox(lost))

        new = jax.tree.map(lambda c, z, h: c * z / h, magnitude, turned, size)
        new = jax.tree.map(jnp.subtract, new, weights)
        after = MuownState(
            step=jnp.asarray(optax.safe_increment(state.step)),
            magnitude=rebox(magnitude, state.magnitude),
            size=rebox(size, state.size),
            direction=direction,
            moments=adams,
            decay=decays,
        )
        new = rebox(cast_like(unview(axes, new), plain), updates)
        return new, cast_like(after, state)

    polar = optax.GradientTransformationExtraArgs(init, update)
    other = learning_rate if adam_learning_rate is None else adam_learning_rate
    return matrices_and_rest(
        optax.chain(zero_nonfinite(neurons=neurons), polar),
        descend(adam(adam_b1, adam_b2, eps), other, weight_decay, weight_decay_mask),
        neurons,
        auxiliary,
    )
