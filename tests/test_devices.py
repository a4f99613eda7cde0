"""Layouts of large models on eight devices: the steps and collectives of every row."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import beyond, collectives, within_neurons
from neuron_optax import FLAX, Neurons, adam_mini, neuron_adagrad, neuron_rmsprop
from neuron_optax.sharding import state_specs
from tests.cases import CASES
from tests.contract_models import contenders

pytestmark = pytest.mark.slow

BATCH, STEPS = 8, 3
LAYOUTS = {  # shape of a kernel; specs of kernel, bias and batch
    "data": ((64, 16), P(), P(), P("data")),
    "fully_sharded": ((128, 8), P(("data", "model"), None), P(), P()),
    "tensor_columns": ((64, 24), P(None, "model"), P("model"), P("data")),
    "tensor_rows": ((96, 8), P("model", None), P(), P("data")),
    "both": ((64, 16), P("data", "model"), P("model"), P()),
    "experts": ((2, 64, 16), P("data", None, "model"), P("data", "model"), P()),
}
STACKED = FLAX.override({"experts/kernel": Neurons((2,), stack=(0,))})
ROWS = contenders(STACKED)
MESHES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def specs():
    """Return the specs of the params."""
    return {name: {"kernel": k, "bias": b} for name, (_, k, b, _) in LAYOUTS.items()}


@functools.cache
def params():
    """Draw the params."""
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)
    return {
        name: {"kernel": draw(shape), "bias": draw((*shape[:-2], shape[-1]))}
        for name, (shape, *_) in LAYOUTS.items()
    }


@functools.cache
def batches():
    """Draw what every layer takes in and what comes back to it, for each step."""
    rng = np.random.default_rng(1)

    def pair(shape):
        *stack, inputs, outputs = shape
        sides = (BATCH, *stack, inputs), (BATCH, *stack, outputs)
        return tuple(rng.standard_normal(side).astype(np.float32) for side in sides)

    return [
        {name: pair(shape) for name, (shape, *_) in LAYOUTS.items()}
        for _ in range(STEPS)
    ]


def gradients(batch):
    """Return the gradients of layers that are linear, averaged over the batch."""
    explicit = jax.sharding.get_abstract_mesh().explicit_axes

    def of_layer(name, x, back):
        _, kernel, bias, _ = LAYOUTS[name]
        sides = "bei,beo->eio" if x.ndim == 3 else "bi,bo->io"
        out = kernel if explicit else None
        down = jnp.mean(back, axis=0)
        return {
            "kernel": jnp.einsum(sides, x, back, out_sharding=out) / BATCH,
            "bias": jax.sharding.reshard(down, bias) if explicit else down,
        }

    return {name: of_layer(name, *pair) for name, pair in batch.items()}


def step_of(optimizer):
    """Return a train step."""

    def step(params, state, batch):
        updates, state = optimizer.update(gradients(batch), state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def alone(make):
    """Train on one device."""
    optimizer = make(0.01)
    step, trained = jax.jit(step_of(optimizer)), params()
    state = jax.jit(optimizer.init)(trained)
    for batch in batches():
        trained, state = step(trained, state, batch)
    return jax.device_get(trained)


def shard(tree, specs, mesh):
    """Put a tree where its specs say."""
    lie = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.device_put(tree, lie)


def batch_specs():
    """Return the specs of what goes through every layer."""
    return {name: (batch, batch) for name, (*_, batch) in LAYOUTS.items()}


def start(optimizer, mesh):
    """Return sharded params and state, and the compiled step that keeps them so."""
    lie = state_specs(optimizer, params(), specs(), mesh)
    trained = shard(params(), specs(), mesh)
    state = jax.jit(optimizer.init, out_shardings=lie)(trained)
    named = jax.tree.map(lambda leaf: leaf.sharding, trained)
    step = jax.jit(step_of(optimizer), out_shardings=(named, lie))
    batch = shard(batches()[0], batch_specs(), mesh)
    return trained, state, step.lower(trained, state, batch).compile()


@pytest.fixture(params=MESHES.values(), ids=MESHES, scope="module")
def mesh(request):
    """Eight devices in two rows."""
    return jax.make_mesh((2, 4), ("data", "model"), (request.param,) * 2)


@pytest.fixture(scope="module")
def without_us(mesh):
    """List the collectives of gradients that descend by themselves."""
    with jax.set_mesh(mesh):
        *_, step = start(optax.sgd(0.01), mesh)
    return collectives(step.as_text())


def tolerance(name):
    """Return how far steps may be apart.

    Sums in another order differ by an ulp, 1.2e-7, of what is summed. Newton-Schulz
    multiplies that by up to 3.4 in each of its five steps, 485 in all: 6e-5.
    """
    case = CASES.get(name.split("-")[0])
    return 1e-6 if case is None or case.isolated else 1e-4


def far(trained, expected):
    """Return how far leaves are apart at most, as shares of what is allowed."""
    apart = lambda a, b: np.max(np.abs(np.asarray(a) - b)) / max(1, np.max(np.abs(b)))
    return max(jax.tree.leaves(jax.tree.map(apart, trained, expected)))


def most_neurons():
    """Return how many neurons the largest layer has."""
    return max(math.prod(of["bias"].shape) for of in params().values())


VECTORS = [row for row in ROWS if tolerance(row.id) == 1e-6]
MATRICES = [row for row in ROWS if row not in VECTORS]


def test_a_piece_of_a_kernel_is_longer_than_a_vector_of_neurons(mesh):
    kernels = [of["kernel"] for of in shard(params(), specs(), mesh).values()]
    pieces = [kernel.addressable_shards[0].data.size for kernel in kernels]
    assert min(pieces) > most_neurons()


def trained_on(mesh, make):
    """Return the trained params and what the step is made of."""
    with jax.set_mesh(mesh):
        trained, state, step = start(make(0.01), mesh)
        for batch in batches():
            trained, state = step(trained, state, shard(batch, batch_specs(), mesh))
    return trained, collectives(step.as_text())


@pytest.mark.parametrize("make", VECTORS)
def test_steps_are_those_of_one_device_and_gather_nothing(make, mesh, without_us):
    trained, made = trained_on(mesh, make)
    assert far(trained, alone(make)) <= 1e-6
    for one in beyond(made, without_us):
        assert one.kind == "all-reduce" and one.size <= most_neurons(), one


@pytest.mark.filterwarnings("ignore:state_specs replicates")
@pytest.mark.parametrize("make", MATRICES)
def test_steps_of_matrices_are_those_of_one_device(make, mesh, without_us):
    """They multiply whole matrices, which are gathered for it."""
    trained, made = trained_on(mesh, make)
    assert far(trained, alone(make)) <= 1e-4
    extra = beyond(made, without_us)
    print(*sorted(set(map(str, extra))), sep="\n")
    assert any(one.size > most_neurons() for one in extra)


def test_a_rate_costs_one_number_per_neuron_at_most(mesh, without_us):
    numbers = [math.prod(of["bias"].shape) for of in params().values()]
    for make in (adam_mini, neuron_adagrad, neuron_rmsprop):
        of_leaves = functools.partial(make, neurons=STACKED)
        _, made = trained_on(mesh, of_leaves)
        assert within_neurons(beyond(made, without_us), numbers)


def test_the_comparison_notices_another_batch(mesh):
    mini = functools.partial(adam_mini, neurons=STACKED)
    with jax.set_mesh(mesh):
        trained, state, step = start(mini(0.01), mesh)
        for batch in batches()[:1] * STEPS:
            trained, state = step(trained, state, shard(batch, batch_specs(), mesh))
    assert far(trained, alone(mini)) > 1e-3


@pytest.fixture
def auto():
    """Eight devices in two rows, whose programs XLA cuts as it likes."""
    return jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)


def test_a_momentum_pinned_whole_is_gathered_and_seen(auto):
    optimizer = adam_mini(0.01, neurons=STACKED)
    sharded = shard(params(), specs(), auto)
    pinned = jax.tree.map(lambda _: NamedSharding(auto, P()), optimizer.init(params()))
    state = jax.device_put(optimizer.init(params()), pinned)
    update = jax.jit(optimizer.update, out_shardings=(None, pinned))
    made = collectives(update.lower(sharded, state, sharded).compile().as_text())
    assert any(one.kind == "all-gather" and one.size > most_neurons() for one in made)


def test_an_init_jitted_with_the_specs_compiles_the_train_step_once(auto):
    optimizer = adam_mini(0.01, neurons=STACKED)
    lie = state_specs(optimizer, params(), specs(), auto)
    named = jax.tree.map(lambda spec: NamedSharding(auto, spec), specs())

    def compilations(init):
        step = jax.jit(step_of(optimizer), out_shardings=(named, lie))
        trained = shard(params(), specs(), auto)
        state = init(trained)
        for batch in batches():
            batch = shard(batch, batch_specs(), auto)
            trained, state = step(trained, state, batch)
        return step._cache_size()

    assert compilations(jax.jit(optimizer.init, out_shardings=lie)) == 1
    assert compilations(jax.jit(optimizer.init)) == 2
