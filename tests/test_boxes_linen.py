"""Params in linen's boxes: the specs of the state come out of them right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.contract_models import run
from tests.sharded import PARAMS, ROWS, WIDTHS, agree, assert_lie, inputs, numbers_of

pytestmark = pytest.mark.slow

BOXES = {
    "Partitioned": (
        linen.with_partitioning,
        PARAMS,
        (("data", "data"), ("model", "model")),
    ),
    "LogicallyPartitioned": (
        linen.with_logical_partitioning,
        {
            "first": {"kernel": P("embed", "mlp"), "bias": P("mlp")},
            "second": {"kernel": P("mlp", "embed"), "bias": P("embed")},
        },
        (("embed", "data"), ("mlp", "model")),
    ),
}


class Network(linen.Module):
    """Two layers; boxes say how each parameter is sharded."""

    box: str

    @linen.compact
    def __call__(self, x):
        """Return one row per row of ``x``."""
        wrap, specs, _ = BOXES[self.box]
        boxed = lambda spec: wrap(linen.initializers.normal(), tuple(spec))
        for width, (name, of) in zip(WIDTHS[1:], specs.items(), strict=True):
            start = {"kernel_init": boxed(of["kernel"]), "bias_init": boxed(of["bias"])}
            x = jnp.tanh(linen.Dense(width, name=name, **start)(x))
        return x


def loss_of(network, x):
    return lambda params: jnp.mean((network.apply({"params": params}, x) - 1) ** 2)


def train(network, optimizer, mesh, rules):
    """Train as the guides of Flax write it; return the specs, the state, the losses."""
    x = jax.device_put(inputs(), NamedSharding(mesh, P("data", None)))
    loss = loss_of(network, x)

    def create(key):
        params = network.init(key, x)["params"]
        return TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)

    def step(state):
        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    key = jax.random.key(0)
    specs = linen.get_partition_spec(jax.eval_shape(create, key))
    shardings = linen.logical_to_mesh_sharding(specs, mesh, rules)
    state = jax.jit(create, out_shardings=shardings)(key)
    compiled = jax.jit(step, in_shardings=(shardings,), out_shardings=(shardings, None))
    losses = []
    for _ in range(3):
        state, loss_now = compiled(state)
        losses.append(float(loss_now))
    return specs, state, losses


def renamed(spec, rules):
    return P(*(dict(rules).get(name, name) for name in spec))


@pytest.mark.parametrize(("make", "expected"), ROWS)
@pytest.mark.parametrize("box", BOXES)
def test_linen_trains_sharded_by_the_specs_of_its_boxes(make, expected, box):
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
    network, optimizer, rules = Network(box), make(0.01), BOXES[box][-1]
    with jax.set_mesh(mesh), linen.logical_axis_rules(rules):
        specs, state, losses = train(network, optimizer, mesh, rules)
    assert losses[-1] < losses[0]
    plain = linen.meta.unbox(state)
    pairs = zip(numbers_of(specs.opt_state), numbers_of(plain.opt_state), strict=True)
    for said, numbers in pairs:
        assert_lie(jax.tree.map(lambda spec: renamed(spec, rules), said), expected)
        assert_lie(jax.tree.map(lambda leaf: leaf.sharding.spec, numbers), expected)
    params = linen.meta.unbox(network.init(jax.random.key(0), inputs())["params"])
    opt_state, loss = optimizer.init(params), loss_of(network, inputs())
    for _ in range(3):
        gradient = jax.grad(loss)(params)
        params, _, opt_state = run(optimizer, params, [gradient], opt_state)
    agree(plain.params, jax.tree.map(np.asarray, params))
