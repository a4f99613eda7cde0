"""Training resumes from a checkpoint bit for bit; one of other params is refused."""

import contextlib
import pickle

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType

from neuron_optax import Neurons, adam_mini
from tests.contract_models import (
    ALIASES,
    CONTENDERS,
    differ,
    injected,
    layer_of,
    normal,
    run,
    types,
)

pytestmark = pytest.mark.slow

every_strategy = pytest.mark.parametrize("make", CONTENDERS)

LAYERS = [layer_of(seed=n) for n in range(3)]  # params, two gradients


def through_bytes(tree, blank, path):
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(tree))
    return jax.tree.map(jnp.asarray, restored)  # NumPy's bfloat16 rounds otherwise


def through_state_dict(tree, blank, path):
    state_dict = flax.serialization.to_state_dict(tree)
    return flax.serialization.from_state_dict(blank, state_dict)


def through_pickle(tree, blank, path):
    return pickle.loads(pickle.dumps(tree))


def through_orbax(tree, blank, path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "checkpoint", blank)


EVERY_FORMAT = through_bytes, through_state_dict, through_pickle, through_orbax


def assert_resumes(optimizer, params, gradients, formats, path):
    """Assert that a checkpoint after the first gradient changes nothing later."""
    midway, _, state = run(optimizer, params, gradients[:1])
    blank = params, optimizer.init(params)
    expected, _, end = run(optimizer, midway, gradients[1:], state)
    forgotten, _, _ = run(optimizer, midway, gradients[1:], blank[1])
    assert differ(expected, forgotten)
    for through in formats:
        restored = through((midway, state), blank, path)
        assert types(restored) == types((midway, state))
        chex.assert_trees_all_equal(restored, (midway, state))
        assert jax.tree.structure(restored) == jax.tree.structure((midway, state))
        continued, _, last = run(optimizer, restored[0], gradients[1:], restored[1])
        assert types((continued, last)) == types((expected, end))
        chex.assert_trees_all_equal((continued, last), (expected, end))


def narrow(layer):
    """Return the layer with its kernel in bfloat16; its numbers stay in float32."""
    return layer | {"kernel": layer["kernel"].astype(jnp.bfloat16)}


@every_strategy
def test_training_continues_from_a_saved_state(make, tmp_path):
    params, *gradients = map(narrow, LAYERS)
    assert_resumes(make(0.1), params, gradients, EVERY_FORMAT, tmp_path)


def in_a_masked_chain(make):
    chained = optax.chain(optax.clip_by_global_norm(1.0), make(0.1))
    return optax.masked(chained, {"first": True, "second": False})


def in_a_partition_on_a_schedule(make):
    halving = lambda step: 0.1 * 0.5**step
    ours = injected(make)(learning_rate=halving)
    optimizers = {"ours": ours, "sgd": optax.sgd(0.1)}
    return optax.partition(optimizers, {"first": "ours", "second": "sgd"})


@every_strategy
@pytest.mark.parametrize("wrap", [in_a_masked_chain, in_a_partition_on_a_schedule])
def test_training_continues_from_the_state_of_wrappers(make, wrap, tmp_path):
    params, *gradients = ({"first": layer, "second": layer} for layer in LAYERS)
    assert_resumes(wrap(make), params, gradients, [through_orbax], tmp_path)


@every_strategy
@pytest.mark.parametrize("through", [through_bytes, through_orbax])
def test_training_continues_from_a_saved_train_state(make, through, tmp_path):
    start, *gradients = LAYERS
    create = lambda params: TrainState.create(apply_fn=None, params=params, tx=tx)
    tx = make(0.1)
    midway = create(start).apply_gradients(grads=gradients[0])
    restored = through(midway, create(start), tmp_path)
    chex.assert_trees_all_equal(restored, midway)
    expected = midway.apply_gradients(grads=gradients[1])
    continued = restored.apply_gradients(grads=gradients[1])
    forgotten = create(midway.params).apply_gradients(grads=gradients[1])
    assert types(continued) == types(expected)
    chex.assert_trees_all_equal(continued, expected)
    assert differ(forgotten.params, expected.params)


