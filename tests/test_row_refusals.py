"""What is not of rows, or of other rows, is refused and never taken silently."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from neuron_optax import (
    ROWS,
    Accumulator,
    adam_mini,
    ema,
    identity,
    lazy_rows,
    mean_square,
    partition_rows,
    row_adagrad,
    row_adam_mini,
    row_chain,
    rowwise_adagrad,
    scale_per_row,
    take_rows,
    unique_rows,
)
from tests import zipf
from tests.test_row_states import step_of

pytestmark = pytest.mark.slow

SIZE, DIM = 40, 3
TABLE = zipf.table(SIZE, DIM)
NOT_OF_ROWS = {
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(),
    "adafactor": optax.scale_by_factored_rms(min_dim_size_to_factor=1),
    "dense": rowwise_adagrad(0.1, neurons=ROWS),
    "accumulated": optax.MultiSteps(row_adagrad(0.1), 2).gradient_transformation(),
    "one-per-column": adam_mini(0.1, b1=0.0),
}
HELD_BACK = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
UNLIKE = "incompatible shapes for broadcasting|updates must have the"
FACTORED = NOT_OF_ROWS["adafactor"]


@pytest.mark.parametrize("part", NOT_OF_ROWS.values(), ids=NOT_OF_ROWS)
@pytest.mark.parametrize("first", [True, False])
def test_a_state_that_is_not_of_rows_is_refused(part, first):
    parts = (part, row_adagrad(0.1)) if first else (row_adagrad(0.1), part)
    message = rf"^{int(not first)}.* has the shape \(.*not row-aware; lazy_rows makes"
    with pytest.raises(ValueError, match=message):
        row_chain(*parts).init(TABLE)
    with pytest.raises(ValueError, match="not row-aware"):
        partition_rows(optax.chain(*parts), optax.sgd(0.1), "").init({"t": TABLE})


@pytest.mark.parametrize("ids", [[], [3], list(range(SIZE)), list(range(SIZE - 1))])
def test_gradients_held_back_never_go_to_other_rows(ids):
    optimizer = optax.MultiSteps(row_adagrad(0.1), 2)
    with pytest.raises((TypeError, ValueError), match=UNLIKE):
        step_of(ids, optimizer, optimizer.init(TABLE))


@pytest.mark.parametrize("part", [optax.trace(0.9), optax.scale_by_adam()])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("ids", [[], [3], list(range(SIZE)), list(range(SIZE - 1))])
def test_a_plain_chain_never_takes_it_silently(part, first, ids):
    parts = (part, row_adagrad(0.1)) if first else (row_adagrad(0.1), part)
    optimizer = optax.chain(*parts)
    with pytest.raises((TypeError, ValueError), match=UNLIKE):
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


@pytest.mark.parametrize("part", [row_adagrad(0.1), HELD_BACK])
def test_what_is_row_aware_or_holds_gradients_back_is_not_made_lazy(part):
    with pytest.raises(ValueError, match="needs what is not row-aware yet and moves"):
        lazy_rows(part).init(TABLE)


def test_catching_up_needs_an_accumulator_that_can_skip():
    halves = Accumulator(jnp.zeros_like, lambda a, s: (a + s) / 2, lambda a, step: a)
    scale_per_row(mean_square, halves, identity())
    with pytest.raises(ValueError, match="'lazy' with an accumulator without skip"):
        scale_per_row(mean_square, halves, identity(), untouched="catch_up")


def test_whole_tables_in_place_of_their_rows_are_refused():
    rows = unique_rows(np.array([1]), SIZE)
    grads = take_rows(TABLE, rows)
    for optimizer in (row_adagrad(0.1), lazy_rows(optax.trace(0.9))):
        with pytest.raises(ValueError, match="params must have the 2 slots"):
            optimizer.update(grads, optimizer.init(TABLE), TABLE, row_ids=rows)


def test_rows_of_a_table_that_is_said_to_be_dense_are_refused():
    params = {"user": TABLE, "item": TABLE}
    optimizer = partition_rows(row_adagrad(0.1), optax.sgd(0.1), "user")
    rows = dict.fromkeys(params, unique_rows(np.array([1]), SIZE))
    state, compact = optimizer.init(params), take_rows(params, rows)
    message = r"tables='user' must be in \['item'\], which have Rows"
    with pytest.raises(ValueError, match=message):
        optimizer.update(compact, state, compact, row_ids=rows)


def test_what_flax_calls_with_whole_tables_raises():
    class Model(nnx.Module):
        def __init__(self):
            self.user = nnx.Embed(SIZE, DIM, rngs=nnx.Rngs(0))

    model, optimizer = Model(), partition_rows(row_adagrad(0.1), optax.sgd(1), "user")
    rows = {"user": {"embedding": unique_rows(np.array([1]), SIZE)}}
    compact = take_rows(nnx.state(model, nnx.Param), rows)
    whole = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    with pytest.raises(ValueError, match="user/embedding: params must have the 2"):
        whole.update(model, compact, row_ids=rows)
    params = {"user": TABLE}
    state = TrainState.create(apply_fn=None, params=params, tx=optimizer)
    with pytest.raises(ValueError, match="user: row_ids must have its Rows"):
        state.apply_gradients(grads=params)
