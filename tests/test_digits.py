"""Every strategy trains the digits of the example to 95 % at a documented rate."""

import functools

import jax
import pytest
from flax import nnx

from examples.train_digits import FIXED, LAYERS, Network, split, train
from neuron_optax import FLAX, layerwise, layerwise_decay
from tests.cases import CASES

ENOUGH = 0.95  # of the test images
LEARNERS = {  # the strategy, its rates, what it starts from
    name: (case.build, case.digits, lambda params, case=case: case.start(params, FLAX))
    for name, case in CASES.items()
    if case.alias
} | {
    "layerwise": (layerwise, FIXED, lambda params: params),
    "layerwise_decay": (
        functools.partial(layerwise_decay, decay=0.4, layers=LAYERS),
        4e-3,
        lambda params: params,
    ),
}
SOME = list(LEARNERS)[::5]

data = functools.cache(split)
pytestmark = pytest.mark.slow


def reached(name, scale=1.0, seed=0):
    """Return the share of test images recognised after the last epoch."""
    strategy, rates, start = LEARNERS[name]
    optimizer = strategy(jax.tree.map(lambda rate: scale * rate, rates))
    model = Network(nnx.Rngs(seed))
    nnx.update(model, start(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    unwatched = lambda opt_state: {}
    accuracies, _ = train(model, optimizer, data(), name, seed=seed, watch=unwatched)
    return accuracies[-1]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_strategy_learns_digits(name):
    accuracy = reached(name)
    print(f"{name}: {accuracy:.3f} of the test images")
    assert accuracy >= ENOUGH


@pytest.mark.parametrize("name", SOME)
def test_without_a_rate_it_does_not(name):
    assert reached(name, scale=0.0) < ENOUGH
