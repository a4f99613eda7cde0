"""Under an explicit mesh the state keeps the sharding its types began with."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.contract_models import (
    CLOSE,
    CONTENDERS,
    normal,
    run,
    types,
    types_around_update,
)

every_strategy = pytest.mark.parametrize("make", CONTENDERS)


def sharded_layers(kernel, bias):
    """Draw params and a gradient cut along these axes of one explicit mesh axis."""
    mesh, side = jax.sharding.get_mesh(), 2 * jax.device_count()

    def draw(seed, shape, spec):
        return jax.device_put(normal(shape, seed=seed), NamedSharding(mesh, P(*spec)))

    return [
        {"kernel": draw(n, (side, side), kernel), "bias": draw(n, (side,), bias)}
        for n in (0, 1)
    ]


@pytest.fixture
def explicit_mesh():
    """All devices in a row; one is enough, since types name the axis all the same."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",), (AxisType.Explicit,))
    with jax.set_mesh(mesh):
        yield


@every_strategy
@pytest.mark.parametrize("bias", [(None,), ("x",)], ids=["whole_bias", "cut_bias"])
@pytest.mark.parametrize(
    "kernel", [("x", None), (None, "x")], ids=["cut_fan_in", "cut_neurons"]
)
def test_explicitly_sharded_state_keeps_its_type(make, kernel, bias, explicit_mesh):
    params, gradient = sharded_layers(kernel, bias)
    before, after = types_around_update(make(0.01), params, gradient)
    assert after == before


@every_strategy
def test_steps_of_a_sharded_fan_in_are_those_of_the_whole(make, explicit_mesh):
    sharded = sharded_layers(kernel=("x", None), bias=(None,))
    params, gradient = jax.tree.map(jnp.asarray, jax.device_get(sharded))
    assert types([params, gradient]) != types(sharded)
    _, (update,), state = run(make(0.01), sharded[0], [sharded[1]])
    _, (expected,), whole = run(make(0.01), params, [gradient])
    assert types(state) == types(make(0.01).init(sharded[0]))
    chex.assert_trees_all_close((update, state), (expected, whole), **CLOSE)
