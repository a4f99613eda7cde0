"""What the core does with numbers that are too large, too few or too short."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import neuron_optax
from neuron_optax import (
    Accumulator,
    adam_mini,
    ema,
    identity,
    inverse_root,
    latest,
    mean_square,
    neuron_adagrad,
    neuron_rmsprop,
    scale_by_weight_norm,
    scale_per_neuron,
    total,
    weight_norm_adam,
)

DENSE = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
TRACE = optax.trace(1.0)
ADAPTIVE = {
    "neuron_adagrad": neuron_adagrad,
    "neuron_rmsprop": neuron_rmsprop,
    "adam_mini": adam_mini,
}


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,), ()])
@pytest.mark.parametrize("build", ADAPTIVE.values(), ids=ADAPTIVE)
def test_fan_in_of_zero_size_gives_finite_updates(build, shape):
    optimizer, grads = build(0.1), {"w": jnp.ones(shape), "one": jnp.ones((2, 2))}
    updates, state = optimizer.update(grads, optimizer.init(grads))
    assert updates["w"].shape == shape
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


@pytest.mark.parametrize("size", [1e15, 1e-15])
@pytest.mark.parametrize(
    "build",  # b2 = 0.999 would lose three digits in 1 - b2
    [neuron_adagrad, neuron_rmsprop, functools.partial(adam_mini, b2=0.9)],
    ids=ADAPTIVE,
)
def test_very_large_and_small_gradients_are_right(build, size):
    rng = np.random.default_rng(0)
    optimizer = build(0.1, eps=1e-20)
    grads = [np.float32(size * rng.normal(size=(30, 4))) for _ in range(3)]
    state, updates = optimizer.init(jnp.asarray(grads[0])), []
    for g in grads:
        update, state = optimizer.update(jnp.asarray(g), state)
        updates.append(update)
    with jax.enable_x64(True):
        state = optimizer.init(jnp.asarray(grads[0], np.float64))
        for g, update in zip(grads, updates, strict=True):
            expected, state = optimizer.update(jnp.asarray(g, np.float64), state)
            # a sum of 30 squares and about ten more roundings, three steps
            tolerance = 3 * 40 * np.finfo(np.float32).eps
            np.testing.assert_allclose(update, expected, rtol=tolerance)


@pytest.mark.parametrize("bad", [1e30, np.inf, np.nan])
@pytest.mark.parametrize("bias", ["own", "kernel"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("build", ADAPTIVE.values(), ids=ADAPTIVE)
def test_a_square_that_overflows_skips_its_neuron_for_one_step(build, bias, bad, dtype):
    rng = np.random.default_rng(0)
    optimizer = build(0.1, bias=bias)
    draw = lambda: {
        "kernel": jnp.asarray(rng.normal(size=(3, 4)), dtype),
        "bias": jnp.asarray(rng.normal(size=4), dtype),
    }
    first, second, third = draw(), draw(), draw()
    _, before = optimizer.update(first, optimizer.init(first))
    loud = {"kernel": second["kernel"].at[1, 2].set(bad), "bias": second["bias"]}
    update, after = optimizer.update(loud, before)
    expected, _ = optimizer.update(second, before)
    memory = [optax.tree.get(state, "memory")["kernel"] for state in (before, after)]
    others = np.array([0, 1, 3])
    assert memory[0][0, 2] == memory[1][0, 2] and memory[0][0, 1] != memory[1][0, 1]
    assert not update["kernel"][:, 2].any()
    assert (update["bias"][2] == 0) == (bias == "kernel")
    np.testing.assert_array_equal(
        update["kernel"][:, others], expected["kernel"][:, others]
    )
    update, _ = optimizer.update(third, after)
    assert 0.01 < np.abs(update["kernel"][:, 2]).max() < 0.5


@pytest.mark.parametrize("bad", [1e30, np.inf, np.nan])
def test_adam_over_the_weight_norm_recovers_too(bad):
    optimizer, params = weight_norm_adam(0.1), jnp.ones((3, 4))
    _, state = optimizer.update(params, optimizer.init(params), params)
    update, state = optimizer.update(params.at[1, 2].set(bad), state, params)
    assert not update[:, 2].any() and update[:, :2].all()
    for _ in range(3):
        update, state = optimizer.update(params, state, params)
    np.testing.assert_allclose(update[:, 2], update[:, 1], rtol=0.3)


def test_redistribution_leaves_out_neurons_without_gradient():
    for build in ADAPTIVE.values():
        optimizer = build(0.1, redistribute=True)
        grads = jnp.array([[0.0, 1.0, 1.0], [0.0, 1.0, -1.0]])
        update, state = optimizer.update(grads, optimizer.init(grads))
        np.testing.assert_allclose(jnp.abs(update[:, 1:]), 0.1, rtol=1e-5)
        assert not update[:, 0].any()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_normalisation_of_rank_two_uses_its_own_rate():
    params = {"norm": {"weight": jnp.full((3, 5), 5.0), "bias": jnp.zeros((3, 5))}}
    optimizer = scale_by_weight_norm(1.0, neurons=neuron_optax.TORCH)
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert (state.rate["norm"]["bias"] == 1.0).all()
    assert (state.rate["norm"]["weight"] == 6.0).all()


def test_a_bias_with_axes_of_length_one_uses_its_kernels_rate():
    params = {"weight": jnp.ones((5, 2, 3, 3)), "bias": jnp.ones((5, 1, 1))}  # Equinox
    optimizer = scale_by_weight_norm(1.0, neurons=neuron_optax.TORCH)
    _, state = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(state.rate["bias"], jnp.full((5, 1, 1), 1 + 18**0.5))


def test_a_statistic_that_is_not_finite_is_not_remembered():
    smallest = Accumulator(jnp.ones_like, jnp.minimum, lambda memory, step: memory)
    inverse = lambda update, param, fan_in: 1 / jnp.sum(update, fan_in, keepdims=True)
    optimizer = scale_per_neuron(inverse, smallest, inverse_root())
    grads = jnp.array([[1.0, 4.0], [-1.0, 4.0]])  # 1 / 0 is infinite, memory is not
    update, _ = optimizer.update(grads, optimizer.init(grads))
    assert not update[:, 0].any() and update[:, 1].all()


def test_the_direction_sees_params_and_extra_arguments():
    def update(updates, state, params=None, *, extra):
        return jax.tree.map(lambda p: p * extra, params), state

    direction = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = {"w": jnp.full((2, 1), 3.0)}
    for optimizer in (
        scale_per_neuron(mean_square, latest(), inverse_root(), direction=direction),
        neuron_optax.scale_by_layer({"w": 1.0}, direction=direction),
    ):
        updates, _ = optimizer.update(params, optimizer.init(params), params, extra=2.0)
        assert updates["w"][0, 0] in (2.0, 6.0)


def test_a_memory_that_overflows_is_left_as_it_was():
    optimizer = scale_per_neuron(mean_square, total(3e38), inverse_root())
    grads = jnp.array([[1e19, 1.0]])  # 3e38 + 1e38 is beyond float32
    update, state = optimizer.update(grads, optimizer.init(grads))
    np.testing.assert_array_equal(state.memory, np.float32([[3e38, 3e38]]))
    assert update[0, 0] == 0 and update[0, 1] > 0


def test_the_bias_correction_survives_low_precision():
    optimizer = scale_per_neuron(mean_square, ema(0.999), inverse_root(1e-8))
    grads = jnp.ones((3, 4), jnp.bfloat16)
    update, _ = optimizer.update(grads, optimizer.init(grads))
    np.testing.assert_array_equal(update, grads)  # exactly 1 / sqrt(1), if corrected


def test_a_traced_decay_of_low_precision_is_raised_to_a_power_in_32_bits():
    decay = jnp.asarray(0.9, jnp.bfloat16)  # 0.8984375
    read = ema(decay).read(jnp.ones((), jnp.float32), jnp.asarray(100))
    np.testing.assert_allclose(read, 1 / (1 - 0.8984375**100), rtol=1e-6)


def test_no_gradient_flows_through_the_norm_of_the_weights():
    optimizer, update = scale_by_weight_norm(0.5), jnp.ones((3, 4))

    def total_update(params):
        state = optimizer.init(params)
        return jnp.sum(optimizer.update(update, state, params)[0])

    assert not jax.grad(total_update)(jnp.ones((3, 4))).any()
    assert total_update(jnp.ones((3, 4))) > total_update(jnp.zeros((3, 4)))


def test_the_rate_need_not_be_stored():
    parts = mean_square, ema(0.9), inverse_root()
    stored = scale_per_neuron(*parts)
    bare = scale_per_neuron(*parts, store_rate=False)
    expected, _ = stored.update(DENSE, stored.init(DENSE))
    updates, state = bare.update(DENSE, bare.init(DENSE))
    assert bare.init(DENSE).rate == state.rate == ()
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_a_strategy_nobody_published_takes_five_lines():
    smallest = Accumulator(
        init=lambda blank: jnp.full_like(blank, jnp.inf),
        update=jnp.minimum,
        read=lambda memory, step: memory,
    )
    optimizer = scale_per_neuron(mean_square, smallest, inverse_root(1e-8))
    state = optimizer.init(jnp.ones((2, 1)))
    for size in (4.0, 2.0, 8.0):
        update, state = optimizer.update(jnp.full((2, 1), size), state)
    assert state.memory.item() == 4.0 and np.allclose(update, 4.0)


BYTES = {  # floats per neuron, full-size arrays
    "adam_mini": (adam_mini(0.1), 1),
    "neuron_adagrad": (neuron_adagrad(0.1), 0),
    "neuron_rmsprop": (neuron_rmsprop(0.1), 0),
}


@pytest.mark.parametrize(("optimizer", "full"), BYTES.values(), ids=BYTES)
def test_the_state_is_as_small_as_promised(optimizer, full):
    kernel = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    sizes = [
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, kernel))
    ]
    vectors = [size for size in sizes if 1 < size < 1024**2]
    assert sizes.count(1024**2) == full and sum(vectors) <= 2 * 1024
    adam = jax.tree.leaves(jax.eval_shape(optax.adam(0.1).init, kernel))
    assert [leaf.size for leaf in adam].count(1024**2) == 2


def test_boxed_params_are_trained_as_the_arrays_in_them():
    boxed = nnx.State(
        {"kernel": nnx.Param(jnp.ones((3, 4))), "bias": nnx.Param(jnp.ones(4))}
    )
    optimizer = adam_mini(0.1, weight_decay=0.1)
    plain = DENSE["Dense_0"]
    updates, state = optimizer.update(boxed, optimizer.init(boxed), boxed)
    expected, _ = optimizer.update(plain, optimizer.init(plain), plain)
    assert jax.tree.structure(updates) == jax.tree.structure(boxed)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.as_pure(updates), nnx.State(expected)
    )
    assert optax.tree.get(state, "memory")["kernel"].shape == (1, 4)


def test_the_momentum_goes_on_where_the_factor_is_zero():
    largest = scale_per_neuron(mean_square, latest(), identity(), direction=TRACE)
    kernel = jnp.array([[1.0, 1e-30], [1.0, 1e-30]])  # whose square is zero
    _, state = largest.update(kernel, largest.init(kernel))
    assert state.rate[0, 1] == 0
    np.testing.assert_array_equal(state.direction.trace, kernel)


def temp_bytes(optimizer, dtype):
    """Return the memory of a donated step beside its arguments and results."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.ones((512, 256), dtype)
    jitted = jax.jit(step, donate_argnums=(0, 1))
    lowered = jitted.lower(params, optimizer.init(params), params)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("build", ADAPTIVE.values(), ids=ADAPTIVE)
def test_narrow_updates_need_no_more_memory_than_wide_ones(build):
    wide = temp_bytes(build(0.1), jnp.float32)
    narrow = temp_bytes(build(0.1), jnp.bfloat16)
    assert narrow <= wide + 4 * 256  # no copy of 4 bytes for each entry
