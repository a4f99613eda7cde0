"""The learning rate that each neuron got is read out of any state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.serialization import to_state_dict
from flax.training.train_state import TrainState

import neuron_optax
from neuron_optax import (
    isolate_nonfinite,
    neuron_adagrad,
    row_adagrad,
    scale_by_layer,
    unique_rows,
)
from neuron_optax.introspection import learning_rates, report
from tests.case import SCHEDULE as SWITCHED
from tests.case import draw, gradients
from tests.cases import CASES

RATE = 0.5
PARAMS = {
    "first": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "second": {"kernel": jnp.ones((2, 4))},
}
LOUD = jax.tree.map(lambda p: jnp.cumsum(p, axis=-1), PARAMS)  # 1, 2, ... by neuron
RATES = jax.tree.map(  # AdaGrad divides the first gradient by its size
    lambda g: RATE / np.asarray(g[:1] if g.ndim > 1 else g), LOUD
)
FIRST = {"first": True, "second": False}
SCHEDULE = optax.linear_schedule(RATE, 0.0, 10)


def after(optimizer, steps=1):
    """Return the state after some steps on the same gradients."""
    state = optimizer.init(PARAMS)
    for _ in range(steps):
        _, state = optimizer.update(LOUD, state, PARAMS)
    return state


def train_state():
    optimizer = neuron_adagrad(RATE)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optimizer)
    return state.apply_gradients(grads=LOUD)


def two_parts():
    other = optax.chain(neuron_adagrad(RATE), optax.identity())
    both = {True: neuron_adagrad(RATE), False: other}
    return after(optax.partition(both, FIRST))


STATES = {
    "chained": lambda: after(optax.chain(optax.clip(1e3), neuron_adagrad(RATE))),
    "partitioned": two_parts,
    "every second step": lambda: after(optax.MultiSteps(neuron_adagrad(RATE), 2), 2),
    "finite": lambda: after(optax.apply_if_finite(neuron_adagrad(RATE), 3)),
    "train state": train_state,
    "isolated": lambda: after(isolate_nonfinite(neuron_adagrad(RATE))),
    "leaves of a checkpoint": lambda: jax.tree.map(
        np.asarray, after(neuron_adagrad(RATE))
    ),
    "a checkpoint as dicts": lambda: to_state_dict(after(neuron_adagrad(RATE))),
    "parts as dicts": lambda: to_state_dict(two_parts()),
    "a train state as dicts": lambda: to_state_dict(train_state()),
}


def assert_rates(found, expected=RATES, rtol=1e-6):
    """Compare trees of rates; the sizes of gradients are exact but for eps."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol)


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_rates_are_found_wherever_the_state_stands(state):
    assert_rates(learning_rates(state(), RATE))
    wrong = jax.tree.map(lambda rate: 2 * rate, RATES)
    with pytest.raises(AssertionError):
        assert_rates(learning_rates(state(), RATE), wrong)


def test_leaves_that_are_masked_stay_so():
    state = after(optax.masked(neuron_adagrad(RATE), FIRST))
    found = learning_rates(state, RATE)
    assert found["second"] == optax.MaskedNode()
    assert_rates(found["first"], RATES["first"])


def test_an_injected_schedule_is_read_from_the_state():
    state = after(optax.inject_hyperparams(neuron_adagrad)(SCHEDULE), 2)
    assert_rates(learning_rates(state), learning_rates(state, SCHEDULE))
    now = jax.tree.map(lambda rate: 0.9 * rate / 2**0.5, RATES)
    assert_rates(learning_rates(state), now)
    assert_rates(learning_rates(to_state_dict(state)), now)


def test_parts_with_injected_rates_of_their_own_are_told_apart():
    injected = optax.inject_hyperparams(neuron_adagrad)
    both = {True: injected(RATE), False: injected(2 * RATE)}
    found = learning_rates(after(optax.partition(both, FIRST)))
    double = jax.tree.map(lambda rate: 2 * rate, RATES["second"])
    assert_rates(found, {"first": RATES["first"], "second": double})
    beside = optax.inject_hyperparams(optax.sgd)(3.0)
    assert_rates(learning_rates(after(optax.chain(injected(RATE), beside))))


def test_a_rate_that_is_injected_once_counts_for_all():
    scaled = neuron_optax.scale_per_neuron(
        neuron_optax.mean_square, neuron_optax.total(), neuron_optax.inverse_root()
    )
    step = optax.inject_hyperparams(optax.scale_by_learning_rate)(RATE)
    assert_rates(learning_rates(after(optax.chain(scaled, step))))


def test_a_rate_injected_for_another_part_does_not_count():
    injected = optax.inject_hyperparams(optax.adam)
    both = {True: injected(RATE), False: neuron_adagrad(RATE)}
    with pytest.raises(ValueError, match="beside them, of which there are 0"):
        learning_rates(after(optax.partition(both, FIRST)))


