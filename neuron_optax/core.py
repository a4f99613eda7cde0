"""The transformation that every strategy with one number per neuron is made of.

Arrays with one number per neuron keep their fan-in axes at length 1.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neuron_optax.accumulators import Accumulator
from neuron_optax.axes import (
    FLAX,
    Layout,
    MatrixAxes,
    Neurons,
    as_layout,
    kernel_of,
    resolve,
)
from neuron_optax.rates import Rate
from neuron_optax.statistics import Statistic, sum_square
from neuron_optax.trees import (
    cast_like,
    is_masked,
    map_named,
    named_leaves,
    rebox,
    unbox,
)


class NeuronState(NamedTuple):
    """State that holds one number per neuron.

    Attributes:
      step: number of updates so far, int32.
      memory: what the accumulator remembers; a tree like the params, fan-in axes at
        length 1. ``()`` where nothing is remembered.
      rate: the factor last applied; a tree like the params, fan-in axes at length 1.
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
      TypeError: at ``init``, for a leaf that is not floating or complex, or a statistic
        that is not floating.
      ValueError: naming the leaf; at ``init``, if its axes do not exist, if the
        statistic does not keep fan-in axes at length 1, or if the kernel of a bias is
        masked away or has other neurons; at ``update``, if the updates do not fit the
        state, or if the statistic needs the weights and ``params`` is ``None``.
      NotImplementedError: inside ``shard_map``, unless `Neurons.reduce_over` says that
        the fan-in is whole.

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
    if bias not in ("own", "kernel"):
        raise ValueError(f"bias must be 'own' or 'kernel', got {bias!r}")

    def lend(tree):
        return _lend(tree, layout) if bias == "kernel" else tree

    def measure(updates, params):
        weights = jax.tree.map(lambda _: None, updates) if params is None else params
        return map_named(
            lambda path, u, w: _measure(statistic, layout, path, u, w), updates, weights
        )

    def squares(updates):
        return map_named(
            lambda path, u: sum_square(_widen(u), None, layout.axes(path, u.shape)[-1]),
            jax.tree.map(jnp.asarray, updates),
        )

    def factors(memory, step):
        return map_named(
            lambda path, a: rate.apply(
                accumulator.read(a, step), layout.axes(path, a.shape).output
            ),
            memory,
        )

    def init(params):
        plain = unbox(params)
        check_dtypes(plain)
        blank = jax.eval_shape(measure, plain, plain)
        _check_shapes(plain, blank, layout, "the statistic")
        rates = lend(jax.tree.map(jnp.ones_like, blank))
        return NeuronState(
            step=jnp.zeros([], jnp.int32),
            memory=jax.tree.map(accumulator.init, blank),
            rate=rates if store_rate else (),
            direction=inner.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        plain, weights = unbox(updates), unbox(params)
        check_leaves(plain, state.memory, weights)
        _check_shapes(plain, state.memory, layout, "the state")
        step = jnp.asarray(optax.safe_increment(state.step))
        measured = measure(plain, weights)
        memory = jax.tree.map(accumulator.update, state.memory, measured)
        finite = jax.tree.map(_finite, measured, memory, squares(plain))
        sound = jax.tree.map(jnp.logical_and, finite, lend(finite))
        memory = jax.tree.map(jnp.where, sound, memory, state.memory)
        rates = lend(factors(memory, step))
        rates = jax.tree.map(lambda ok, r: jnp.where(ok, r, 0), sound, rates)
        clean = jax.tree.map(lambda ok, g: jnp.where(ok, g, 0), sound, plain)
        clean = rebox(clean, updates)
        scaled, direction = inner.update(clean, state.direction, params, **extra_args)
        scaled = jax.tree.map(lambda r, u: r * u, rates, unbox(scaled))
        stored = rates if store_rate else ()
        state_out = NeuronState(step, memory, stored, direction)
        return (
            rebox(cast_like(scaled, plain), updates),
            cast_like(state_out, state),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _measure(statistic, layout, path, update, param):
    """Measure one leaf in at least 32 bits; errors name the leaf."""
    neurons = layout.neurons(path, np.ndim(update))
    fan_in = resolve(neurons, path, np.shape(update)).fan_in
    regions = jax.sharding.get_abstract_mesh().manual_axes
    if regions and fan_in and neurons.reduce_over is None:
        raise NotImplementedError(
            f"{path}: inside shard_map over {regions}, say reduce_over=() in Neurons "
            "if the fan-in is whole; a sharded fan-in is not supported yet"
        )
    param = None if param is None else _widen(param)
    try:
        measured = statistic(_widen(update), param, fan_in)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not jnp.issubdtype(measured.dtype, jnp.floating):
        raise TypeError(f"{path}: statistic must be real floats, got {measured.dtype}")
    return measured


def _widen(array):
    return jnp.asarray(array, jnp.promote_types(jnp.result_type(array), jnp.float32))


def _finite(*numbers):
    # As a reduction XLA computes it once per neuron; an "and" is inlined per entry.
    return jnp.all(jnp.isfinite(jnp.stack(numbers)), axis=0)


def _lend(tree, layout):
    """Give every bias the numbers of its kernel's neurons in place of its own."""
    leaves = dict(named_leaves(tree, is_masked))

    def lent(path, own):
        kernel = kernel_of(path, leaves)
        if kernel is None:
            return own
        if is_masked(leaves[kernel]):
            raise ValueError(
                f"{path} uses the rate of {kernel}, which is masked away: keep both "
                "under one mask or label, or use bias='own'"
            )
        if leaves[kernel].ndim < 2 or leaves[kernel].shape == own.shape:
            return own  # a normalisation
        return _view(leaves[kernel], kernel, own, path, layout)

    return map_named(lent, tree)


def _view(array, kernel, own, bias, layout):
    """View numbers of a kernel's neurons in the order and shape of its bias."""
    ours, theirs = (
        layout.neurons(*leaf) for leaf in ((kernel, array.ndim), (bias, own.ndim))
    )
    if ours.stack and not theirs.stack:
        theirs = theirs._replace(stack=ours.stack)
    ours, theirs = resolve(ours, kernel, array.shape), resolve(theirs, bias, own.shape)
    counts, wanted = _counts(array, ours), _counts(own, theirs)
    if counts != wanted:
        raise ValueError(
            f"{bias} uses the rate of {kernel}, so both must have the same neurons "
            f"along (stack, output), got {wanted} and {counts}: override the layout or "
            "use bias='own'"
        )
    order = theirs.stack + theirs.output + theirs.fan_in
    array = jnp.transpose(array, ours.stack + ours.output + ours.fan_in)
    array = array.reshape([own.shape[axis] for axis in order])
    array = jnp.transpose(array, np.argsort(order).tolist())
    sharding = jax.typeof(own).sharding  # a bias may be sharded unlike its kernel
    explicit = sharding.mesh.explicit_axes
    return jax.sharding.reshard(array, sharding) if explicit else array


def _counts(array, axes):
    output = [array.shape[axis] for axis in axes.output]
    stack = [array.shape[axis] for axis in axes.stack]
    return stack, [count for count in output if count != 1]


def check_dtypes(params):
    """Refuse leaves that are neither floating nor complex."""
    for path, leaf in named_leaves(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f"{path}: params must be float or complex, got {dtype}")


def check_leaves(updates, memory, params):
    """Refuse updates with other leaves than the state, or other shapes than params."""
    came, wanted = dict(named_leaves(updates)), dict(named_leaves(memory))
    if came.keys() != wanted.keys():
        raise ValueError(
            "updates must have the leaves the state was made for: missing "
            f"{sorted(wanted.keys() - came.keys())}, "
            f"unexpected {sorted(came.keys() - wanted.keys())}"
        )
    for path, weight in named_leaves(params):
        if path in came and np.shape(came[path]) != np.shape(weight):
            raise ValueError(
                f"{path}: update must have the shape {np.shape(weight)} of its "
                f"parameter, got {np.shape(came[path])}"
            )


def _check_shapes(tree, reduced, layout, holder):
    came = dict(named_leaves(reduced))
    for path, leaf in named_leaves(tree):
        shape = np.shape(leaf)
        fan_in = layout.axes(path, shape).fan_in
        wanted = tuple(1 if a in fan_in else n for a, n in enumerate(shape))
        if came[path].shape != wanted:
            raise ValueError(
                f"{path} of shape {shape} has one number per neuron in {wanted}, but "
                f"{holder} has {came[path].shape}"
            )