class Training:
    """An nnx model and its optimizer, sharded by the names in its boxes or whole."""

    def __init__(self, make, seed, kernel=None, bias=None):
        named = lambda names: {"out_sharding": names} if names else {}
        names = {"kernel_metadata": named(kernel), "bias_metadata": named(bias)}
        width = 4 * jax.device_count()
        self.model = nnx.Linear(4, width, rngs=nnx.Rngs(seed), **names)
        self.optimizer = nnx.Optimizer(self.model, make(0.1), wrt=nnx.Param)

    def step(self):
        """Take a step along a gradient that the params alone decide."""
        gradient = jax.tree.map(jnp.cos, nnx.state(self.model, nnx.Param))
        self.optimizer.update(self.model, gradient)

    def state(self):
        """Return what a checkpoint should hold."""
        return {"model": nnx.state(self.model), "optimizer": nnx.state(self.optimizer)}

    def load(self, model, optimizer=None):
        """Take over a state of the model and perhaps of the optimizer."""
        nnx.update(self.model, model)
        nnx.update(self.optimizer, optimizer or {})


def explicit_mesh():
    devices = (jax.device_count(),)
    return jax.set_mesh(jax.make_mesh(devices, ("x",), (AxisType.Explicit,)))


SHARDED = {"kernel": (None, "x"), "bias": ("x",)}


@every_strategy
@pytest.mark.parametrize(
    ("mesh", "names"),
    [
        pytest.param(contextlib.nullcontext, {}, id="whole"),
        pytest.param(explicit_mesh, SHARDED, id="sharded"),
    ],
)
def test_nnx_training_continues_from_a_saved_state(make, mesh, names, tmp_path):
    with mesh():
        expected, resumed, forgetful = (Training(make, n, **names) for n in range(3))
        expected.step()
        saved = expected.state()
        restored = through_orbax(saved, resumed.state(), tmp_path)
        assert types(restored) == types(saved)
        chex.assert_trees_all_equal(restored, saved)
        resumed.load(**restored)
        forgetful.load(restored["model"])
        for training in (expected, resumed, forgetful):
            training.step()
        assert types(resumed.state()) == types(expected.state())
        chex.assert_trees_all_equal(resumed.state(), expected.state())
        assert differ(forgetful.state()["model"], expected.state()["model"])


def two_layers(kernel):
    """Draw the params of two layers, the kernel of the second of this shape."""
    second = {"bias": normal(kernel[-1:]), "kernel": normal(kernel)}
    return {"first": layer_of(), "second": second}


MOMENTUM = "adam_mini", "weight_norm_adam", "layerwise"
WITH_MOMENTUM = [row for row in ALIASES if row.id.startswith(MOMENTUM)]
MISFITS = {  # who notices, second kernel of the state and of the params, the error
    "neurons": (ALIASES, (4, 5), (4, 4), r"second/(bias|kernel) .*5"),
    "fan_in": (WITH_MOMENTUM, (3, 4), (4, 4), r"second/kernel .*\(3, 4\)"),
    "broadcast": (WITH_MOMENTUM, (1, 4), (4, 4), r"second/kernel .*\(1, 4\)"),
    "shrunk": (WITH_MOMENTUM, (3, 4), (1, 4), r"second/kernel .*\(3, 4\)"),
}


@pytest.mark.parametrize("through", [through_bytes, through_pickle])
@pytest.mark.parametrize(
    ("make", "old", "new", "message"),
    [
        pytest.param(*row.values, *expected, id=f"{misfit}-{row.id}")
        for misfit, (rows, *expected) in MISFITS.items()
        for row in rows
    ],
)
def test_state_of_other_params_is_refused_by_its_leaf(make, old, new, message, through):
    params, optimizer = two_layers(new), make(0.1)
    state, blank = optimizer.init(two_layers(old)), optimizer.init(params)
    restored = through(state, blank, path=None)
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, restored, params)
    optimizer.update(params, through(blank, blank, path=None), params)


def test_orbax_refuses_a_target_of_another_shape_without_naming_the_leaf(tmp_path):
    kernels = ({"kernel": normal(shape)} for shape in ((3, 4), (4, 4)))
    states = map(adam_mini(0.1).init, kernels)
    saved, blank = (optax.tree.get(state, "ema") for state in states)
    message = r"^Requested shape: \(4, 4\) is not compatible with .* shape: \(3, 4\)"
    with pytest.raises(ValueError, match=message):  # one leaf: no read is left pending
        through_orbax(saved, blank, tmp_path)


def test_state_restored_for_another_layout_is_refused_by_its_leaf(tmp_path):
    params = two_layers((4, 4))
    state = adam_mini(0.1).init(params)
    transposed = adam_mini(0.1, neurons=Neurons((0,)))
    restored = through_bytes(state, transposed.init(params), tmp_path)
    with pytest.raises(ValueError, match=r"first/kernel .* \(4, 1\).* has \(1, 4\)"):
        transposed.update(params, restored, params)
