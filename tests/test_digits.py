"""Every strategy trains the digits of the example to 95 % at a documented rate."""

import functools

import jax
import pytest
from flax import nnx

import neuron_optax
from examples.train_digits import Network, split, train
from tests.cases import CASES
from tests.digits_rates import DIGITS

ENOUGH = 0.95  # of the test images
BY_LAYER = {"layerwise", "layerwise_decay"}  # public, but not per neuron: no oracle

data = functools.cache(split)


def unwatched(opt_state):
    return {}


def reached(name, rates, seed=0):
    """Return the share of test images recognised after the last epoch."""
    row = DIGITS[name]
    strategy = getattr(neuron_optax, name)(**rates, **row.options)
    model = Network(nnx.Rngs(seed))
    nnx.update(model, row.start(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, strategy, wrt=nnx.Param)
    accuracies, _ = train(model, optimizer, data(), name, seed=seed, watch=unwatched)
    return accuracies[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_a_strategy_learns_digits(name):
    accuracy = reached(name, DIGITS[name].rates)
    print(f"{name}: {accuracy:.3f} of the test images")
    assert accuracy >= ENOUGH


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_without_a_rate_it_does_not(name):
    nothing = jax.tree.map(lambda rate: 0.0, dict(DIGITS[name].rates))
    assert reached(name, nothing) < ENOUGH


def test_no_strategy_is_left_out():
    assert set(DIGITS) == {n for n, case in CASES.items() if case.alias} | BY_LAYER
