"""Bad input is refused by an error that says what was wanted, what came and where."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import neuron_optax
from neuron_optax import (
    adam_mini,
    inverse_root,
    latest,
    layerwise,
    layerwise_decay,
    mean_square,
    neuron_adagrad,
    neuron_rmsprop,
    scale_by_weight_norm,
    scale_per_neuron,
    weight_norm_adam,
)
from neuron_optax.accumulators import require_decay
from neuron_optax.rates import require_positive

DENSE = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
ADAPTIVE = {
    "neuron_adagrad": neuron_adagrad,
    "neuron_rmsprop": neuron_rmsprop,
    "adam_mini": adam_mini,
}

HYPERPARAMETERS = {
    "eps": (
        lambda: neuron_adagrad(0.1, eps=0.0),
        "eps must be positive in float32, got 0.0",
    ),
    "negative eps": (lambda: adam_mini(0.1, eps=-1.0), "eps must be positive"),
    "adam eps": (lambda: weight_norm_adam(0.1, eps=-1.0), "eps must be positive"),
    "nan eps": (
        lambda: inverse_root(float("nan")),
        "eps must be positive in float32, got nan",
    ),
    "decay": (lambda: neuron_rmsprop(0.1, decay=1.0), r"decay must be in \[0, 1\)"),
    "b1": (lambda: adam_mini(0.1, b1=1.5), r"b1 must be in \[0, 1\), got 1.5"),
    "b2": (lambda: weight_norm_adam(0.1, b2=-0.1), r"b2 must be in \[0, 1\)"),
    "initial": (lambda: neuron_adagrad(0.1, -1.0), "initial accumulator value"),
    "floor": (lambda: neuron_optax.reciprocal(0.0), "floor must be positive"),
    "bounds": (lambda: adam_mini(0.1, low=2.0, high=1.0), "low=2.0, high=1.0"),
    "uphill": (lambda: adam_mini(0.1, high=-1.0), "0 <= low <= high > 0"),
    "nan bound": (lambda: adam_mini(0.1, low=float("nan")), "low=nan"),
    "underflow": (lambda: adam_mini(0.1, eps=1e-50), "positive in float32"),
    "numpy decay": (lambda: neuron_optax.ema(np.float64(2.0)), "decay must be in"),
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
    "bias of isolation": (
        lambda: inspect.unwrap(neuron_optax.isolate_nonfinite)(optax.sgd(0.1), bias=""),
        "bias must be 'own' or 'kernel', got ''",
    ),
    "exponent": (lambda: neuron_optax.frequency_sgd(0.1, -1.0), "exponent must be in"),
    "clamp": (
        lambda: neuron_optax.namo_d(0.1, clamp=2.0),
        r"clamp must be in \[0, 1\]",
    ),
    "growth": (lambda: neuron_optax.apollo(0.1, growth=0.5), r"growth must be in \[1,"),
    "period": (lambda: neuron_optax.apollo(0.1, period=0), r"period must be in \[1,"),
    "rank": (lambda: neuron_optax.apollo(0.1, rank=0), "rank must be a positive int"),
    "steps": (lambda: neuron_optax.normuon(0.1, steps=0), r"steps must be in \[1,"),
    "trust": (lambda: neuron_optax.neuron_lars(0.1, -1.0), "trust_coefficient must be"),
    "lars eps": (
        lambda: neuron_optax.neuron_lars(0.1, eps=-1.0),
        r"eps must be in \[0",
    ),
    "increase": (
        lambda: neuron_optax.delta_bar_delta(0.1, -1.0),
        "increase must be in",
    ),
    "gain": (
        lambda: neuron_optax.hypergradient_sgd(0.1, 1.5),
        r"gain must be in \[0, 1",
    ),
    "learned bounds": (
        lambda: neuron_optax.hypergradient_sgd(0.1, low=2.0, high=3.0),
        "0 <= low <= 1 <= high, got low=2.0, high=3.0",
    ),
    "auxiliary": (
        lambda: neuron_optax.normuon(0.1, auxiliary="("),
        r"auxiliary must be a regular expression, got '\('",
    ),
    "rowwise decay": (
        lambda: inspect.unwrap(neuron_optax.rowwise_adagrad)(0.1, decay="l1"),
        "decay must be 'decoupled' or 'l2', got 'l1'",
    ),
    "shape": (
        lambda: inspect.unwrap(neuron_optax.neuron_sgd)(0.1, shape_factor="no"),
        "shape_factor must be one of",
    ),
    "sgd norm": (
        lambda: inspect.unwrap(neuron_optax.neuron_sgd)(0.1, norm="l1"),
        "norm must be 'rms' or 'l2', got 'l1'",
    ),
    "channels": (
        lambda: inspect.unwrap(neuron_optax.scale_by_apollo)(channels="all"),
        "channels must be",
    ),
    "layer decay": (lambda: layerwise_decay(0.1, 1.5, ["a"]), r"decay must be in \(0"),
    "layers": (lambda: layerwise_decay(0.1, 0.5, ["a", "a"]), "distinct patterns"),
}


@pytest.mark.parametrize(
    ("build", "message"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS
)
def test_hyperparameters_out_of_range_raise_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "require",
    [
        functools.partial(inspect.unwrap(require_decay), "b1"),
        functools.partial(inspect.unwrap(require_positive), "b1"),
        inspect.unwrap(neuron_optax.affine),
    ],
)
def test_a_layout_by_position_is_refused(require):
    with pytest.raises(TypeError, match=r"(b1|slope) must be.*got Layout.*neurons="):
        require(neuron_optax.HAIKU)


PARTS = {
    "accumulator must be an Accumulator": (mean_square, neuron_optax.maximum, None),
    "rate must be a Rate": (mean_square, latest(), neuron_optax.inverse_root),
    "statistic must be a function": (0.1, latest(), inverse_root()),
}


@pytest.mark.parametrize("message", PARTS)
def test_a_part_of_another_kind_is_refused_by_its_name(message):
    with pytest.raises(TypeError, match=message):
        inspect.unwrap(scale_per_neuron)(*PARTS[message])


def test_fixed_rates_that_are_no_mapping_are_refused():
    with pytest.raises(
        TypeError, match=r"learning_rates must map patterns .* got 0\.1"
    ):
        inspect.unwrap(neuron_optax.scale_by_layer)(0.1)


def test_a_model_that_is_not_filtered_is_refused_by_its_leaf():
    with pytest.raises(
        TypeError, match=r"activation: params must be.*is_inexact_array"
    ):
        adam_mini(0.1).init({"w": jnp.ones(2), "activation": jax.nn.relu})


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
        r"\['Dense_1'\] are the first to match no leaf",
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


def test_a_pattern_that_swallows_the_next_layers_raises():
    layers = [f"layers/{n}" for n in range(12)]
    params = {"layers": [{"w": jnp.ones(2)} for _ in layers]}
    with pytest.raises(ValueError, match=r"\['layers/10', 'layers/11'\] are the first"):
        layerwise_decay(1.0, 0.5, layers).init(params)
    optimizer = layerwise_decay(1.0, 0.5, [f"{layer}/" for layer in layers])
    rates = optax.tree.get(optimizer.init(params), "rate")["layers"]
    assert [rate["w"].item() for rate in rates] == [0.5**n for n in range(11, -1, -1)]


def test_layerwise_refuses_what_the_core_refuses():
    optimizer, params = layerwise({"w": 0.1}), {"w": jnp.ones((3, 4))}
    with pytest.raises(TypeError, match=r"w: params must be float.*int32"):
        optimizer.init({"w": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match=r"w: .*\(3, 4\) of its parameter"):
        optimizer.update({"w": jnp.ones((1, 4))}, optimizer.init(params), params)
    with pytest.raises(ValueError, match=r"unexpected \['extra'\]"):
        optimizer.update({**params, "extra": params["w"]}, optimizer.init(params))


def test_a_statistic_that_is_not_real_raises():
    count = lambda update, param, fan_in: jnp.sum(update != 0, fan_in, keepdims=True)
    optimizer = scale_per_neuron(count, latest(), inverse_root())
    with pytest.raises(TypeError, match=r"w: statistic must be real floats, got int32"):
        optimizer.init({"w": jnp.ones((3, 4))})


def test_a_kernel_masked_away_inside_a_box_raises():
    params = nnx.State(jax.tree.map(nnx.Param, DENSE["Dense_0"]))
    optimizer = optax.masked(
        scale_by_weight_norm(), jax.tree.map(lambda leaf: leaf.ndim == 1, params)
    )
    with pytest.raises(ValueError, match=r"bias uses the rate of kernel.*masked away"):
        optimizer.init(params)


def test_a_frozen_layer_may_have_a_pattern():
    layer = DENSE["Dense_0"]
    frozen = {"Dense_0": True, "Dense_1": False}
    optimizer = optax.masked(layerwise({"Dense_0": 0.1, "Dense_1": 0.2}), frozen)
    optimizer.init({"Dense_0": layer, "Dense_1": layer})


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


def test_a_statistic_with_a_branch_says_what_jax_says_and_where():
    def statistic(update, param, fan_in):
        return update if jnp.sum(update) > 0 else -update

    optimizer = scale_per_neuron(statistic, latest(), inverse_root())
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        optimizer.init({"w": jnp.ones((3, 4))})
    assert "w: the statistic" in caught.value.__notes__


def test_inside_shard_map_it_raises_unless_told_that_the_fan_in_is_whole():
    mesh = jax.make_mesh((1,), ("data",))
    grads = {"w": jnp.ones((3, 4))}

    def step(neurons):
        optimizer = neuron_adagrad(0.1, neurons=neurons)
        update = lambda g: optimizer.update(g, optimizer.init(grads))[0]
        spec = jax.sharding.PartitionSpec()
        return jax.shard_map(update, mesh=mesh, in_specs=spec, out_specs=spec)(grads)

    with pytest.raises(ValueError, match=r"w: inside shard_map.*reduce_over"):
        step(neuron_optax.Neurons())
    assert step(neuron_optax.Neurons(reduce_over=()))["w"].shape == (3, 4)
