"""Muon's directions, orthogonal matrices, with one number per neuron."""

from typing import Any

import optax
from jax.typing import DTypeLike
from jaxtyping import Array

from neuron_optax.accumulators import ema
from neuron_optax.axes import FLAX
from neuron_optax.core import scale_per_neuron
from neuron_optax.projections import (
    aspect_ratio,
    orthogonalize,
    preserve_norm,
    scale_by_shape,
    skip_nonfinite,
)
from neuron_optax.rates import inverse_root
from neuron_optax.statistics import mean_square
from neuron_optax.strategies.alias import (
    AUXILIARY,
    NeuronsLike,
    Scalar,
    adam,
    descend,
    matrices_and_rest,
    mean_momentum,
    require_adam,
    shaped,
    times,
)


def scale_by_normuon(
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-10,
    *,
    nesterov: bool = True,
    steps: int | Array = 5,
    matmul_dtype: DTypeLike | None = None,
    neurons: NeuronsLike = FLAX,
    matrices: NeuronsLike | None = None,
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Orthogonalise the momentum, then give every neuron steps of one size.

    .. math::
      O = \mathrm{NS}(U), \qquad
      v_t = \beta_2 v_{t-1} + (1 - \beta_2) \tfrac1k \lVert O_i \rVert^2, \qquad
      Q_i = O_i / (\sqrt{v_t} + \epsilon), \qquad
      u = Q\, \frac{\lVert O \rVert_F}{\lVert Q \rVert_F}
      \sqrt{\max(1, \tfrac mk)}

    with :math:`M_t = \beta_1 M_{t-1} + (1-\beta_1) g_t` and, of Nesterov,
    :math:`U = \beta_1 M_t + (1-\beta_1) g_t`.

    Args:
      b1: :math:`\beta_1`, in ``[0, 1)``.
      b2: :math:`\beta_2`, in ``[0, 1)``.
      eps: :math:`\epsilon`, without unit, positive.
      nesterov: take :math:`U`; if not, :math:`M_t` in its place.
      steps: of the Newton-Schulz iteration.
      matmul_dtype: to which the factors of its products are rounded, ``"bfloat16"``
        (by name) where that is faster; ``None`` for none. See `orthogonalize`.
      neurons: the axes that index the neurons, by leaf; each has a number :math:`v`.
        Under ``PER_LAYER``, with ``matrices=FLAX``, it is Muon.
      matrices: the axes of the matrices, see `orthogonalize`; ``None`` for ``neurons``.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A chain for leaves that are matrices; `normuon` finds them.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Reference:
      Li et al., *NorMuon* (2025), arXiv:2510.05491, as coded by its authors.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jax.random.normal(jax.random.key(0), (4, 2))
      >>> optimizer = scale_by_normuon()
      >>> update, _ = optimizer.update(kernel, optimizer.init(kernel))
      >>> sizes = jnp.linalg.norm(update, axis=0)
      >>> bool(jnp.allclose(sizes[0], sizes[1]))
      True
    """
    matrices = neurons if matrices is None else matrices
    equalized = scale_per_neuron(
        mean_square,
        ema(b2, debias=False),
        shaped(inverse_root(eps), low, high, redistribute),
        neurons=neurons,
    )
    scaled = optax.chain(
        mean_momentum(b1, nesterov),
        orthogonalize(steps, matmul_dtype=matmul_dtype, neurons=matrices),
        preserve_norm(equalized, neurons=matrices),
        scale_by_shape(aspect_ratio, neurons=matrices),
    )
    return skip_nonfinite(scaled, neurons=neurons)


def normuon(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-10,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-10,
    nesterov: bool = True,
    steps: int | Array = 5,
    matmul_dtype: DTypeLike | None = None,
    auxiliary: str = AUXILIARY,
    neurons: NeuronsLike = FLAX,
    matrices: NeuronsLike | None = None,
    low: Scalar | None = None,
    high: Scalar | None = None,
    redistribute: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon whose neurons all take steps of one size; AdamW for all but matrices.

    The formula is that of `scale_by_normuon`, and
    :math:`\Delta = -\eta\, (u + \lambda w)`.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      b1: decay of the momentum, in ``[0, 1)``.
      b2: decay of the second moment, in ``[0, 1)``; it is not corrected for its bias.
      eps: added to :math:`\sqrt v`, without unit, positive.
      weight_decay: :math:`\lambda`, multiplied by the learning rate of the leaf.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      adam_learning_rate: of the leaves that AdamW trains; ``None`` for 0.015 times
        :math:`\eta`, the authors' 3e-4 beside 0.02.
      adam_b1: decay of its first moment, in ``[0, 1)``.
      adam_b2: decay of its second moment, in ``[0, 1)``.
      adam_eps: added to the root of its second moment, in units of the gradient.
      nesterov: Nesterov's momentum.
      steps: of the Newton-Schulz iteration.
      matmul_dtype: to which the factors of its products are rounded, ``"bfloat16"``
        (by name) where that is faster; ``None`` for none. See `orthogonalize`.
      auxiliary: leaves whose path has this pattern in it (``re.search``) are trained by
        AdamW even if they are matrices: embeddings and the head, whose rows are tokens.
      neurons: the axes that index the neurons, by leaf. Queries, keys and values are
        one matrix for all heads, a convolution is one row per output channel.
      matrices: the axes of the matrices; ``None`` for ``neurons``, under which a leaf
        without a fan-in (``PER_ENTRY``) or without neurons (``PER_LAYER``) is none and
        AdamW's.
      low: least factor; ``None`` for no bound.
      high: largest factor; ``None`` for no bound.
      redistribute: divide the factors of a layer by their mean, before the bounds.

    Returns:
      A partition of the leaves; the `NeuronState` of the matrices holds :math:`v` with
      fan-in axes of length 1.
      Its rates: relative: the layer's norm is restored after the rates, then its
      shape.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Note:
      Variants are compositions of `orthogonalize`, `scale_per_neuron`, `preserve_norm`
      and `scale_by_shape`. The authors iterate in bfloat16; here it is float32 at
      least, with ``matmul_dtype`` but for the factors of products. Of a convolution
      they keep one variance for each row of each tap, here it is one for each output
      channel.

    Reference:
      Li et al., *NorMuon* (2025), arXiv:2510.05491, as coded by its authors.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"Dense_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
      >>> optimizer = normuon(0.02)
      >>> update, _ = optimizer.update(params, optimizer.init(params), params)
      >>> round(float(jnp.linalg.norm(update["Dense_0"]["kernel"])), 3)
      0.031
    """
    require_adam(adam_b1, adam_b2, adam_eps)
    scaled = scale_by_normuon(
        b1,
        b2,
        eps,
        nesterov=nesterov,
        steps=steps,
        matmul_dtype=matmul_dtype,
        neurons=neurons,
        matrices=matrices,
        low=low,
        high=high,
        redistribute=redistribute,
    )
    authors = times(learning_rate, 0.015)
    other = authors if adam_learning_rate is None else adam_learning_rate
    decay = weight_decay, weight_decay_mask
    return matrices_and_rest(
        descend(scaled, learning_rate, *decay),
        descend(adam(adam_b1, adam_b2, adam_eps), other, *decay),
        neurons if matrices is None else matrices,
        auxiliary,
    )
