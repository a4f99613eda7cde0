"""The transformation that every strategy with one number per neuron is made of.

Arrays with one number per neuron keep their fan-in axes at length 1.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from neuron_optax.accumulators import Accumulator
from neuron_optax.axes import (
    FLAX,
    Layout,
    MatrixAxes,
    Neurons,
    as_layout,
    check_numbers,
    check_pieces,
    lend,
    map_axes,
    unview,
    view,
)
from neuron_optax.boxes import box_numbers, rebox, unbox
from neuron_optax.numerics import widen_apart
from neuron_optax.rates import Rate
from neuron_optax.statistics import OF_SQUARES, Statistic, sum_square
from neuron_optax.trees import (
    cast_like,
    check_dtypes,
    check_leaves,
    map_named,
    move,
)


class NeuronState(NamedTuple):
    """State that holds one number per neuron.

    Attributes:
      step: number of updates so far, int32.
      memory: what the accumulator remembers; a tree like the params, fan-in axes at
        length 1. An axis of `Neurons.blocks` becomes two, (count, 1). ``()`` where
        nothing is remembered.
      rate: the factor last applied; a tree like the params, shaped as the memory.
        The learning rate is not in it, but of `scale_by_layer` it is the factor.
        ``()`` if it is not stored.
      direction: state of the direction.

    Example:
      >>> from neuron_optax import neuron_adagrad
      >>> state = neuron_adagrad(0.1).init({"kernel": jnp.ones((3, 2))})
      >>> optax.tree.get(state, "NeuronState").rate["kernel"].tolist()
      [[1.0, 1.0]]
    """

    step: jax.Array
    memory: Any
    rate: Any
    direction: optax.OptState


def scale_per_neuron(
    statistic: Statistic,
    accumulator: Accumulator,
    rate: Rate,
    *,
    neurons: Layout | Neurons | MatrixAxes = FLAX,
    direction: optax.GradientTransformation | None = None,
    bias: Literal["own", "kernel"] = "own",
    store_rate: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale a direction by one factor per neuron, :math:`r_i` for neuron :math:`i`.

    .. math::
      a_t = \mathrm{accumulate}(a_{t-1}, \mathrm{statistic}(g_t, w_t)), \qquad
      u_t = \mathrm{rate}(\mathrm{read}(a_t, t)) \cdot \mathrm{direction}(g_t)

    Args:
      statistic: what is measured of an update and its parameter.
      accumulator: how it is remembered from step to step.
      rate: how the remembered value becomes the factor.
      neurons: the axes that index the neurons, by leaf. One `Neurons` (or
        ``MuonDimensionNumbers``) applies to leaves of rank 2 and more.
      direction: what is scaled, without sign and learning rate; ``None`` for the
        update itself. It sees zeros for a neuron whose memory stays as it was.
      bias: whose rate a bias (``bias``, ``b``) uses: its ``own``, or that of the
        ``kernel`` (``kernel``, ``weight``, ``w`` of rank 2 and more) beside it. One
        without a kernel, and a normalisation's, uses its own. A bias that uses its
        kernel's and has no stack axes of its own has those of its kernel.
      store_rate: keep the factors in the state.

    Returns:
      A transformation whose state is a `NeuronState`. Numbers per neuron have at least
      32 bits; updates leave in the dtype they came in. Where the statistic or the sum
      of squares of a neuron's update overflows or is not finite, its memory stays as it
      was and its update is zero; the step counts, also in corrections for bias.

    Raises:
      TypeError: for a part of another kind; at ``init``, for a leaf that is not
        floating or complex, or a statistic that is not floating.
      ValueError: naming the leaf; at ``init``, if its axes do not exist, if the
        statistic does not keep fan-in axes at length 1, or if the kernel of a bias is
        masked away or has other neurons; at ``update``, if the updates do not fit the
        state, or if the statistic needs the weights and ``params`` is ``None``.
        Inside ``shard_map``, unless `Neurons.reduce_over` says over which mesh axes the
        fan-in is sharded, or ``()`` for none.
      NotImplementedError: inside ``shard_map``, for blocks of what may be a piece, and
        where a rate needs the mean over a layer's neurons (`redistributed`).

    Note:
      Under ``optax.inject_hyperparams`` a bare function is taken for a schedule: name
      ``statistic`` in ``static_args``.

    Example:
      >>> from neuron_optax import ema, inverse_root, mean_square
      >>> optimizer = scale_per_neuron(mean_square, ema(0.9), inverse_root(1e-8))
      >>> kernel = jnp.array([[0.1, 10.0], [0.1, 10.0]])  # fan-in 2, two neurons
      >>> update, state = optimizer.update(kernel, optimizer.init(kernel))
      >>> state.rate.shape, bool(jnp.allclose(update, 1.0))
      ((1, 2), True)
    """
    layout = as_layout(neurons)
    inner = optax.with_extra_args_support(direction or optax.identity())
    is_finite = _finite if direction is None else _finite_once
    _check_parts(statistic, accumulator, rate)
    if bias not in ("own", "kernel"):
        raise ValueError(f"bias must be 'own' or 'kernel', got {bias!r}")

    def lent(axes, tree):
        return lend(tree, axes) if bias == "kernel" else tree

    def measure(axes, updates, params):
        weights = jax.tree.map(lambda _: None, updates) if params is None else params
        return map_named(
            lambda path, u, w: _measure(statistic, axes[path].reduced, path, u, w),
            updates,
            weights,
        )

    def squares(axes, updates):
        return map_axes(
            lambda of, u: sum_square(widen_apart(u), None, of.reduced), axes, updates
        )

    def factors(axes, memory, step):
        return map_axes(
            lambda of, a: rate.apply(accumulator.read(a, step), of.output), axes, memory
        )

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        axes = layout.resolve(plain)
        blank = jax.eval_shape(lambda p: measure(axes, *[view(axes, p)] * 2), plain)
        check_numbers(axes, blank, "the statistic")
        boxed = lambda tree: box_numbers(tree, params, lambda path: axes[path].names)
        rates = lent(axes, jax.tree.map(jnp.ones_like, blank))
        return NeuronState(
            step=jnp.zeros([], jnp.int32),
            memory=boxed(jax.tree.map(accumulator.init, blank)),
            rate=boxed(rates) if store_rate else (),
            direction=inner.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        plain, weights = unbox(updates), unbox(params)
        memory = unbox(state.memory)
        check_leaves(plain, memory, weights)
        axes = layout.resolve(plain)
        check_numbers(axes, memory, "the state")
        check_pieces(axes, memory)
        seen, weights = view(axes, plain), view(axes, weights)

        step = jnp.asarray(optax.safe_increment(state.step))
        measured = measure(axes, seen, weights)
        now = jax.tree.map(accumulator.update, memory, measured)
        others = [] if statistic in OF_SQUARES else [squares(axes, seen)]
        finite = jax.tree.map(is_finite, measured, now, *others)
        sound = jax.tree.map(jnp.logical_and, finite, lent(axes, finite))
        memory = jax.tree.map(jnp.where, sound, now, memory)
        rates = lent(axes, factors(axes, memory, step))
        rates = jax.tree.map(lambda ok, r: jnp.where(ok, r, 0), sound, rates)

        kept = rates if direction is None else sound  # zero where not sound, both
        clean = jax.tree.map(_only, kept, seen)
        clean = rebox(unview(axes, clean), updates)
        scaled, moved = move(inner, clean, state.direction, params, extra_args)
        scaled = view(axes, unbox(scaled))
        scaled = unview(axes, jax.tree.map(lambda r, u: r * u, rates, scaled))
        new = NeuronState(
            step=step,
            memory=rebox(memory, state.memory),
            rate=rebox(rates, state.rate) if store_rate else (),
            direction=moved,
        )
        return rebox(cast_like(scaled, plain), updates), cast_like(new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_parts(statistic, accumulator, rate):
    if not callable(statistic):
        raise TypeError(f"statistic must be a function, got {statistic!r}")
    if not isinstance(accumulator, Accumulator):
        raise TypeError(
            f"accumulator must be an Accumulator such as total(), got {accumulator!r}"
        )
    if not isinstance(rate, Rate):
        raise TypeError(f"rate must be a Rate such as inverse_root(), got {rate!r}")


def _measure(statistic, fan_in, path, update, param):
    """Measure one leaf in at least 32 bits; errors name the leaf."""
    param = None if param is None else widen_apart(param)
    try:
        measured = statistic(widen_apart(update), param, fan_in)
    except (TypeError, ValueError) as error:
        named = any(isinstance(axis, str) for axis in fan_in)
        hint = f"; reduce {fan_in} with sum_over, mean_over or max_over" * named
        if isinstance(error, ValueError):
            raise ValueError(f"{path}: {error}{hint}") from error
        error.add_note(f"{path}: the statistic{hint}")  # JAX's own take a tracer
        raise
    if not jnp.issubdtype(measured.dtype, jnp.floating):
        raise TypeError(f"{path}: statistic must be real floats, got {measured.dtype}")
    return measured


def _only(kept, update):
    # XLA's loops on a CPU compare entries with a bound at no cost, where they lose a
    # quarter of their speed to a mask of neurons; in 16 bits it is the other way round.
    if jnp.finfo(jnp.result_type(update)).bits < 32:
        return jnp.where(kept != 0, update, 0)
    size = jnp.abs(update)
    bound = jnp.where(kept != 0, jnp.inf, 0).astype(size.dtype)
    return jnp.where(size < bound, update, 0)


def _finite(*numbers):
    return functools.reduce(jnp.logical_and, map(jnp.isfinite, numbers))


def _finite_once(*numbers):
    # As a reduction XLA computes it once per neuron, where entries read it as a mask;
    # an "and" is inlined for each of them.
    return jnp.all(jnp.isfinite(jnp.stack(numbers)), axis=0)
