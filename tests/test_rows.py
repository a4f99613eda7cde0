"""Rows: which a batch touches, how they are read, pooled and written back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from neuron_optax import (
    Rows,
    apply_row_updates,
    embedding_bag,
    row_adagrad,
    take_rows,
    unique_rows,
)

SIZE = 12
TABLE = jnp.asarray(np.random.default_rng(0).standard_normal((SIZE, 3)), jnp.float32)
IDS = st.sampled_from([(0,), (1,), (9,), (3, 4)]).flatmap(
    lambda shape: arrays.arrays(np.int32, shape, elements=st.integers(-3, SIZE + 3))
)
inside_jit = jax.jit(unique_rows, static_argnames=("table_size", "size", "padding_id"))


def real(rows):
    """Return the ids of the slots that have a row."""
    return np.asarray(rows.ids)[np.asarray(rows.ids) < rows.table_size]


@settings(max_examples=50, deadline=None)
@given(ids=IDS)
def test_every_row_of_a_batch_stands_once_and_is_found_again(ids):
    rows = inside_jit(ids, table_size=SIZE, padding_id=-1)
    valid = (ids >= 0) & (ids < SIZE)
    assert real(rows).tolist() == np.unique(ids[valid]).tolist()
    assert rows.kept.tolist() == valid.tolist()
    assert rows.dropped == np.sum(~valid & (ids != -1))
    found = np.asarray(rows.ids)[rows.slots]
    np.testing.assert_array_equal(np.where(valid, found, ids), ids)
    assert (found[~valid] >= SIZE).all()
    assert (np.diff(rows.ids) > 0).all() and rows.ids[-1] >= SIZE


def test_eager_and_jitted_rows_are_the_same():
    ids = np.array([[7, 3, 7], [0, 11, 3]])
    eager, jitted = unique_rows(ids, SIZE), inside_jit(ids, table_size=SIZE)
    for ours, theirs in zip(*map(jax.tree.leaves, (eager, jitted)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "int16", "uint16", "uint32", "int64", "uint64"]
)
def test_ids_may_be_of_any_integers(kind, float64):
    ids = np.array([7, 3, 7], kind)
    for rows in (unique_rows(ids, 1000), inside_jit(ids, table_size=1000)):
        assert real(rows).tolist() == [3, 7] and rows.ids.dtype == jnp.int32


def test_ids_beyond_32_bits_are_dropped_in_x64_mode_and_not_wrapped(float64):
    rows = inside_jit(np.array([3, 2**32 + 4]), table_size=SIZE)
    assert real(rows).tolist() == [3] and rows.dropped == 1


@pytest.mark.parametrize("wrong", [-1, SIZE, 2**40])
def test_a_wrong_id_is_an_error_that_says_which_and_where(wrong):
    ids = np.array([[1, 2], [wrong, 3]])
    message = rf"ids must be in \[0, {SIZE}\), got 1 others, the first {wrong} at \(1, "
    with pytest.raises(ValueError, match=message):
        unique_rows(ids, SIZE)
    assert unique_rows(ids, SIZE, padding_id=wrong).dropped == 0


def test_wrong_ids_inside_jit_are_dropped_and_counted():
    ids = np.array([1, -1, SIZE, 1, -5])
    rows = inside_jit(ids, table_size=SIZE)
    assert rows.dropped == 3 and rows.kept.tolist() == [True, False, False, True, False]
    moved = apply_row_updates(TABLE, jnp.ones((len(rows.ids), 3)), rows)
    assert np.flatnonzero(np.any(moved != TABLE, axis=1)).tolist() == [1]


def test_fewer_slots_than_rows_is_an_error_or_drops_and_counts():
    ids = np.array([5, 3, 9, 3])
    with pytest.raises(ValueError, match=r"size must be at least 3, .* got 2"):
        unique_rows(ids, SIZE, size=2)
    rows = inside_jit(ids, table_size=SIZE, size=2)
    assert real(rows).tolist() == [3, 5] and rows.dropped == 1
    assert rows.kept.tolist() == [True, True, False, True]
    assert take_rows(TABLE, rows)[rows.slots[2]].tolist() == [0.0] * 3
    assert len(unique_rows(ids, SIZE, size=3).ids) == 4


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.array([1.0]), {}, "ids must be integers, got float"),
        (np.array([True]), {}, "ids must be integers, got bool"),
        (np.array([1]), {"table_size": 0}, "table_size must be in"),
        (np.array([1]), {"table_size": 2**31 - 1}, "table_size must be in"),
        (np.array([1]), {"size": -1}, "size must not be negative"),
    ],
)
def test_what_makes_no_rows_is_refused(ids, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        unique_rows(ids, **{"table_size": SIZE} | options)


def test_padding_may_be_the_largest_id_of_its_dtype():
    last = np.iinfo(np.uint32).max
    ids = np.array([3, last], np.uint32)
    for find in (unique_rows, inside_jit):
        rows = find(ids, table_size=SIZE, padding_id=int(last))
        assert real(rows).tolist() == [3] and rows.dropped == 0
    assert inside_jit(ids, table_size=SIZE).dropped == 1


def test_tables_of_numpy_are_read_and_written():
    rows = unique_rows(np.array([1]), SIZE)
    ours, table = np.asarray(TABLE), TABLE
    updates = jnp.ones((len(rows.ids), 3))
    np.testing.assert_array_equal(take_rows(ours, rows), take_rows(table, rows))
    moved = apply_row_updates(ours, updates, rows)
    np.testing.assert_array_equal(moved, apply_row_updates(table, updates, rows))


def test_rows_are_read_and_zeros_where_there_is_none():
    rows = unique_rows(np.array([7, 3, 7]), SIZE)
    compact = take_rows({"table": TABLE, "bias": jnp.ones(2)}, {"table": rows})
    np.testing.assert_array_equal(
        compact["table"][rows.slots], TABLE[rows.ids[rows.slots]]
    )
    np.testing.assert_array_equal(compact["table"][2:], 0)
    np.testing.assert_array_equal(compact["bias"], 1)


def test_updates_are_applied_as_optax_does():
    table = TABLE.astype(jnp.bfloat16)
    rows = unique_rows(np.array([7, 3, 7]), SIZE)
    updates = {"t": jnp.full((len(rows.ids), 3), 1e-2), "b": jnp.ones(2)}
    moved = apply_row_updates({"t": table, "b": jnp.ones(2)}, updates, {"t": rows})
    expected = optax.apply_updates(table, jnp.full((SIZE, 3), 1e-2))
    np.testing.assert_array_equal(moved["t"][3::4], expected[3::4].at[2].set(table[11]))
    np.testing.assert_array_equal(moved["t"].at[3:8:4].set(0), table.at[3:8:4].set(0))
    assert moved["t"].dtype == jnp.bfloat16 and moved["b"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("ids", [[], [4] * 9, list(range(SIZE)), [*range(SIZE)] * 2])
def test_empty_all_equal_and_all_rows_train_as_the_whole_table(ids):
    ids, optimizer = np.array(ids, np.int32), row_adagrad(0.1)
    rows = unique_rows(ids, SIZE)
    grads = jax.grad(lambda c: jnp.sum(c[rows.slots] ** 2))(take_rows(TABLE, rows))
    updates, state = optimizer.update(grads, optimizer.init(TABLE), row_ids=rows)
    whole = jax.grad(lambda t: jnp.sum(t[ids] ** 2))(TABLE)
    memory = jnp.mean(whole**2, axis=1, keepdims=True)
    expected = TABLE - 0.1 * whole / (jnp.sqrt(memory) + 1e-10)
    np.testing.assert_allclose(
        apply_row_updates(TABLE, updates, rows), expected, rtol=1e-6
    )
    np.testing.assert_allclose(optax.tree.get(state, "memory"), memory, rtol=1e-6)
    assert optax.tree.get(state, "step") == 1


BAGS = np.array([[3, 7, 3], [5, -1, -1], [-1, -1, -1], [0, 3, -1]])
WEIGHTS = np.random.default_rng(1).standard_normal(BAGS.shape).astype(np.float32)


def pooled_by_hand(weights, pooling):
    """Pool bag by bag."""
    out = np.zeros((len(BAGS), 3))
    for bag, (ids, shares) in enumerate(zip(BAGS, weights, strict=True)):
        for id_, share in zip(ids, shares, strict=True):
            out[bag] += share * np.asarray(TABLE[id_]) if id_ >= 0 else 0
        whole = shares[ids >= 0].sum()
        if pooling == "mean" and whole:
            out[bag] /= whole
    return out


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_bags_are_pooled_as_by_hand(weights, pooling):
    rows = unique_rows(BAGS, SIZE, padding_id=-1)
    given_weights = None if weights is None else jnp.asarray(weights)
    ours = embedding_bag(take_rows(TABLE, rows), rows, given_weights, pooling)
    by_hand = pooled_by_hand(
        np.ones_like(WEIGHTS) if weights is None else weights, pooling
    )
    np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=1e-6)
    other = "mean" if pooling == "sum" else "sum"
    assert np.abs(ours - pooled_by_hand(WEIGHTS, other)).max() > 0.1


def test_the_gradient_of_a_bag_goes_to_its_rows_and_weights_alone():
    rows = unique_rows(BAGS, SIZE, padding_id=-1)

    def total(compact, weights):
        return jnp.sum(embedding_bag(compact, rows, weights, "sum"))

    compact = take_rows(TABLE, rows)
    of_rows, of_weights = jax.grad(total, (0, 1))(compact, jnp.asarray(WEIGHTS))
    expected = [WEIGHTS[BAGS == id_].sum() for id_ in real(rows)]
    np.testing.assert_allclose(of_rows[: len(expected), 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(of_rows[len(expected) :], 0)
    np.testing.assert_array_equal(of_weights[BAGS < 0], 0)
    assert np.all(of_weights[BAGS >= 0] != 0)


def test_a_bag_says_what_it_needs():
    rows = unique_rows(BAGS, SIZE, padding_id=-1)
    compact = take_rows(TABLE, rows)
    with pytest.raises(ValueError, match="weights must have the shape"):
        embedding_bag(compact, rows, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="which have no axis"):
        one = unique_rows(np.array(3), SIZE)
        embedding_bag(take_rows(TABLE, one), one)
    with pytest.raises(Exception, match="pooling"):
        embedding_bag(compact, rows, pooling="max")


def test_rows_go_where_a_table_is():
    rows = unique_rows(np.array([1]), SIZE)
    params = {"user": {"embedding": TABLE}}
    with pytest.raises(ValueError, match=r"row_ids has Rows, .*user/embedding"):
        take_rows(params, {"embedding": rows})
    with pytest.raises(TypeError, match="user/embedding: row_ids must be Rows"):
        take_rows(params, {"user": {"embedding": np.array([1])}})
    with pytest.raises(
        ValueError, match="user/embedding: updates must have the 2 slots"
    ):
        apply_row_updates(params, params, {"user": {"embedding": rows}})


def test_a_table_of_another_size_is_refused():
    rows = unique_rows(np.array([1]), SIZE + 1)
    with pytest.raises(ValueError, match="are of a table of 13 rows, got the shape"):
        take_rows(TABLE, rows)


def test_rows_pass_through_jit_and_scan():
    ids = np.array([[1, 2], [3, 3]])
    step = lambda total, ids: (total + unique_rows(ids, SIZE).kept.sum(), None)
    assert jax.lax.scan(step, 0, ids)[0] == 4
    assert isinstance(jax.jit(lambda rows: rows)(unique_rows(ids, SIZE)), Rows)
