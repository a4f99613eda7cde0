"""Rates over time: lazy and broken neurons, rare ones, learned and projected rates."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import FLAX, Neurons, skip_nonfinite, where_touched

TOLERANCE = 1e-12  # float64: only the order of summation differs


def normal(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(optimizer, params, grads):
    """Return updates, state and params after every step."""
    params = jax.tree.map(jnp.asarray, params)
    state, update, steps = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in grads:
        updates, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
        steps.append(jax.tree.map(np.asarray, (updates, state, params)))
    return steps


def rates(optimizer, shape, grads, field="rate"):
    """Return the factors of every step, one row for each."""
    steps = run(optimizer, np.zeros(shape, grads[0].dtype), grads)
    return np.stack([optax.tree.get(state, field).ravel() for _, state, _ in steps])


@pytest.mark.usefixtures("float64")
def test_only_rows_that_are_touched_decay():
    table, steps = normal((4, 3), dtype=np.float64), 12
    active = lambda step: (step % np.arange(1, 5) == 0)[:, None]
    grads = [{"embedding": np.ones((4, 3)) * active(s)} for s in range(1, steps + 1)]
    halved = optax.chain(optax.scale(0.0), optax.add_decayed_weights(-0.5))
    *_, (_, _, last) = run(where_touched(halved), {"embedding": table}, grads)
    times = steps // np.arange(1, 5)
    expected = table * 0.5 ** times[:, None]
    np.testing.assert_allclose(last["embedding"], expected, rtol=TOLERANCE)
    *_, (_, _, eager) = run(halved, {"embedding": table}, grads)
    np.testing.assert_allclose(eager["embedding"], table * 0.5**steps, rtol=TOLERANCE)


@pytest.mark.parametrize("decay", ["decoupled", "l2"])
def test_rows_without_gradient_rest_bit_for_bit(decay):
    table = {"embedding": normal((4, 3))}
    active = np.array([[1], [0], [1], [0]], np.float32)
    grads = [{"embedding": active * normal((4, 3), step)} for step in range(5)]
    build = functools.partial(
        neuron_optax.rowwise_adagrad, 0.1, weight_decay=0.1, decay=decay
    )
    *_, (_, _, lazy) = run(build(), table, grads)
    *_, (_, _, eager) = run(build(lazy=False), table, grads)
    rest = [1, 3]
    np.testing.assert_array_equal(lazy["embedding"][rest], table["embedding"][rest])
    assert (eager["embedding"][rest] != table["embedding"][rest]).all()
    np.testing.assert_array_equal(lazy["embedding"][[0, 2]], eager["embedding"][[0, 2]])


BROKEN = {"nan": np.nan, "inf": np.inf, "overflow": 1e30}  # of its square in float32


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN)
def test_a_broken_neuron_pauses_its_momentum_lives_and_others_do_not_notice(value):
    grads = [{"kernel": normal((3, 4), step)} for step in range(6)]
    broken = [{"kernel": g["kernel"].copy()} for g in grads]
    broken[2]["kernel"][1, 2] = value
    optimizer, params = skip_nonfinite(optax.trace(0.9)), {"kernel": normal((3, 4))}
    sound, steps = (run(optimizer, params, g) for g in (grads, broken))
    rest = [0, 1, 3]
    for (updates, state, _), (actual, now, _) in zip(sound, steps, strict=True):
        pairs = [(updates, actual)]
        pairs.append((optax.tree.get(state, "trace"), optax.tree.get(now, "trace")))
        for wanted, came in pairs:
            assert np.isfinite(came["kernel"]).all()
            np.testing.assert_array_equal(
                came["kernel"][:, rest], wanted["kernel"][:, rest]
            )
    paused, before, after = (steps[n][0]["kernel"][:, 2] for n in (2, 1, 3))
    assert not paused.any()
    momentum = np.float32(0.9) ** 2 * before + grads[3]["kernel"][:, 2]
    np.testing.assert_allclose(after, momentum, rtol=1e-5)
    *_, (bare, _, _) = run(optax.trace(0.9), params, broken)
    assert not abs(bare["kernel"][1, 2]) < 1e3  # NaN is not less either


WHOLE = {  # a matrix is orthogonalised as a whole, and its other rows go on
    "normuon": functools.partial(neuron_optax.normuon, 0.1),
    "namo_d": functools.partial(neuron_optax.namo_d, 0.1),
    "apollo": functools.partial(neuron_optax.apollo, 0.1, rank=2),
    "neuron_sgd": functools.partial(neuron_optax.neuron_sgd, 0.1),
}


@pytest.mark.parametrize("build", WHOLE.values(), ids=WHOLE)
def test_a_broken_row_does_not_break_its_matrix(build):
    grads = [{"kernel": normal((3, 4), step)} for step in range(4)]
    grads[1]["kernel"][1, 2] = np.nan
    steps = run(build(), {"kernel": normal((3, 4))}, grads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(steps))
    paused = steps[1][0]["kernel"] == 0
    np.testing.assert_array_equal(paused, [[False, False, True, False]] * 3)
    assert not any((updates["kernel"] == 0).any() for updates, *_ in steps[2:])


FREQUENCY = {
    "sgd": neuron_optax.frequency_sgd,
    "adam": neuron_optax.frequency_adam,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("exponent", [0.5, 1.0])
@pytest.mark.parametrize("high", [None, 2.0])
@pytest.mark.parametrize("build", FREQUENCY.values(), ids=FREQUENCY)
def test_a_neuron_active_every_kth_step_has_the_kth_power_within_bounds(
    build, high, exponent
):
    every, steps = np.array([1, 2, 3, 4, 6, 100]), 12
    grads = [1.0 * (step % every == 0)[None] for step in range(1, steps + 1)]
    actual = rates(build(0.1, exponent, high=high), (1, 6), grads)
    most = np.inf if high is None else high
    expected = np.minimum(every[:-1] ** exponent, most)
    np.testing.assert_allclose(actual[-1, :-1], expected, rtol=TOLERANCE)
    assert not actual[:, -1].any()  # never active so far
    for step in range(1, steps + 1):
        times = step // every
        ratio = np.where(times > 0, step / np.maximum(times, 1), 0.0)
        expected = np.minimum(ratio**exponent, most)
        np.testing.assert_allclose(actual[step - 1], expected, rtol=TOLERANCE)
    wrong = rates(build(0.1, exponent / 2, high=high), (1, 6), grads)
    assert np.abs(wrong[-1] - actual[-1]).max() > 0.1


@pytest.mark.usefixtures("float64")
def test_summed_steps_of_rare_tokens_equal_those_of_common_ones():
    every, steps = np.array([1, 2, 3, 4, 6]), 12
    tokens = [1.0 * (step % every == 0)[:, None] for step in range(1, steps + 1)]
    tables = [{"embedding": np.repeat(active, 2, 1)} for active in tokens]
    moved = []
    for exponent in (1.0, 0.0):
        optimizer = neuron_optax.frequency_sgd(0.1, exponent)
        *_, (_, _, last) = run(optimizer, {"embedding": np.zeros((5, 2))}, tables)
        moved.append(-last["embedding"][:, 0])
    np.testing.assert_allclose(moved[0], 0.1 * steps, rtol=TOLERANCE)
    np.testing.assert_allclose(moved[1], 0.1 * steps / every, rtol=TOLERANCE)


LEARNED = {  # strategy, change of the factor under equal and under opposite gradients
    "hypergradient_sgd": (
        functools.partial(neuron_optax.hypergradient_sgd, 0.1, gain=0.2),
        lambda a: (1.2 * a, 0.8 * a),
    ),
    "hypergradient_momentum": (
        functools.partial(neuron_optax.hypergradient_sgd, 0.1, gain=0.2, momentum=0.5),
        lambda a: (1.2 * a, 0.8 * a),
    ),
    "hypergradient_adam": (
        functools.partial(neuron_optax.hypergradient_adam, 0.1, gain=0.2),
        lambda a: (1.2 * a, 0.8 * a),
    ),
    "delta_bar_delta": (
        functools.partial(
            neuron_optax.delta_bar_delta, 0.1, increase=0.2, decrease=0.2
        ),
        lambda a: (a + 0.2, 0.8 * a),
    ),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bounds", [(0.01, 100.0), (0.6, 1.5)], ids=["wide", "narrow"])
@pytest.mark.parametrize(("build", "change"), LEARNED.values(), ids=LEARNED)
def test_rates_grow_under_equal_and_shrink_under_opposite_gradients(
    build, change, bounds
):
    low, high = bounds
    signs = np.stack([[1.0, (-1.0) ** step, 0.0] for step in range(10)])
    grads = [np.ones((4, 1)) * sign[None] for sign in signs]
    actual = rates(build(low=low, high=high), (4, 3), grads)
    agreeing, opposing, silent = np.ones((3, len(signs)))
    for step in range(1, len(signs)):  # the first has nothing to agree with
        agreeing[step] = min(change(agreeing[step - 1])[0], high)
        opposing[step] = max(change(opposing[step - 1])[1], low)
    np.testing.assert_allclose(actual[:, 0], agreeing, rtol=1e-9)  # eps of Adam
    np.testing.assert_allclose(actual[:, 1], opposing, rtol=1e-9)
    np.testing.assert_array_equal(actual[:, 2], silent)
    memory = rates(build(low=low, high=high), (4, 3), grads, "memory")
    np.testing.assert_array_equal(memory, actual)  # it has not to come back first
    assert agreeing[-1] > 1.4 and opposing[-1] < 0.7


def projected(shape=(8, 3), steps=7, **options):
    """Return ``mu``, the projected gradient, of every step of equal gradients."""
    optimizer = neuron_optax.scale_by_apollo(rank=2, b1=0.0, **options)
    leaves = {"a": normal(shape), "b": normal(shape)}
    steps = run(optimizer, leaves, [leaves] * steps)
    return [state.mu for _, state, _ in steps]


def test_projections_are_drawn_anew_every_period_for_all_leaves_of_one_shape():
    steps = projected(period=3)
    for leaf in ("a", "b"):
        pairs = itertools.pairwise(step[leaf] for step in steps)
        same = [np.array_equal(old, new) for old, new in pairs]
        assert same == [True, True, False, True, True, False]
    np.testing.assert_array_equal(steps[0]["a"], steps[0]["b"])
    again, other = projected(period=3), projected(period=3, seed=1)
    np.testing.assert_array_equal(again[-1]["a"], steps[-1]["a"])
    # not a tolerance: another draw must be off by more than a percent
    assert not np.allclose(other[0]["a"], steps[0]["a"], rtol=1e-2)


CHANNELS = {  # shape (in, out), channels, numbers, factors that differ
    "more inputs": ((8, 3), "larger", 8, 8),
    "more neurons": ((3, 8), "larger", 8, 8),
    "neurons of more inputs": ((8, 3), "neuron", 3, 3),
    "neurons": ((3, 8), "neuron", 8, 8),
    "layer": ((8, 3), "layer", 8, 1),
}


@pytest.mark.parametrize(
    ("shape", "channels", "numbers", "different"), CHANNELS.values(), ids=CHANNELS
)
def test_a_factor_belongs_to_a_channel(shape, channels, numbers, different):
    optimizer = neuron_optax.scale_by_apollo(rank=2, channels=channels)
    kernel = {"kernel": normal(shape)}
    ((updates, state, _),) = run(optimizer, kernel, [kernel])
    assert state.rate["kernel"].shape == (1, 1, numbers)
    assert state.nu["kernel"].shape == (1, 2, numbers)
    assert len(np.unique(state.rate["kernel"])) == different
    factors, rate = updates["kernel"] / kernel["kernel"], state.rate["kernel"].ravel()
    lines = {1: rate[:1, None], shape[0]: rate[:, None], shape[1]: rate[None]}
    # the product and the quotient round once each
    np.testing.assert_allclose(
        factors, np.broadcast_to(lines[different], shape), rtol=1e-6
    )


def test_every_copy_has_channels_and_a_limit_of_its_own():
    neurons = FLAX.override({"layers": Neurons(stack=(0,))})
    optimizer = neuron_optax.scale_by_apollo(rank=2, neurons=neurons)
    kernels = {"layers/kernel": normal((5, 8, 3))}
    ((_, state, _),) = run(optimizer, kernels, [kernels])
    assert state.rate["layers/kernel"].shape == (5, 1, 8)
    assert state.size["layers/kernel"].shape == (5, 1, 1)


@pytest.mark.parametrize("growth", [1.01, 1.5])
def test_the_norm_of_the_update_grows_no_faster_than_allowed(growth):
    grads = [{"kernel": 10.0**step * normal((8, 3), step)} for step in range(6)]
    sizes = []
    for limit in (growth, 1e9):
        optimizer = neuron_optax.scale_by_apollo(2, eps=100.0, growth=limit)
        steps = run(optimizer, {"kernel": normal((8, 3))}, grads)
        sizes.append([np.linalg.norm(updates["kernel"]) for updates, *_ in steps])
    ratios, free = (np.divide(size[1:], size[:-1]) for size in sizes)
    assert (ratios <= growth * (1 + 1e-5)).all() and ratios.max() > growth * (1 - 1e-5)
    assert free.max() > 2 * growth
    np.testing.assert_allclose(sizes[0][0], sizes[1][0], rtol=1e-6)  # the first is free
