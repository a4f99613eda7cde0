"""What the core refuses, and what it does with numbers that are too large or absent."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import (
    Accumulator,
    adam_mini,
    ema,
    inverse_root,
    latest,
    layerwise,
    layerwise_decay,
    mean_square,
    neuron_adagrad,
    neuron_rmsprop,
    scale_by_weight_norm,
    scale_per_neuron,
    total,
    weight_norm_adam,
)

DENSE = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
ADAPTIVE = {
    "neuron_adagrad": neuron_adagrad,
    "neuron_rmsprop": neuron_rmsprop,
    "adam_mini": adam_mini,
}

HYPERPARAMETERS = {
    "eps": (lambda: neuron_adagrad(0.1, eps=0.0), "eps must be positive, got 0.0"),
    "negative eps": (lambda: adam_mini(0.1, eps=-1.0), "eps must be positive"),
    "adam eps": (lambda: weight_norm_adam(0.1, eps=-1.0), "eps must be positive"),
    "nan eps": (lambda: inverse_root(float("nan")), "eps must be positive, got nan"),
    "decay": (lambda: neuron_rmsprop(0.1, decay=1.0), r"decay must be in \[0, 1\)"),
    "b1": (lambda: adam_mini(0.1, b1=1.5), r"b1 must be in \[0, 1\), got 1.5"),
    "b2": (lambda: weight_norm_adam(0.1, b2=-0.1), r"b2 must be in \[0, 1\)"),
    "initial": (lambda: neuron_adagrad(0.1, -1.0), "initial accumulator value"),
    "floor": (lambda: neuron_optax.reciprocal(0.0), "floor must be positive"),
    "bounds": (lambda: adam_mini(0.1, low=2.0, high=1.0), "low=2.0, high=1.0"),
    "norm": (
        lambda: inspect.unwrap(scale_by_weight_norm)(norm="l1"),
        "norm must be 'l2' or 'rms', got 'l1'",
    ),
    "bias": (
        lambda: inspect.unwrap(scale_per_neuron)(
            mean_square, latest(), inverse_root(), bias="none"
        ),
        "bias must be 'own' or 'kernel', got 'none'",
    ),
    "layer decay": (lambda: layerwise_decay(0.1, 1.5, ["a"]), r"decay must be in \(0"),
    "layers": (lambda: layerwise_decay(0.1, 0.5, ["a", "a"]), "distinct patterns"),
}


@pytest.mark.parametrize(
    ("build", "message"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS
)
def test_hyperparameters_out_of_range_raise_at_construction(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_traced_hyperparameters_are_not_looked_at():
    def step(eps, decay):
        optimizer = neuron_rmsprop(0.1, decay=decay, eps=eps, low=eps, high=decay)
        return optimizer.update(DENSE, optimizer.init(DENSE))[0]

    updates = jax.jit(step)(-1.0, 2.0)
    assert jnp.shape(updates["Dense_0"]["kernel"]) == (3, 4)


UNMATCHED = {
    "leaf": (
        lambda: layerwise({"kernel": 0.1}),
        r"matches \['Dense_0/bias'\].*default",
    ),
    "pattern": (
        lambda: layerwise({"Dense_1": 0.1}, 0.1),
        r"\['Dense_1'\] match no leaf",
    ),
    "depth": (
        lambda: layerwise_decay(0.1, 0.5, ["bias"]),
        r"matches \['Dense_0/kernel'\]",
    ),
}


@pytest.mark.parametrize(("build", "message"), UNMATCHED.values(), ids=UNMATCHED)
def test_leaves_and_patterns_without_each_other_raise(build, message):
    with pytest.raises(ValueError, match=message):
        build().init(DENSE)


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_params_none_raises_where_the_weights_are_needed(norm):
    optimizer = scale_by_weight_norm(norm=norm)
    with pytest.raises(ValueError, match=r"Dense_0/bias.*pass params"):
        optimizer.update(DENSE, optimizer.init(DENSE))


@pytest.mark.parametrize("build", ADAPTIVE.values(), ids=ADAPTIVE)
def test_params_none_is_fine_elsewhere(build):
    optimizer = build(0.1)
    optimizer.update(DENSE, optimizer.init(DENSE))


def test_integer_params_raise():
    with pytest.raises(TypeError, match=r"a/table: params must be float.*int32"):
        adam_mini(0.1).init({"a": {"table": jnp.ones((3, 4), jnp.int32)}})


def test_a_kernel_that_is_masked_away_raises():
    optimizer = optax.masked(
        adam_mini(0.1, bias="kernel"), {"Dense_0": {"kernel": False, "bias": True}}
    )
    with pytest.raises(ValueError, match=r"Dense_0/bias .*Dense_0/kernel.*masked away"):
        optimizer.init(DENSE)


SIBLINGS = {
    "per entry": (
        neuron_optax.PER_ENTRY,
        r"got \(\[\], \[4\]\) and \(\[\], \[3, 4\]\)",
    ),
    "other axis": (neuron_optax.Neurons((0,)), r"\[4\]\) and \(\[\], \[3\]\)"),
}


@pytest.mark.parametrize(("layout", "message"), SIBLINGS.values(), ids=SIBLINGS)
def test_a_kernel_with_other_neurons_raises(layout, message):
    wanted = "Dense_0/bias uses the rate of Dense_0/kernel.*"
    with pytest.raises(ValueError, match=wanted + message):
        adam_mini(0.1, neurons=layout, bias="kernel").init(DENSE)


def test_a_bias_without_kernel_and_normalisation_use_their_own_rate():
    params = {
        "lone": {"bias": jnp.array([1.0, 2.0])},
        "norm": {"weight": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0, 4.0])},
    }
    optimizer = scale_by_weight_norm(1.0)
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert state.rate["lone"]["bias"].tolist() == [2.0, 3.0]
    assert state.rate["norm"]["bias"].tolist() == [4.0, 5.0]


MISFITS = {
    "missing": (
        {"Dense_0": {"kernel": jnp.ones((3, 4))}},
        r"missing \['Dense_0/bias'\]",
    ),
    "None": (
        {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": None}},
        r"missing \['Dense_0/bias'\]",
    ),
    "unexpected": ({**DENSE, "extra": jnp.ones(2)}, r"unexpected \['extra'\]"),
    "shape": (
        {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(4)}},
        r"Dense_0/kernel of shape \(3, 5\).*\(1, 5\).*state has \(1, 4\)",
    ),
    "rank": (
        {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones((1, 4))}},
        r"Dense_0/bias of shape \(1, 4\).*state has \(4,\)",
    ),
}


@pytest.mark.parametrize(("grads", "message"), MISFITS.values(), ids=MISFITS)
def test_gradients_that_do_not_fit_the_state_raise(grads, message):
    optimizer = neuron_adagrad(0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.update(grads, optimizer.init(DENSE))


def test_gradients_that_do_not_fit_the_params_raise():
    optimizer, params = neuron_adagrad(0.1), {"w": jnp.ones((3, 4))}
    with pytest.raises(
        ValueError, match=r"w: .*\(3, 4\) of its parameter, got \(2, 4\)"
    ):
        optimizer.update({"w": jnp.ones((2, 4))}, optimizer.init(params), params)


def test_a_statistic_that_drops_its_fan_in_axes_raises():
    optimizer = scale_per_neuron(
        lambda update, param, fan_in: jnp.mean(update**2, fan_in),
        latest(),
        inverse_root(),
    )
    with pytest.raises(
        ValueError, match=r"w of shape \(3, 4\).*\(1, 4\).*statistic has"
    ):
        optimizer.init({"w": jnp.ones((3, 4))})


def test_inside_shard_map_it_raises_unless_told_that_the_fan_in_is_whole():
    mesh = jax.make_mesh((1,), ("data",))
    grads = {"w": jnp.ones((3, 4))}

    def step(neurons):
        optimizer = neuron_adagrad(0.1, neurons=neurons)
        update = lambda g: optimizer.update(g, optimizer.init(grads))[0]
        spec = jax.sharding.PartitionSpec()
        return jax.shard_map(update, mesh=mesh, in_specs=spec, out_specs=spec)(grads)

    with pytest.raises(NotImplementedError, match=r"w: inside shard_map.*reduce_over"):
        step(neuron_optax.Neurons())
    assert step(neuron_optax.Neurons(reduce_over=()))["w"].shape == (3, 4)


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
@pytest.mark.parametrize("build", ADAPTIVE.values(), ids=ADAPTIVE)
def test_a_square_that_overflows_skips_its_neuron_for_one_step(build, bias, bad):
    rng = np.random.default_rng(0)
    optimizer = build(0.1, bias=bias)
    draw = lambda: {
        "kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
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
    assert 0.01 < np.abs(update["kernel"][:, 2]).max() < 0.5  # as if it never happened


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
