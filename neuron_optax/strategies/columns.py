"""Muon's directions, with one number per input of a layer: columns, not neurons."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.accumulators import require_decay
from neuron_optax.axes import FLAX, as_layout, check_numbers, map_axes
from neuron_optax.boxes import box_numbers, rebox, unbox
from neuron_optax.core import NeuronState
from neuron_optax.numerics import require_within, root, widen
from neuron_optax.projections import (
    matrix_shape,
    newton_schulz,
    on_matrices,
    skip_nonfinite,
)
from neuron_optax.rates import require_positive
from neuron_optax.statistics import sum_square
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


def namo_d(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.95,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    clamp: Scalar = 0.75,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    nesterov: bool = True,
    steps: int | Array = 5,
    auxiliary: str = AUXILIARY,
    neurons: NeuronsLike = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon with one adaptive rate per input of a matrix; AdamW for all but matrices.

    With :math:`g_j` the gradients of all that leaves input :math:`j` (a column of the
    matrix that has a row for each neuron), :math:`U` the momentum of `scale_by_normuon`
    and :math:`\alpha_t = \eta \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`,

    .. math::
      V_j = \beta_2 V_j + (1 - \beta_2) \lVert g_j \rVert^2, \qquad
      c_j = \lVert U_j \rVert / (\sqrt{V_j} + \epsilon) \text{ within }
      [\gamma \bar c, \bar c / \gamma], \qquad
      w_j \leftarrow (1 - \lambda \min(\alpha_t c_j, 1))\, w_j
      - \min(0.2 \sqrt{\max(m, k)}\, \alpha_t c_j, 1)\, \mathrm{NS}(U)_j

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      b1: :math:`\beta_1`, decay of the momentum, in ``[0, 1)``.
      b2: :math:`\beta_2`, decay of the second moment, in ``[0, 1)``.
      eps: :math:`\epsilon`, in units of the gradient, positive.
      clamp: :math:`\gamma`, in ``(0, 1]``, without unit.
      weight_decay: :math:`\lambda`, multiplied by the rate of the column.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      adam_learning_rate: of the leaves that AdamW trains; ``None`` for the same.
      adam_b1: decay of its first moment, in ``[0, 1)``.
      adam_b2: decay of its second moment, in ``[0, 1)``.
      adam_eps: added to the root of its second moment, in units of the gradient.
      nesterov: Nesterov's momentum.
      steps: of the Newton-Schulz iteration.
      auxiliary: leaves whose path has this pattern in it (``re.search``) are trained by
        AdamW even if they are matrices: embeddings and the head, whose rows are tokens.
      neurons: the axes that index the neurons, by leaf. Queries, keys and values are
        one matrix for all heads, a convolution is one row per output channel.

    Returns:
      A partition of the leaves; the `NeuronState` of the matrices holds :math:`V` as
      its memory and :math:`c` as its rate, with the axes of the neurons at length 1.
      Its rates: the rate is that of an input of a matrix, and is clamped; see
      namo_d.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`; at
        ``update``, if ``params`` is ``None``.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Note:
      Two statistics and their mean over a layer do not fit `scale_per_neuron`: it is a
      transformation of its own, and its factors are bounded by :math:`\gamma` alone.

    Reference:
      NAMO-D of https://github.com/minxin-zhg/namo, as coded.

    Example:
      >>> kernel = jnp.ones((3, 2))  # three inputs, two neurons
      >>> state = namo_d(0.01).init({"kernel": kernel})
      >>> optax.tree.get(state, "NeuronState").memory["kernel"].shape
      (3, 1)
    """
    require_decay("b2", b2)
    require_positive("eps", eps)
    require_positive("clamp", clamp)
    require_within("clamp", clamp, 0, 1)
    require_within("steps", steps, 1)
    require_adam(adam_b1, adam_b2, adam_eps)
    layout = as_layout(neurons)
    momentum = mean_momentum(b1, nesterov)
    decay = decoupled_decay(weight_decay, weight_decay_mask)

    def resolve(tree):  # blocks of neurons have the same inputs
        return {path: of.whole.swapped for path, of in layout.resolve(tree).items()}

    def squares(axes, updates):
        column = lambda of, u: sum_square(widen(u), None, of.fan_in)
        return map_axes(column, axes, updates)

    def clamped(of, u, v):
        column = root(sum_square(u, None, of.fan_in)) / (root(v) + eps)
        mean = jnp.mean(column, axis=of.output, keepdims=True)
        return jnp.clip(column, clamp * mean, mean / clamp)

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        axes = resolve(plain)
        blank = jax.eval_shape(lambda p: squares(axes, p), plain)
        names = lambda path: axes[path].names
        return NeuronState(
            step=jnp.zeros([], jnp.int32),
            memory=box_numbers(jax.tree.map(jnp.zeros_like, blank), params, names),
            rate=box_numbers(jax.tree.map(jnp.ones_like, blank), params, names),
            direction=(momentum.init(params), decay.init(params)),
        )

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("namo_d needs the weights: pass params to update()")
        plain, memory = unbox(updates), unbox(state.memory)
        check_leaves(plain, memory, unbox(params))
        axes = resolve(plain)
        check_numbers(axes, memory, "the state")

        step = jnp.asarray(optax.safe_increment(state.step))
        eta = at_step(learning_rate, state.step)
        alpha = eta * jnp.sqrt(1 - widen(b2) ** step) / (1 - widen(b1) ** step)
        now = jax.tree.map(
            lambda v, s: b2 * v + (1 - b2) * s, memory, squares(axes, plain)
        )
        memory = jax.tree.map(
            lambda v, old: jnp.where(jnp.isfinite(v), v, old), now, memory
        )
        moved, trace = momentum.update(updates, state.direction[0])
        moved = jax.tree.map(widen, unbox(moved))
        rate = map_axes(clamped, axes, moved, memory)
        zeros = optax.tree.zeros_like(updates)
        decayed, lost = decay.update(zeros, state.direction[1], params)

        def stepped(of, c, u, w):
            size = 0.2 * math.sqrt(max(matrix_shape(of))) * alpha * c
            turned = on_matrices(lambda m: newton_schulz(m, steps), of, u)
            return -(jnp.minimum(alpha * c, 1) * w + jnp.minimum(size, 1) * turned)

        new = map_axes(stepped, axes, rate, moved, unbox(decayed))
        new = rebox(cast_like(new, plain), updates)
        memory, rate = rebox(memory, state.memory), rebox(rate, state.rate)
        return new, cast_like(NeuronState(step, memory, rate, (trace, lost)), state)

    columns = optax.GradientTransformationExtraArgs(init, update)
    other = learning_rate if adam_learning_rate is None else adam_learning_rate
    decays = weight_decay, weight_decay_mask
    return matrices_and_rest(
        skip_nonfinite(columns, neurons=neurons),
        descend(adam(adam_b1, adam_b2, adam_eps), other, *decays),
        neurons,
        auxiliary,
    )
