"""Trees and state as Flax holds them, for every strategy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState

from tests.contract_models import CONTENDERS, FREE, run, tree_of

pytestmark = pytest.mark.slow

every_strategy = pytest.mark.parametrize("make", CONTENDERS)

PARAMS = tree_of()
GRADIENTS = [tree_of(seed=seed) for seed in (1, 2, 3)]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # one program fused, the other not: a few ulps
INPUTS = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
TARGETS = jnp.sin(INPUTS.sum(axis=1, keepdims=True))
STEPS = 10


class Layer(NamedTuple):
    """One layer whose fields stand in another order than the keys of a dict."""

    kernel: jax.Array
    bias: jax.Array


def as_tuples(tree):
    return {name: Layer(**layer) for name, layer in tree.items()}


def as_dicts(tree):
    return {name: layer._asdict() for name, layer in tree.items()}


@every_strategy
@pytest.mark.parametrize(
    ("hold", "release"),
    [
        pytest.param(FrozenDict, FrozenDict.unfreeze, id="FrozenDict"),
        pytest.param(as_tuples, as_dicts, id="NamedTuple"),
        pytest.param(lambda tree: [tree], lambda tree: tree[0], id="list"),
    ],
)
def test_container_of_the_params_does_not_matter(make, hold, release):
    _, expected, _ = run(make(0.01), PARAMS, GRADIENTS)
    held = [hold(gradient) for gradient in GRADIENTS]
    _, updates, _ = run(make(0.01), hold(PARAMS), held)
    chex.assert_trees_all_equal_structs(updates, held)
    chex.assert_trees_all_equal([release(update) for update in updates], expected)


class Model(NamedTuple):
    """Params, their loss and its gradient, compiled once for all strategies."""

    params: Any
    loss: Callable[[Any], jax.Array]
    gradient: Callable[[Any], Any]


def model_of(params, outputs):
    """Return the model whose ``outputs(params)`` should be `TARGETS`."""
    loss = lambda params: jnp.mean((outputs(params) - TARGETS) ** 2)
    return Model(params, loss, jax.jit(jax.grad(loss)))


def train(make, model):
    """Train until the loss has fallen; return all updates and all gradients."""
    optimizer, trained = make(0.01), model.params
    state, updates, gradients = optimizer.init(trained), [], []
    for _ in range(STEPS):
        gradients.append(model.gradient(trained))
        update, state = optimizer.update(gradients[-1], state, trained)
        trained = optax.apply_updates(trained, update)
        updates.append(update)
    assert model.loss(trained) < model.loss(model.params)
    return updates, gradients


class Network(nnx.Module):
    """Layers and a table, whose neurons only its name tells."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.tokens = nnx.Embed(len(INPUTS), 4, rngs=rngs)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs):
        """Return one number for each row, whose index is its token."""
        tokens = self.tokens(jnp.arange(len(inputs)))
        return self.second(jnp.tanh(self.first(inputs) + tokens))


def nnx_loss(model):
    return jnp.mean((model(INPUTS) - TARGETS) ** 2)


@pytest.fixture(scope="module")
def nnx_gradient():
    return nnx.jit(nnx.grad(nnx_loss))


@every_strategy
def test_nnx_optimizer_takes_the_steps_of_the_bare_arrays(make, nnx_gradient):
    model = Network()
    optimizer = nnx.Optimizer(model, make(0.01), wrt=nnx.Param)
    params, loss, gradients = nnx.to_pure_dict(nnx.state(model)), nnx_loss(model), []
    for _ in range(STEPS):
        gradient = nnx_gradient(model)
        optimizer.update(model, gradient)
        gradients.append(nnx.to_pure_dict(gradient))
    expected, _, _ = run(make(0.01), params, gradients)
    chex.assert_trees_all_close(nnx.to_pure_dict(nnx.state(model)), expected, **CLOSE)
    assert nnx_loss(model) < loss


@pytest.fixture(scope="module")
def linen():
    model = flax.linen.Sequential([flax.linen.Dense(4), jnp.tanh, flax.linen.Dense(1)])
    params = model.init(jax.random.key(0), INPUTS)
    return model_of(params, lambda params: model.apply(params, INPUTS))


@pytest.mark.parametrize("make", FREE)
def test_linen_train_state_takes_the_steps_of_the_bare_arrays(make, linen):
    _, gradients = train(make, linen)
    state = TrainState.create(apply_fn=None, params=linen.params, tx=make(0.01))
    for gradient in gradients:
        state = state.apply_gradients(grads=gradient)
    expected, _, _ = run(make(0.01), linen.params, gradients)
    chex.assert_trees_all_equal(state.params, expected)
