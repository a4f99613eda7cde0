"""Rates from an Adam that sees the gradient through a random projection."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neuron_optax.accumulators import ema
from neuron_optax.axes import FLAX, PER_ENTRY, as_layout, map_axes, unview, view
from neuron_optax.boxes import rebox, unbox
from neuron_optax.core import scale_per_neuron
from neuron_optax.numerics import require_within, root, widen
from neuron_optax.projections import (
    from_matrices,
    matrix_shape,
    skip_nonfinite,
    to_matrices,
)
from neuron_optax.rates import inverse_root, require_positive
from neuron_optax.statistics import mean_square, sum_square
from neuron_optax.strategies.alias import (
    AUXILIARY,
    NeuronsLike,
    Scalar,
    correct_late,
    descend_then_decay,
    matrices_and_rest,
    require_adam,
)
from neuron_optax.trees import cast_like, check_dtypes, check_leaves

Channels = Literal["larger", "neuron", "layer"]


class ApolloState(NamedTuple):
    """State of `scale_by_apollo`, for each leaf in the shape (copies, rank, channels).

    Attributes:
      step: number of updates so far, int32.
      mu: mean of the projected gradients.
      nu: mean of their squares.
      size: norms of the last updates, (copies, 1, 1).
      rate: the factors last applied, (copies, 1, channels); of a layer they are equal.

    Example:
      >>> from neuron_optax import apollo
      >>> state = apollo(0.1, rank=2).init({"kernel": jnp.ones((8, 3))})
      >>> optax.tree.get(state, "ApolloState").nu["kernel"].shape
      (1, 2, 8)
    """

    step: jax.Array
    mu: Any
    nu: Any
    size: Any
    rate: Any


def projection(
    seed: int | Array, epoch: int | Array, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Draw the projection of all leaves of one shape, normal over the root of the rank.

    Args:
      seed: of all shapes.
      epoch: how often it was drawn before.
      shape: (copies, rank, smaller side).
      dtype: of the projection.

    Example:
      >>> projection(0, 0, (1, 2, 3), jnp.float32).shape
      (1, 2, 3)
    """
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    drawn = jax.random.normal(key, shape, dtype)
    return drawn / jnp.sqrt(jnp.asarray(shape[1], dtype))