def test_a_sweep_is_read_under_vmap():
    sweep = optax.inject_hyperparams(neuron_adagrad)(RATE)
    two = jax.vmap(lambda _: after(sweep))(jnp.arange(2))
    with pytest.raises(ValueError, match=r"got the shape \(2,\): read .* under vmap"):
        learning_rates(two)
    found = jax.vmap(learning_rates)(two)
    assert_rates(jax.tree.map(lambda of: of[1], found))


def test_a_factor_that_is_missing_in_a_product_is_asked_for():
    parts = neuron_optax.mean_square, neuron_optax.total(), neuron_optax.inverse_root()
    silent = neuron_optax.scale_per_neuron(*parts, store_rate=False)
    state = after(optax.chain(silent, neuron_adagrad(RATE)))
    with pytest.raises(ValueError, match="first/bias has two factors"):
        learning_rates(state, RATE)
    layout = neuron_optax.FLAX.override(
        {"second": neuron_optax.Neurons(blocks=((-1, 2),))}
    )
    blocks = neuron_optax.scale_per_neuron(*parts, neurons=layout)
    with pytest.raises(ValueError, match="must have the same blocks"):
        learning_rates(after(optax.chain(blocks, neuron_adagrad(RATE))), RATE)


def test_two_rates_of_a_chain_are_multiplied():
    doubled = scale_by_layer({"": 2.0})
    found = learning_rates(after(optax.chain(doubled, neuron_adagrad(RATE))), RATE)
    assert_rates(found)  # twice the rate of half the size


def test_an_nnx_optimizer_is_read_as_it_is():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, neuron_adagrad(RATE), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    found = learning_rates(optimizer, RATE)
    np.testing.assert_allclose(found["kernel"], np.full((1, 2), RATE), rtol=1e-6)


def test_rates_can_be_read_inside_jit():
    state = after(neuron_adagrad(RATE))
    assert_rates(jax.jit(learning_rates)(state, RATE))
    for ours, theirs in zip(
        *map(jax.tree.leaves, (jax.jit(report)(state, RATE), report(state, RATE))),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_rates_of_rows_are_made_of_what_is_remembered():
    table, grads = jnp.ones((1000, 2)), jnp.array([[3.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    optimizer = row_adagrad(RATE, eps=1.0)
    rows = unique_rows(jnp.array([7, 8]), table_size=1000)
    _, state = optimizer.update(grads, optimizer.init(table), row_ids=rows)
    factor = lambda memory, step: 1 / (jnp.sqrt(memory) + 1.0)
    found = learning_rates(state, RATE, factor=factor)
    assert found[6:10].ravel().tolist() == [RATE, RATE / 4, RATE / 2, RATE]
    assert report(state, RATE, factor=factor).layers[""].inactive == 0.998
    with pytest.raises(ValueError, match="give factor="):
        learning_rates(state, RATE)


def test_what_is_not_there_is_said():
    with pytest.raises(ValueError, match="no rates are in the state"):
        learning_rates(after(optax.adam(RATE)), RATE)
    with pytest.raises(
        ValueError, match="learning_rate must be given, or be a hyperparameter"
    ):
        learning_rates(after(neuron_adagrad(RATE)))
    with pytest.raises(ValueError, match=r"strategy must be one of .*, got 'adagard'"):
        report(after(neuron_adagrad(RATE)), RATE, strategy="adagard")


QUICK = {"adam_mini", "neuron_adagrad"}
DECLARED = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] * (name not in QUICK))
    for name, case in CASES.items()
    if case.direction
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", DECLARED)
def test_rates_times_direction_are_the_step(case):
    params = jax.tree.map(jnp.asarray, draw(0))
    rate = lambda step: case.learning_rate * SWITCHED(step)
    optimizer = case.build(learning_rate=rate, **case.options)
    state, direction = optimizer.init(params), case.direction.init(params)
    for grads in gradients(9, case.sparse):
        updates, state = optimizer.update(grads, state, params)
        moved, direction = case.direction.update(grads, direction, params)
        found = learning_rates(state, rate)
        expected = jax.tree.map(lambda r, d: -r * d, found, moved)
        for ours, theirs in zip(
            *map(jax.tree.leaves, (updates, expected)), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-300)
        params = optax.apply_updates(params, updates)
    late = learning_rates(state, lambda step: 1.001 * rate(step))
    with pytest.raises(AssertionError):
        assert_rates(late, found)


def test_a_fixed_rate_is_read_with_a_learning_rate_of_one():
    found = learning_rates(after(neuron_optax.layerwise({"": RATE})), 1.0)
    assert_rates(
        found, jax.tree.map(lambda rate: RATE * np.ones([1] * rate.ndim), RATES)
    )
