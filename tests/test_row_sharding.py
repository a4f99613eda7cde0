"""Tables cut by rows and by columns: only what a batch touches travels."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from neuron_optax import (
    apply_row_updates,
    embedding_bag,
    row_adagrad,
    row_adam_mini,
    row_rmsprop,
    take_rows,
    unique_rows,
)
from neuron_optax.sharding import state_specs

SIZE, DIM, BATCH, STEPS = 65536, 64, (24, 4), 3
SPECS = [
    P("rows", None),
    P(None, "columns"),
    P("rows", "columns"),
    P(("rows", "columns")),
]
OPTIMIZERS = {
    "adagrad": row_adagrad(0.1, weight_decay=0.1),
    "catch_up": row_rmsprop(0.1, untouched="catch_up"),
    "momentum": row_adam_mini(0.1, b1=0.9),
}


def step_of(optimizer):
    """Return params, state, ids -> params, state."""

    def step(params, state, ids):
        rows = unique_rows(ids, SIZE)
        compact = take_rows(params, rows)
        grads = jax.grad(lambda c: jnp.sum((embedding_bag(c, rows) - 1) ** 2))(compact)
        updates, state = optimizer.update(grads, state, compact, row_ids=rows)
        return apply_row_updates(params, updates, rows), state

    return step


def data():
    """Draw a table and the ids of some batches, some of them repeated."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, SIZE, (STEPS, *BATCH), np.int32)
    ids[:, :, 1] = ids[:, :, 0]
    return draw.standard_normal((SIZE, DIM), np.float32), ids


def on_one_device(optimizer):
    params, batches = data()
    params, state = jnp.asarray(params), optimizer.init(jnp.asarray(params))
    step = jax.jit(step_of(optimizer))
    for ids in batches:
        params, state = step(params, state, ids)
    return params, state


def sharded(optimizer, spec, kind):
    """Train on eight devices; return what came out and the compiled step."""
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))
    params, batches = data()
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, spec))
        specs = state_specs(optimizer, params, spec, mesh)
        state = jax.jit(optimizer.init, out_shardings=specs)(params)
        out = (NamedSharding(mesh, spec), specs)
        step = jax.jit(step_of(optimizer), donate_argnums=(0, 1), out_shardings=out)
        compiled = step.lower(params, state, jnp.asarray(batches[0])).compile()
        for ids in batches:
            params, state = compiled(params, state, jnp.asarray(ids))
    return params, state, compiled.as_text()


def travels(program):
    """List the numbers of entries of all that travels between devices."""
    moved = r"= (.*?) (?:all-\w+|reduce-scatter|collective-permute)(?:-start)?\("
    shapes = re.findall(r"\[([\d,]*)\]", " ".join(re.findall(moved, program)))
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_sharded_tables_take_the_same_steps_and_stay_there(optimizer, spec, kind):
    params, state, program = sharded(optimizer, spec, kind)
    expected, expected_state = on_one_device(optimizer)
    leaves = map(jax.tree.leaves, ((params, state), (expected, expected_state)))
    pairs = zip(*leaves, strict=True)
    for ours, theirs in pairs:
        # sums of a row in another order
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert params.sharding.is_equivalent_to(
        NamedSharding(params.sharding.mesh, spec), 2
    )
    slots = int(np.prod(BATCH)) + 1
    piece = SIZE // 8  # of one number per row
    assert travels(program) and max(travels(program)) <= slots * DIM < piece


def test_the_count_of_what_travels_notices_a_table():
    mesh = jax.make_mesh((8,), ("rows",))
    cut = jax.device_put(jnp.ones((SIZE, DIM)), NamedSharding(mesh, P("rows")))
    whole = jax.jit(lambda t: t * 2, out_shardings=NamedSharding(mesh, P()))
    assert max(travels(whole.lower(cut).compile().as_text())) >= SIZE * DIM


TEMPORARY = {**OPTIMIZERS, "lazy": row_adam_mini(0.1)}


def memory_of(step, size, optimizer):
    """Return the bytes a compiled step takes beside its arguments, and overwrites."""
    table = jax.ShapeDtypeStruct((size, DIM), jnp.float32)
    state = jax.eval_shape(optimizer.init, table)
    ids = jax.ShapeDtypeStruct((256,), jnp.int32)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, ids)
    memory = lowered.compile().memory_analysis()
    arrays = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((table, state)))
    return memory.temp_size_in_bytes, memory.alias_size_in_bytes >= arrays


@pytest.mark.parametrize("optimizer", TEMPORARY.values(), ids=TEMPORARY)
def test_temporary_memory_does_not_grow_with_the_table(optimizer):
    def step(params, state, ids):
        rows = unique_rows(ids, len(params))
        compact = take_rows(params, rows)
        grads = jax.grad(lambda c: jnp.sum((c[rows.slots] - 1) ** 2))(compact)
        updates, state = optimizer.update(grads, state, compact, row_ids=rows)
        return apply_row_updates(params, updates, rows), state

    small, in_place = memory_of(step, 10_000, optimizer)
    large, in_place_too = memory_of(step, 10_000_000, optimizer)
    assert small == large < 1e6 and in_place and in_place_too


def test_the_dense_step_does_need_a_second_table():
    optimizer = optax.sgd(0.1)

    def step(params, state, ids):
        grads = jax.grad(lambda p: jnp.sum((p[ids] - 1) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    assert memory_of(step, 10_000, optimizer)[0] >= 10_000 * DIM * 4