def scale_by_apollo(
    rank: int = 256,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    *,
    scale: Scalar = 1.0,
    channels: Channels = "larger",
    growth: Scalar = 1.01,
    period: int | Array = 200,
    seed: int | Array = 0,
    neurons: NeuronsLike = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale every channel by what Adam does to it in a random subspace.

    With :math:`P` of ``rank`` rows, drawn anew every ``period`` steps,

    .. math::
      R = P g, \qquad N = m(R) / (\sqrt{v(R)} + \epsilon), \qquad
      s_j = \frac{\lVert N_j \rVert}{\lVert R_j \rVert + 10^{-8}}, \qquad
      u_j = \sqrt{\text{scale}}\, s_j\, g_j

    where :math:`m, v` are running means without correction of their bias. The norm of
    :math:`s g` grows by no more than ``growth`` from one step to the next.

    Args:
      rank: of the projection; that of the matrix if it is less (in ``static_args``
        under ``optax.inject_hyperparams``).
      b1: decay of :math:`m`, in ``[0, 1)``.
      b2: decay of :math:`v`, in ``[0, 1)``.
      eps: :math:`\epsilon`, in units of the gradient, positive.
      scale: without unit.
      channels: what has a factor of its own: every index of the ``"larger"`` side of
        the matrix (of a square one the neurons), as the authors', every ``"neuron"``,
        or the ``"layer"`` as a whole (APOLLO-Mini, with ``rank=1, scale=128``).
      growth: of the norm in one step, at least 1.
      period: steps between projections.
      seed: of the projections.
      neurons: the axes that index the neurons, by leaf; they are the rows.

    Returns:
      A transformation of leaves that are matrices; `apollo` finds them.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Note:
      Leaves of one shape share a projection; a new one finds the moments of the old.
      Gradients of zero do not count where growth is limited; in the authors' code the
      next one is all but stopped.

    Reference:
      Zhu et al., *APOLLO* (2024), arXiv:2412.05270, as coded by its authors, who scale
      the whole gradient.

    Example:
      >>> kernel = jnp.ones((8, 3))  # fan-in 8, three neurons: the inputs are channels
      >>> scale_by_apollo(rank=2).init(kernel).nu.shape
      (1, 2, 8)
    """
    require_adam(b1, b2, eps)
    require_positive("scale", scale)
    require_within("growth", growth, 1)
    require_within("period", period, 1)
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"rank must be a positive integer, static if injected, got {rank!r}"
        )
    if channels not in ("larger", "neuron", "layer"):
        raise ValueError(
            f"channels must be 'larger', 'neuron' or 'layer', got {channels!r}"
        )
    layout = as_layout(neurons)
    size = lambda tree, axes: jax.tree.map(
        lambda x: root(sum_square(x, None, axes)), tree
    )

    def neurons_are_channels(of):
        outputs, inputs = matrix_shape(of)
        return channels == "neuron" or outputs >= inputs

    def turned(of, matrices):  # channels last
        swap = neurons_are_channels(of)
        return jnp.swapaxes(matrices, -1, -2) if swap else matrices

    def shape(of, side):
        copies, small, _ = side.shape
        return copies, min(rank, small), small

    def limited(now, before):
        excess = jnp.maximum(now / (before + 1e-8), growth) / growth
        return jnp.where(before == 0, 1.0, excess)

    def kept(before, now, limit):  # a gradient of zero does not count
        return jnp.where(now == 0, before, now / limit)

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        axes = layout.resolve(plain)

        def blank(of, leaf):
            side = turned(of, to_matrices(of, widen(leaf)))
            copies, low, _ = shape(of, side)
            return jnp.zeros((copies, low, side.shape[-1]), side.dtype)

        blanks = lambda tree: map_axes(blank, axes, view(axes, tree))
        mu = jax.tree.map(jnp.zeros_like, jax.eval_shape(blanks, plain))
        nu = jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.finfo(m.dtype).dtype), mu)
        return ApolloState(
            step=jnp.zeros([], jnp.int32),
            mu=mu,
            nu=nu,
            size=jax.tree.map(lambda v: jnp.zeros_like(v[:, :1, :1]), nu),
            rate=jax.tree.map(lambda v: jnp.ones_like(v[:, :1]), nu),
        )

    def update(updates, state, params=None, **extra_args):
        plain = unbox(updates)
        check_leaves(plain, state.nu, unbox(params))
        axes = layout.resolve(plain)
        seen = jax.tree.map(widen, view(axes, plain))
        grads = map_axes(lambda of, g: turned(of, to_matrices(of, g)), axes, seen)

        def project(of, g):
            dtype = jnp.finfo(g.dtype).dtype
            return projection(seed, state.step // period, shape(of, g), dtype) @ g

        with jax.default_matmul_precision("highest"):
            low = map_axes(project, axes, grads)
        square = lambda r: jnp.real(jnp.conj(r) * r)
        mu = jax.tree.map(lambda m, r: b1 * m + (1 - b1) * r, state.mu, low)
        nu = jax.tree.map(lambda v, r: b2 * v + (1 - b2) * square(r), state.nu, low)
        steps = jax.tree.map(lambda m, v: m / (root(v) + eps), mu, nu)
        over = (-2, -1) if channels == "layer" else (-2,)
        rate = jax.tree.map(
            lambda n, r: n / (r + 1e-8), size(steps, over), size(low, over)
        )
        now = size(jax.tree.map(jnp.multiply, grads, rate), (-2, -1))
        limit = jax.tree.map(limited, now, state.size)
        rate = jax.tree.map(lambda s, over: s / over * jnp.sqrt(scale), rate, limit)
        new = map_axes(
            lambda of, s, g, like: from_matrices(of, turned(of, s * g), like),
            axes,
            rate,
            grads,
            seen,
        )
        after = ApolloState(
            step=jnp.asarray(optax.safe_increment(state.step)),
            mu=mu,
            nu=nu,
            size=jax.tree.map(kept, state.size, now, limit),
            rate=jax.tree.map(
                lambda s, like: s + jnp.zeros_like(like), rate, state.rate
            ),
        )
        new = rebox(cast_like(unview(axes, new), plain), updates)
        return new, cast_like(after, state)

    return optax.GradientTransformationExtraArgs(init, update)


def apollo(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 256,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    scale: Scalar = 1.0,
    channels: Channels = "larger",
    growth: Scalar = 1.01,
    period: int | Array = 200,
    seed: int | Array = 0,
    auxiliary: str = AUXILIARY,
    neurons: NeuronsLike = FLAX,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with one rate per channel, from an auxiliary Adam of low rank.

    The formula is that of `scale_by_apollo`; then

    .. math::
      w' = w - \eta\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\, u, \qquad
      w \leftarrow (1 - \eta \lambda)\, w'

    and AdamW with the same order of operations for all but matrices.

    Args:
      learning_rate: :math:`\eta`, in units of the parameter; scalar or schedule.
      rank: of the projection; that of the matrix if it is less (in ``static_args``
        under ``optax.inject_hyperparams``).
      b1: decay of the first moment, in ``[0, 1)``.
      b2: decay of the second moment, in ``[0, 1)``.
      eps: added to the root of the second moment before its bias is corrected, in units
        of the gradient, positive.
      weight_decay: :math:`\lambda`, multiplied by the learning rate; it shrinks the
        weights after the step.
      weight_decay_mask: what decays, a tree of booleans or a function of the params
        (in ``static_args`` under ``optax.inject_hyperparams``).
      scale: see `scale_by_apollo`, without unit.
      channels: what has a factor of its own, see `scale_by_apollo`.
      growth: of the norm of the update in one step, at least 1.
      period: steps between projections.
      seed: of the projections.
      auxiliary: leaves whose path has this pattern in it (``re.search``) are trained by
        AdamW even if they are matrices: embeddings and the head, whose rows are tokens.
      neurons: the axes that index the neurons, by leaf. Queries, keys and values are
        one matrix for all heads, a convolution is one row per output channel.

    Returns:
      A partition of the leaves; that of the matrices has an `ApolloState`, with two
      moments of ``rank`` numbers for each channel.
      Its rates: the rate is that of a channel, (copies, 1, channels), growth
      limited.

    Raises:
      ValueError: for a hyperparameter out of range, or as `scale_per_neuron`.
      NotImplementedError: inside ``shard_map``, for a leaf that may be a piece.

    Note:
      Its statistic is an optimizer in another space, which does not fit
      `scale_per_neuron`: it is a transformation of its own, bounded by ``growth``.

    Reference:
      Zhu et al., *APOLLO* (2024), arXiv:2412.05270, as coded by its authors.

    Example:
      >>> params = {"kernel": jnp.ones((8, 3)), "bias": jnp.ones(3)}
      >>> state = apollo(0.01, rank=2).init(params)
      >>> optax.tree.get(state, "ApolloState").rate["kernel"].shape
      (1, 1, 8)
    """
    require_adam(b1, b2, eps)
    scaled = scale_by_apollo(
        rank,
        b1,
        b2,
        eps,
        scale=scale,
        channels=channels,
        growth=growth,
        period=period,
        seed=seed,
        neurons=neurons,
    )
    first = lambda step: 1 / (1 - widen(b1) ** (step + 1))
    scaled = optax.chain(
        skip_nonfinite(scaled, neurons=neurons),
        optax.scale_by_schedule(first),
        correct_late(b2),
    )
    rest = scale_per_neuron(
        mean_square,
        ema(b2, debias=False),
        inverse_root(eps),
        neurons=PER_ENTRY,
        direction=optax.ema(b1),
        store_rate=False,
    )
    decay = weight_decay, weight_decay_mask
    return matrices_and_rest(
        descend_then_decay(scaled, learning_rate, *decay),
        descend_then_decay(optax.chain(rest, correct_late(b2)), learning_rate, *decay),
        neurons,
        auxiliary,
    )
