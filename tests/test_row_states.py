"""States of rows: what they hold, what may stand beside them, what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neuron_optax import (
    ROWS,
    RowState,
    apply_row_updates,
    lazy_rows,
    limit_norms,
    partition_rows,
    row_adagrad,
    row_adam_mini,
    row_chain,
    row_frequency_sgd,
    row_rmsprop,
    take_rows,
    unique_rows,
)
from neuron_optax.memory import state_bytes
from neuron_optax.sharding import state_specs
from tests import zipf

pytestmark = pytest.mark.slow

SIZE, DIM = 40, 3
TABLE = zipf.table(SIZE, DIM)
STRATEGIES = {
    "adagrad": (row_adagrad(0.1), 4),
    "rmsprop": (row_rmsprop(0.1), 4),
    "rmsprop-catch_up": (row_rmsprop(0.1, untouched="catch_up"), 8),
    "adam_mini": (row_adam_mini(0.1), 4),
    "adam_mini-catch_up": (row_adam_mini(0.1, untouched="catch_up"), 8),
    "adam_mini-momentum": (row_adam_mini(0.1, b1=0.9), 4 + 4 * DIM),
    "adam_mini-injected": (optax.inject_hyperparams(row_adam_mini)(0.1), 4),
    "frequency": (row_frequency_sgd(0.1), 4),
}


def step_of(ids, optimizer, state, params=TABLE, scale=1.0):
    """Take one step on the sum of the squares of the rows of some ids."""
    rows = unique_rows(np.array(ids, np.int32), len(params))
    compact = take_rows(params, rows)
    grads = jax.grad(lambda c: scale * jnp.sum(c[rows.slots] ** 2))(compact)
    updates, state = optimizer.update(grads, state, compact, row_ids=rows)
    return apply_row_updates(params, updates, rows), state


@pytest.mark.parametrize(
    ("optimizer", "row_bytes"), STRATEGIES.values(), ids=STRATEGIES
)
def test_a_state_is_a_few_numbers_per_row(optimizer, row_bytes):
    size = state_bytes(optimizer, TABLE) - state_bytes(optimizer, TABLE[:-1])
    assert size == row_bytes


@pytest.mark.parametrize(("optimizer", "_"), STRATEGIES.values(), ids=STRATEGIES)
def test_rows_that_are_not_touched_keep_their_weights_and_state(optimizer, _):
    params, state = step_of([3, 5], optimizer, optimizer.init(TABLE))
    moved, after = step_of([5, 9], optimizer, state, params)
    others = np.delete(np.arange(SIZE), [5, 9])
    np.testing.assert_array_equal(moved[others], params[others])
    pairs = zip(*map(jax.tree.leaves, (state, after)), strict=True)
    of_rows = [(a, b) for a, b in pairs if a.ndim]
    assert of_rows
    for before, now in of_rows:
        np.testing.assert_array_equal(now[others], before[others])
        assert np.any(now[9] != before[9])


STATELESS = {
    "clip": optax.clip(0.1),
    "global-norm": optax.clip_by_global_norm(0.1),
    "decay": optax.add_decayed_weights(0.1),
    "schedule": optax.scale_by_schedule(lambda step: 0.5),
    "noise": optax.add_noise(1e-3, 0.5, 0),
    "lion-of-rows": lazy_rows(optax.scale_by_lion()),
    "norm": limit_norms(1.0, neurons=ROWS),
    "injected": optax.inject_hyperparams(optax.scale)(step_size=0.5),
}


@pytest.mark.parametrize("part", STATELESS.values(), ids=STATELESS)
def test_what_is_stateless_or_row_aware_goes_anywhere(part):
    for parts in ((part, row_adagrad(0.1)), (row_adagrad(0.1), part)):
        optimizer = row_chain(*parts)
        params, _ = step_of([3, 5, 3], optimizer, optimizer.init(TABLE))
        changed = np.flatnonzero(np.any(params != TABLE, axis=1))
        assert changed.tolist() == [3, 5]


WRAPPERS = {
    "injected": lambda: optax.inject_hyperparams(row_adagrad)(learning_rate=0.1),
    "finite": lambda: optax.apply_if_finite(row_adagrad(0.1), 3),
    "masked": lambda: optax.masked(row_adagrad(0.1), True),
    "nested": lambda: row_chain(row_chain(row_adagrad(0.1))),
    "named": lambda: optax.named_chain(("rows", row_adagrad(0.1))),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_of_optax_leave_the_steps_as_they_are(wrap):
    plain, wrapped = row_adagrad(0.1), wrap()
    ours, state = TABLE, plain.init(TABLE)
    theirs, other = TABLE, wrapped.init(TABLE)
    for ids in ([3, 5, 3], [5, 9], []):
        ours, state = step_of(ids, plain, state, ours)
        theirs, other = step_of(ids, wrapped, other, theirs)
        # a rate that is an array divides in another order
        np.testing.assert_allclose(theirs, ours, rtol=1e-6)


def test_the_slot_of_dropped_ids_does_not_count_in_a_global_norm():
    optimizer = row_chain(optax.clip_by_global_norm(1.0), optax.scale(-1.0))
    jitted = jax.jit(lambda ids: unique_rows(ids, SIZE))
    steps = []
    for ids in ([3, 5, -1], [3, 5]):
        rows = jitted(np.array(ids))
        grads = jnp.ones((len(rows.ids), DIM))  # as of a model that knows no padding
        updates, _ = optimizer.update(grads, optimizer.init(TABLE), row_ids=rows)
        steps.append(apply_row_updates(TABLE, updates, rows))
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_a_row_whose_gradient_is_not_finite_stays_and_the_others_go_on(bad):
    optimizer = row_rmsprop(0.1, untouched="catch_up")
    rows = unique_rows(np.array([3, 5]), SIZE)
    state = optimizer.init(TABLE)
    grads = jnp.ones((len(rows.ids), DIM))
    for gradient in (grads, grads.at[0, 1].set(bad), grads):
        updates, state = optimizer.update(gradient, state, row_ids=rows)
        assert np.all(np.isfinite(updates))
    memory = optax.tree.get(state, "memory")[np.array([3, 5]), 0]
    np.testing.assert_allclose(memory, [1 - 0.9**2, 1 - 0.9**3], rtol=1e-6)


def test_slots_without_a_row_do_not_spoil_the_norm_of_the_others():
    from_one = optax.scale_by_rms(eps=0.0, initial_scale=1.0)
    optimizer = row_chain(lazy_rows(from_one), optax.clip_by_global_norm(1.0))
    rows = unique_rows(np.array([3, 3]), SIZE)
    grads = jnp.ones((len(rows.ids), DIM)).at[1:].set(0)
    updates, _ = optimizer.update(grads, optimizer.init(TABLE), row_ids=rows)
    assert np.isfinite(updates).all() and np.any(updates != 0)


def test_a_table_may_have_any_rank():
    for shape in ((SIZE,), (SIZE, 1), (SIZE, 2, 3)):
        table, optimizer = jnp.ones(shape), row_adagrad(0.1)
        params, state = step_of([3, 3, 7], optimizer, optimizer.init(table), table)
        changed = params.reshape(SIZE, -1)[:, 0] != 1
        assert np.flatnonzero(changed).tolist() == [3, 7]
        memory = optax.tree.get(state, "memory")
        assert memory.shape == (SIZE, *[1] * (len(shape) - 1))


def test_low_precision_tables_keep_their_dtype_and_numbers_of_32_bits():
    table, optimizer = TABLE.astype(jnp.bfloat16), row_adam_mini(0.1, b1=0.9)
    params, state = step_of([3, 3], optimizer, optimizer.init(table), table)
    assert params.dtype == jnp.bfloat16
    assert optax.tree.get(state, "memory").dtype == jnp.float32
    assert optax.tree.get(state, "ema").dtype == jnp.bfloat16


def test_init_needs_shapes_alone():
    optimizer = partition_rows(row_adam_mini(0.1, b1=0.9), optax.adam(0.1), "table")
    params = {"table": TABLE, "kernel": jnp.ones((2, 2))}
    of_shapes = jax.eval_shape(optimizer.init, jax.eval_shape(lambda: params))
    shapes = jax.tree.map(lambda leaf: leaf.shape, of_shapes)
    assert jax.tree.map(jnp.shape, optimizer.init(params)) == shapes


def test_what_is_of_the_table_can_be_mapped():
    optimizer = row_adam_mini(0.1, b1=0.9)
    state = optimizer.init(TABLE)
    ones = optax.tree.map_params(optimizer, jnp.ones_like, state)
    assert [leaf.ndim for leaf in jax.tree.leaves(ones) if leaf.all()] == [2, 2]


def test_the_state_lies_as_its_table():
    spec = jax.sharding.PartitionSpec("rows", "columns")
    params = jax.ShapeDtypeStruct((SIZE, 4), jnp.float32)
    optimizer = row_adam_mini(0.1, b1=0.9)
    specs = state_specs(optimizer, params, spec)
    assert isinstance(specs[0], RowState)
    assert specs[0].inner.memory == jax.sharding.PartitionSpec("rows")
    assert specs[0].inner.direction.ema == spec


def test_one_step_compiles_once_for_batches_of_one_shape():
    optimizer = row_adam_mini(0.1, b1=0.9)
    step = jax.jit(zipf.sparse_step(optimizer), donate_argnums=(0, 1))
    params, state = zipf.table(SIZE, DIM), optimizer.init(TABLE)
    for ids, wanted in zip(*zipf.batches(3, SIZE, 8, DIM), strict=True):
        params, state = step(params, state, jnp.asarray(ids), jnp.asarray(wanted))
    assert step._cache_size() == 1
