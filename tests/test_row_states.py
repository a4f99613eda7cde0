"""States of rows: what may stand in a chain of rows, what is refused, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neuron_optax import (
    ROWS,
    RowState,
    adam_mini,
    apply_row_updates,
    ema,
    identity,
    lazy_rows,
    limit_norms,
    mean_square,
    partition_rows,
    row_adagrad,
    row_adam_mini,
    row_chain,
    row_frequency_sgd,
    row_rmsprop,
    rowwise_adagrad,
    scale_per_row,
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
    "frequency": (row_frequency_sgd(0.1), 4),
}
NOT_OF_ROWS = {
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(),
    "adafactor": optax.scale_by_factored_rms(min_dim_size_to_factor=1),
    "dense": rowwise_adagrad(0.1, neurons=ROWS),
    "accumulated": optax.MultiSteps(row_adagrad(0.1), 2).gradient_transformation(),
    "one-per-column": adam_mini(0.1, b1=0.0),
}
FACTORED = NOT_OF_ROWS["adafactor"]


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


@pytest.mark.parametrize("part", NOT_OF_ROWS.values(), ids=NOT_OF_ROWS)
@pytest.mark.parametrize("first", [True, False])
def test_a_state_that_is_not_of_rows_is_refused(part, first):
    parts = (part, row_adagrad(0.1)) if first else (row_adagrad(0.1), part)
    message = (
        rf"^{int(not first)}.* has the shape \(.*not row-aware: wrap .* in lazy_rows"
    )
    with pytest.raises(ValueError, match=message):
        row_chain(*parts).init(TABLE)
    with pytest.raises(ValueError, match="not row-aware"):
        partition_rows(optax.chain(*parts), optax.sgd(0.1), "").init({"t": TABLE})


@pytest.mark.parametrize("ids", [[], [3], list(range(SIZE)), list(range(SIZE - 1))])
def test_gradients_held_back_never_go_to_other_rows(ids):
    optimizer = optax.MultiSteps(row_adagrad(0.1), 2)
    with pytest.raises((TypeError, ValueError)):
        step_of(ids, optimizer, optimizer.init(TABLE))


@pytest.mark.parametrize("part", [optax.trace(0.9), optax.scale_by_adam()])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("ids", [[], [3], list(range(SIZE)), list(range(SIZE - 1))])
def test_a_plain_chain_never_takes_it_silently(part, first, ids):
    parts = (part, row_adagrad(0.1)) if first else (row_adagrad(0.1), part)
    optimizer = optax.chain(*parts)
    with pytest.raises((TypeError, ValueError)):
        step_of(ids, optimizer, optimizer.init(TABLE))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_square_and_small_tables_are_told_apart(size):
    table = jnp.ones((size, size))
    for part in (
        optax.trace(0.9),
        optax.scale_by_factored_rms(min_dim_size_to_factor=1),
    ):
        with pytest.raises(ValueError, match="not row-aware"):
            row_chain(part, row_adagrad(0.1)).init(table)
    with pytest.raises(ValueError, match=r"v_.* has the shape .* lazy_rows needs"):
        lazy_rows(FACTORED).init(table)
    with pytest.raises(ValueError, match="lazy_rows needs states whose first axis"):
        lazy_rows(adam_mini(0.1, b1=0.0)).init(table)
    row_chain(row_adagrad(0.1)).init(table)


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
def test_what_keeps_nothing_of_a_table_goes_anywhere(part):
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
    "flattened": lambda: optax.named_chain(("rows", row_adagrad(0.1))),
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


def test_rows_are_asked_for_by_the_path_of_their_table():
    params = {"user": {"embedding": TABLE}, "item": {"embedding": TABLE}}
    optimizer = row_adagrad(0.1)
    state = optimizer.init(params)
    rows = {"user": {"embedding": unique_rows(np.array([1]), SIZE)}}
    grads = take_rows(params, rows)
    with pytest.raises(ValueError, match="item/embedding: row_ids must have its Rows"):
        optimizer.update(grads, state, row_ids=rows)
    with pytest.raises(ValueError, match="row_ids must have its Rows, got"):
        optimizer.update(grads, state)
    with pytest.raises(TypeError, match="user/embedding: row_ids must be Rows"):
        optimizer.update(grads, state, row_ids={"user": {"embedding": jnp.array([1])}})
    for part in (lazy_rows(optax.trace(0.9)), optimizer):
        with pytest.raises(ValueError, match="user/embedding: updates must have the 2"):
            part.update(params, part.init(params), row_ids=rows)


def test_a_state_of_another_table_is_refused():
    optimizer = row_adagrad(0.1)
    with pytest.raises(ValueError, match="memory has 41 rows, but row_ids are"):
        step_of([3], optimizer, optimizer.init(jnp.ones((SIZE + 1, DIM))))


@pytest.mark.parametrize("wrong", ["eager", None])
def test_only_two_ways_to_treat_what_is_not_touched(wrong):
    with pytest.raises(Exception, match="untouched"):
        scale_per_row(mean_square, ema(0.9), identity(), untouched=wrong)


def test_momentum_does_not_catch_up():
    with pytest.raises(ValueError, match="untouched must be 'lazy' with a direction"):
        row_adam_mini(0.1, b1=0.9, untouched="catch_up")


def test_what_is_row_aware_is_not_made_so_twice():
    with pytest.raises(ValueError, match="needs what is not row-aware yet"):
        lazy_rows(row_adagrad(0.1)).init(TABLE)


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
