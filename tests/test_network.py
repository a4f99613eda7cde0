"""A whole network takes the same 50 steps in torch and in Flax."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import neuron_optax
from tests.case import oracle
from tests.cases import CASES

torch = pytest.importorskip("torch")

STEPS, EPOCH = 50, 10
TOLERANCE = 1e-10  # float64; the order of summation differs and 50 steps feed it back
WIDTHS = (10, 20, 10, 2)
LAYERS = [f"Dense_{depth}" for depth in range(3)]
RATE = 0.01


class Mlp(linen.Module):
    """Three linear layers with ReLU between them."""

    @linen.compact
    def __call__(self, x):
        """Return the logits."""
        x = linen.relu(linen.Dense(WIDTHS[1])(x))
        x = linen.relu(linen.Dense(WIDTHS[2])(x))
        return linen.Dense(WIDTHS[3])(x)


class Twin(torch.nn.Module):
    """The same network in torch, with the weights of ``params``."""

    def __init__(self, params):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(*sizes, dtype=torch.float64)
            for sizes in itertools.pairwise(WIDTHS)
        )
        with torch.no_grad():
            for name, layer in zip(LAYERS, self.layers, strict=True):
                layer.weight.copy_(torch.tensor(params[name]["kernel"].T.copy()))
                layer.bias.copy_(torch.tensor(params[name]["bias"]))

    def forward(self, x):
        """Return the logits."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


def oracle_of(case):
    def build(groups):
        given = dict(case.given({"learning_rate": RATE, **case.variants["default"]}))
        return oracle(case.oracle)(groups, given.pop("learning_rate"), **given)

    return build


def layerwise_oracle(groups):
    rates = [{**g, "lr": rate} for g, rate in zip(groups, RATES.values(), strict=True)]
    return oracle("layerwise:Layerwise")(rates, RATE)


def layerwise_decay_oracle(groups):
    return oracle("layerwise_decay:LayerwiseDecay")(groups, RATE, 0.5)


RATES = {"Dense_0": 0.001, "Dense_1": 0.01, "Dense_2": 0.03}


def ours(case):
    options = {"neurons": neuron_optax.FLAX, **case.variants["default"]}
    return functools.partial(case.build, RATE, **options)


def drawn(case):
    """Return the weights from which a strategy starts."""
    return jax.tree.map(np.asarray, case.start(start(), neuron_optax.FLAX))


STRATEGIES = {
    name: (ours(case), oracle_of(case), functools.partial(drawn, case))
    for name, case in CASES.items()
}
STRATEGIES["layerwise"] = (
    lambda: neuron_optax.layerwise(RATES),
    layerwise_oracle,
    lambda: start(),
)
STRATEGIES["layerwise_decay"] = (
    lambda: neuron_optax.layerwise_decay(RATE, 0.5, LAYERS),
    layerwise_decay_oracle,
    lambda: start(),
)


def start():
    rng = np.random.default_rng(0)
    return {
        name: {"kernel": rng.normal(size=(n, m)) / np.sqrt(n), "bias": np.zeros(m)}
        for name, n, m in zip(LAYERS, WIDTHS[:-1], WIDTHS[1:], strict=True)
    }


def batches():
    for step in range(STEPS):
        rng = np.random.default_rng(step % EPOCH)
        x = rng.normal(size=(16, WIDTHS[0]))
        yield x, (x[:, 0] > 0).astype(int)


def in_flax(optimizer, start):
    """Yield the loss and the params after every step."""
    model, params = Mlp(), jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        def loss_of(params):
            logits = model.apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return loss, optax.apply_updates(params, updates), state

    for x, y in batches():
        loss, params, state = step(params, state, x, y)
        yield float(loss), params


def in_torch(build, start):
    """Yield the loss and the weights after every step."""
    model = Twin(start)
    optimizer = build([{"params": [*layer.parameters()]} for layer in model.layers])
    for x, y in batches():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(torch.tensor(x)), torch.tensor(y)
        )
        loss.backward()
        optimizer.step()
        yield loss.item(), model.layers


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("build", "twin", "begin"), STRATEGIES.values(), ids=STRATEGIES
)
def test_a_network_trains_alike_in_flax_and_torch(build, twin, begin):
    losses, weights = [], begin()
    pairs = zip(in_flax(build(), weights), in_torch(twin, weights), strict=True)
    for step, ((loss, params), (expected, layers)) in enumerate(pairs, start=1):
        losses.append(loss)
        np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)
        for name, layer in zip(LAYERS, layers, strict=True):
            for ours, theirs in (("kernel", layer.weight.T), ("bias", layer.bias)):
                np.testing.assert_allclose(
                    params[name][ours],
                    theirs.detach(),
                    rtol=TOLERANCE,
                    atol=TOLERANCE,
                    err_msg=f"step {step}, {name}/{ours}",
                )
    assert len(losses) == STEPS and np.mean(losses[-EPOCH:]) < np.mean(losses[:EPOCH])


@pytest.mark.usefixtures("float64")
def test_the_comparison_notices_another_strategy():
    *_, (_, params) = in_flax(neuron_optax.neuron_rmsprop(RATE), start())
    *_, (_, layers) = in_torch(oracle_of(CASES["neuron_adagrad"]), start())
    assert not np.allclose(params["Dense_1"]["kernel"], layers[1].weight.T.detach())
