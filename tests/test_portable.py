"""A step that was written to bytes, for four platforms, is read and run elsewhere."""

import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from neuron_optax import NeuronState, adam_mini
from neuron_optax.portable import register_states
from neuron_optax.sharding import state_specs
from tests.contract_models import (
    CLOSE,
    CONTENDERS,
    injected,
    layer_of,
    normal,
    run,
    types,
)
from tests.sharded import PARAMS, ROWS, WIDTHS, inputs

PLATFORMS = "cpu", "cuda", "tpu", "rocm"
FORMS = {  # the platforms to write for, how far the steps may differ
    "one_platform": (("cpu",), {"rtol": 0, "atol": 0}),
    # XLA may multiply by a reciprocal in one program and divide in the other
    "four_platforms": (PLATFORMS, CLOSE),
}
LAYERS = [layer_of(seed=n) for n in range(3)]  # params, two gradients

every_form = pytest.mark.parametrize(("platforms", "close"), FORMS.values(), ids=FORMS)
every_strategy = pytest.mark.parametrize("make", CONTENDERS)


def written(platforms, step, *args):
    """Write a step for these platforms."""
    register_states()
    return export.export(jax.jit(step), platforms=platforms)(*args).serialize()


def read(data):
    """Read a step."""
    return jax.jit(export.deserialize(data).call)


def assert_portable(optimizer, platforms, close):
    """Assert that the steps of an optimizer are the same once written and read."""
    params, *gradients = LAYERS
    expected = run(jitted(optimizer, optimizer.update), params, gradients)
    state = optimizer.init(params)
    update = read(written(platforms, optimizer.update, params, state, params))
    found = run(jitted(optimizer, update), params, gradients)
    assert types(found) == types(expected)
    chex.assert_trees_all_close(found, expected, **close)


def jitted(optimizer, update):
    return optimizer._replace(update=jax.jit(update))


@every_form
def test_steps_are_the_same_once_written_and_read(platforms, close):
    assert_portable(adam_mini(0.1), platforms, close)


@pytest.mark.slow
@every_form
@every_strategy
def test_steps_of_every_strategy_are_the_same_once_written(make, platforms, close):
    assert_portable(make(0.1), platforms, close)


def halving(step):
    return 0.1 * 0.5**step


WRAPPERS = {
    "schedule": lambda: adam_mini(halving),
    "decay": lambda: optax.chain(adam_mini(0.1), optax.add_decayed_weights(halving)),
    "injected": lambda: injected(adam_mini)(learning_rate=halving),
    "masked": lambda: optax.masked(adam_mini(0.1), {"kernel": True, "bias": False}),
    "partition": lambda: optax.partition(
        {"ours": adam_mini(0.1), "sgd": optax.sgd(0.1)},
        {"kernel": "ours", "bias": "sgd"},
    ),
    "accumulating": lambda: optax.MultiSteps(
        adam_mini(0.1), 2
    ).gradient_transformation(),
    "guarded": lambda: optax.apply_if_finite(adam_mini(0.1), 2),
    "schedule_free": lambda: optax.contrib.schedule_free(adam_mini(0.1), 0.1),
}


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_steps_in_wrappers_are_the_same_once_written(make, platforms, close):
    assert_portable(make(), platforms, close)


ELSEWHERE = """
import pickle, sys
import chex, jax
from jax import export
import optax
from neuron_optax import NeuronState, adam_mini
from neuron_optax.portable import register_states

jax.config.update("jax_platforms", "cpu")
with open(sys.argv[1], "rb") as file:
    data, args, expected = pickle.load(file)
for kind in (optax.EmptyState, optax.EmaState):  # the user comes first
    name = f"optax.{kind.__name__}"
    export.register_namedtuple_serialization(kind, serialized_name=name)
identity = export.export(jax.jit(lambda state: state))(args[1])
for attempt in (identity.serialize, lambda: export.deserialize(data)):
    try:
        attempt()
    except ValueError as error:
        print(error)
for _ in range(2):
    register_states()
chex.assert_trees_all_equal(jax.jit(export.deserialize(data).call)(*args), expected)
"""


def test_another_process_must_register_the_states_and_then_runs_the_step(tmp_path):
    optimizer, (params, gradient, _) = adam_mini(0.1), LAYERS
    args = gradient, optimizer.init(params), params
    data = written(PLATFORMS, optimizer.update, *args)
    path = tmp_path / "step"
    path.write_bytes(pickle.dumps((data, args, read(data)(*args))))
    command = [sys.executable, "-c", ELSEWHERE, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    to_write, to_read = printed.splitlines()
    assert f"unregistered type `{NeuronState}`" in to_write
    assert "unregistered type `neuron_optax.NeuronState`" in to_read


def loss(params, batch):
    for layer in params.values():
        batch = jnp.tanh(batch @ layer["kernel"] + layer["bias"][None])
    return jnp.mean(batch**2)


def network():
    """Draw the params that PARAMS lays out."""
    pairs = zip(PARAMS, WIDTHS, WIDTHS[1:], strict=False)
    return {
        layer: {"kernel": normal(shape), "bias": normal(shape[1:])}
        for layer, *shape in pairs
    }


def sharded(make):
    """Return a train step over eight devices and its arguments."""
    optimizer = make(0.1)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), PARAMS)
    params = jax.device_put(network(), places)
    kept = state_specs(optimizer, params, PARAMS, mesh)

    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init, out_shardings=kept)(params)
    batch = jax.device_put(inputs(), NamedSharding(mesh, P("data")))
    return jax.jit(step, out_shardings=(places, kept)), (params, state, batch)


def assert_lie_alike(found, expected):
    """Assert that every leaf is cut alike, over the same devices."""
    leaves = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    assert all(a.sharding.is_equivalent_to(b.sharding, b.ndim) for a, b in leaves)


def assert_portable_with_shards(make, platforms, close):
    """Assert that two steps over eight devices are the same once written and read."""
    step, (*expected, batch) = sharded(make)
    found, again = expected, read(written(platforms, step, *expected, batch))
    for _ in range(2):
        found, expected = again(*found, batch), step(*expected, batch)
        assert_lie_alike(found, expected)
        chex.assert_trees_all_close(found, expected, **close)


@every_form
def test_sharded_steps_are_the_same_once_written_and_read(platforms, close):
    assert_portable_with_shards(adam_mini, platforms, close)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:state_specs replicates")
@every_form
@pytest.mark.parametrize("make", [pytest.param(r.values[0], id=r.id) for r in ROWS])
def test_sharded_steps_of_every_strategy_are_the_same(make, platforms, close):
    assert_portable_with_shards(make, platforms, close)


def test_a_step_for_eight_devices_refuses_one():
    step, args = sharded(adam_mini)
    with pytest.raises(ValueError, match=r"exported for 8 devices .* with 1 devices"):
        read(written(PLATFORMS, step, *args))(*jax.device_get(args))


def test_a_step_for_one_platform_refuses_another():
    params, *_ = LAYERS
    optimizer = adam_mini(0.1)
    args = params, optimizer.init(params), params
    with pytest.raises(ValueError, match=r"exported for platforms .*'tpu'.* on .*cpu"):
        read(written(["tpu"], optimizer.update, *args))(*args)
