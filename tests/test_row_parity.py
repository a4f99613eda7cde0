"""Every optimizer of rows takes the steps of its PyTorch oracle, tables and state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import apply_row_updates, take_rows, unique_rows
from tests.case import STEPS, oracle

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
SHAPES = {"table": (12, 5), "square": (12, 12)}
PLACES, NONE = (3, 3), -1  # three bags of up to three ids
LATE = 14, 17  # the steps of row 11


def limited(max_norm, **options):
    rows = neuron_optax.ROWS
    return neuron_optax.row_chain(
        neuron_optax.row_adagrad(**options),
        neuron_optax.limit_norms(max_norm, neurons=rows),
    )


def adam_mini(b1, **options):
    return neuron_optax.row_adam_mini(b1=b1 or None, **options)


ADAGRAD = neuron_optax.row_adagrad, "row_adagrad:RowAdagrad", "a", 0.1
LIMITED = limited, "row_adagrad:RowAdagrad", "a", 0.1
RMSPROP = neuron_optax.row_rmsprop, "row_rmsprop:RowRMSprop", "v", 0.1
ADAM_MINI = adam_mini, "row_adam_mini:RowAdamMini", "v", 0.1
COUNTED = neuron_optax.row_frequency_sgd, "row_frequency_sgd:RowFrequencySGD", "n", 0.01
CATCH_UP = {"untouched": "catch_up"}
TWINS = {  # strategy, oracle, its name of the memory, rate; what departs from defaults
    "adagrad": (ADAGRAD, {}),
    "adagrad-start": (ADAGRAD, {"initial_accumulator_value": 0.5}),
    "adagrad-eps": (ADAGRAD, {"eps": 0.1}),
    "adagrad-decay": (ADAGRAD, {"weight_decay": 0.1}),
    "adagrad-l2": (ADAGRAD, {"weight_decay": 0.1, "decay": "l2"}),
    "adagrad-max_norm": (LIMITED, {"max_norm": 1.5}),
    "adagrad-decay-max_norm": (LIMITED, {"max_norm": 1.5, "weight_decay": 0.1}),
    "rmsprop": (RMSPROP, {}),
    "rmsprop-catch_up": (RMSPROP, CATCH_UP),
    "rmsprop-b": (RMSPROP, {"decay": 0.7}),
    "rmsprop-b-catch_up": (RMSPROP, {"decay": 0.7, **CATCH_UP}),
    "rmsprop-b0": (RMSPROP, {"decay": 0.0, **CATCH_UP}),
    "rmsprop-eps": (RMSPROP, {"eps": 0.1}),
    "rmsprop-decay": (RMSPROP, {"weight_decay": 0.1}),
    "adam_mini": (ADAM_MINI, {"b1": 0.0}),
    "adam_mini-catch_up": (ADAM_MINI, {"b1": 0.0, **CATCH_UP}),
    "adam_mini-b1": (ADAM_MINI, {"b1": 0.9}),
    "adam_mini-b2": (ADAM_MINI, {"b1": 0.0, "b2": 0.8}),
    "adam_mini-b2-catch_up": (ADAM_MINI, {"b1": 0.0, "b2": 0.8, **CATCH_UP}),
    "adam_mini-b1-b2": (ADAM_MINI, {"b1": 0.8, "b2": 0.8}),
    "adam_mini-eps": (ADAM_MINI, {"b1": 0.0, "eps": 0.1}),
    "adam_mini-decay": (ADAM_MINI, {"b1": 0.0, "weight_decay": 0.1}),
    "frequency": (COUNTED, {}),
    "frequency-p": (COUNTED, {"exponent": 1.0}),
    "frequency-p-high": (COUNTED, {"exponent": 1.0, "high": 2.0}),
    "frequency-p2": (COUNTED, {"exponent": 2.0}),  # a factor of 100, at most
    "frequency-p2-high": (COUNTED, {"exponent": 2.0, "high": None}),
    "frequency-decay": (COUNTED, {"weight_decay": 0.1}),
}
DEFAULTS = "adagrad", "rmsprop", "adam_mini", "adam_mini-b1", "frequency"
DECAYING = (  # weights or memory, also without a gradient
    *(f"{twin}-decay" for twin in ("adagrad", "rmsprop", "adam_mini", "frequency")),
    "adagrad-l2", "rmsprop", "adam_mini", "adam_mini-b1",
)  # fmt: skip


def tables():
    """Draw the tables to start from."""
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def batches():
    """Draw the ids of every step, many of them repeated, and a gradient for each.

    Gradients span six decades from row to row; row 5 has none in two steps of three,
    row 11 is LATE. Places without an id have a gradient, too, which must not count.
    """
    rng = np.random.default_rng(0)
    rows = [0, NONE, *range(1, 11)]
    often = 1 / np.arange(1, 13)
    size = np.append(rng.permutation(np.logspace(-3, 3, 12)), 1e3)

    def draw(step, width):
        ids = rng.choice(rows, PLACES, p=often / often.sum())
        if step in LATE:
            ids[0, 0] = 11
        absent = (ids == 5) & (step % 3 < 2)
        scale = np.where(absent, 0.0, size[ids])[..., None]
        return ids, scale * rng.standard_normal((*PLACES, width))

    return [
        {name: draw(step, width) for name, (_, width) in SHAPES.items()}
        for step in range(STEPS)
    ]


@jax.jit
def find(batch):
    """Return the touched rows of every table and their gradients."""
    rows, grads = {}, {}
    for name, (ids, places) in batch.items():
        size, width = SHAPES[name]
        rows[name] = unique_rows(ids, size, padding_id=NONE)
        blank = jnp.zeros((len(rows[name].ids), width))
        grads[name] = blank.at[rows[name].slots].add(places)
    return rows, grads


@functools.cache
def ours(twin):
    """Return tables and state after every step."""
    (build, _, _, rate), changed = TWINS[twin]
    optimizer = build(learning_rate=rate, **changed)

    @jax.jit
    def step(params, state, rows, grads):
        compact = take_rows(params, rows)
        updates, state = optimizer.update(grads, state, compact, row_ids=rows)
        return apply_row_updates(params, updates, rows), state

    params = jax.tree.map(jnp.asarray, tables())
    state, trajectory = optimizer.init(params), []
    for batch in batches():
        params, state = step(params, state, *find(batch))
        trajectory.append((params, state))
    return trajectory


def as_it_is(ids, places, size):
    return ids, places


def theirs(twin, name, mistake=as_it_is, view=np.asarray):
    """Yield one table and its state after every step of the oracle."""
    (_, reference, _, rate), changed = TWINS[twin]
    table = torch.tensor(np.ascontiguousarray(view(tables()[name])))
    optimizer = oracle(reference)([table], rate, **changed)
    for batch in batches():
        ids, places = batch[name]
        ids, places = mistake(ids[ids != NONE], places[ids != NONE], len(table))
        indices, values = torch.tensor(ids)[None], torch.tensor(places)
        table.grad = torch.sparse_coo_tensor(
            indices, values, table.shape, check_invariants=True
        )
        optimizer.step()
        yield view(table.numpy()), optimizer.state[table]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_step_matches_pytorch(twin, name):
    (_, _, memory, _), _ = TWINS[twin]
    fields = {"memory": memory, "ema": "m", "seen": "last"}
    pairs = zip(ours(twin), theirs(twin, name), strict=True)
    for step, ((params, state), (expected, numbers)) in enumerate(pairs, start=1):
        compare(params[name], expected, f"step {step}")
        assert optax.tree.get(state, "memory") is not None
        for field, key in fields.items():
            if (held := optax.tree.get(state, field)) is not None:
                compare(held[name], numbers[key], f"step {step}, {key}")


def compare(actual, expected, message):
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.reshape(actual, expected.shape),
        expected,
        rtol=TOLERANCE,
        atol=TOLERANCE,
        err_msg=message,
    )


def apart(twin, other, mistake=as_it_is, view=np.asarray):
    """Whether the square tables end apart by far."""
    *_, (params, _) = ours(twin)
    *_, (other, _) = theirs(other, "square", mistake, view)
    return not np.allclose(params["square"], other, rtol=1e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("twin", [twin for twin in TWINS if "-" in twin])
def test_comparison_notices_each_hyperparameter(twin):
    without, _, _ = twin.rpartition("-")  # without the last one in its name
    assert apart(twin, without)


@pytest.mark.usefixtures("float64")
def test_comparison_notices_where_decay_enters():
    assert apart("adagrad-l2", "adagrad-decay")


def last_place(ids, places, size):
    """Keep the last of the places of each row, where they should be summed."""
    last = dict(zip(ids, places, strict=True))
    return np.array([*last]), np.array([*last.values()])


def every_row(ids, places, size):
    """Touch all rows, those that are not in the batch with gradients of zero."""
    rest = np.zeros((size, *places.shape[1:]))
    return np.append(ids, np.arange(size)), np.append(places, rest, axis=0)


def columns(ids, places, size):
    """Touch all columns of a square table."""
    dense = np.zeros((size, size))
    np.add.at(dense, ids, places)
    return np.arange(size), dense.T


MISTAKES = {
    **{f"columns-{twin}": (twin, columns, np.transpose) for twin in DEFAULTS},
    **{f"last-place-{twin}": (twin, last_place, np.asarray) for twin in DEFAULTS},
    **{f"every-row-{twin}": (twin, every_row, np.asarray) for twin in DECAYING},
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("twin", "mistake", "view"), MISTAKES.values(), ids=MISTAKES)
def test_comparison_notices_other_rows_or_gradients(twin, mistake, view):
    assert apart(twin, twin, mistake, view)


@pytest.mark.usefixtures("float64")
def test_a_norm_is_of_the_rows_of_the_batch_alone():
    optimizer = neuron_optax.row_chain(optax.clip_by_global_norm(1.0))
    state, ignored = optimizer.init(tables()), 0
    for batch in batches():
        rows, grads = find(batch)
        updates, _ = optimizer.update(grads, state, row_ids=rows)
        dense = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for name, (ids, places) in batch.items():
            np.add.at(dense[name], ids[ids != NONE], places[ids != NONE])
        length = max(1.0, optax.tree.norm(dense))
        ignored += optax.tree.norm(grads) > 1.1 * length
        for name, gradient in dense.items():
            moved = apply_row_updates(
                jnp.zeros(gradient.shape), updates[name], rows[name]
            )
            compare(moved, gradient / length, name)
    assert ignored  # what the places without an id would have done
