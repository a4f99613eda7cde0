"""A step of the touched rows is the dense step, where its semantics say so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neuron_optax import (
    ROWS,
    NeuronState,
    adam_mini,
    clip_per_neuron,
    compounded,
    ema,
    frequency_sgd,
    identity,
    inverse_root,
    latest,
    lazy_rows,
    limit_norms,
    maximum,
    mean_square,
    neuron_adagrad,
    neuron_rmsprop,
    norm,
    reciprocal,
    redistributed,
    row_adagrad,
    row_adam_mini,
    row_chain,
    row_frequency_sgd,
    row_rmsprop,
    rowwise_adagrad,
    scale_per_neuron,
    scale_per_row,
    total,
    touched,
)
from tests import zipf

pytestmark = pytest.mark.slow

STEPS = 50
SCHEDULE = optax.linear_schedule(0.2, 0.02, STEPS)
SGD = optax.scale_by_learning_rate(0.05)
ROWWISE = {"neurons": ROWS}


def both(statistic, accumulator, rate, **options):
    """Return the same parts for touched rows and for the whole table."""
    return (
        row_chain(scale_per_row(statistic, accumulator, rate, **options), SGD),
        optax.chain(scale_per_neuron(statistic, accumulator, rate, **ROWWISE), SGD),
    )


def l2(optimizer):
    return optax.chain(optax.add_decayed_weights(0.1), optimizer)


EQUAL = {  # of touched rows, of the whole table
    "adagrad": (row_adagrad(0.1), neuron_adagrad(0.1, eps=1e-10, **ROWWISE)),
    "adagrad-initial": (
        row_adagrad(0.1, 0.5, low=0.1, high=0.9),
        rowwise_adagrad(0.1, 0.5, low=0.1, high=0.9, **ROWWISE),
    ),
    "adagrad-schedule": (row_adagrad(SCHEDULE), rowwise_adagrad(SCHEDULE, **ROWWISE)),
    "adagrad-decoupled": (
        row_adagrad(0.1, weight_decay=0.1),
        rowwise_adagrad(0.1, weight_decay=0.1, **ROWWISE),
    ),
    "adagrad-l2": (
        row_adagrad(0.1, weight_decay=0.1, decay="l2"),
        rowwise_adagrad(0.1, weight_decay=0.1, decay="l2", **ROWWISE),
    ),
    "rmsprop-catch_up": (
        row_rmsprop(0.05, untouched="catch_up"),
        neuron_rmsprop(0.05, **ROWWISE),
    ),
    "adam_mini-catch_up": (
        row_adam_mini(0.05, b2=0.99, untouched="catch_up"),
        adam_mini(0.05, b1=0.0, b2=0.99, **ROWWISE),
    ),
    "frequency": (row_frequency_sgd(0.05), frequency_sgd(0.05, **ROWWISE)),
    "frequency-ema": both(touched, ema(0.9), reciprocal(0.1), untouched="catch_up"),
    "maximum": both(norm, maximum(), reciprocal(0.1)),
    "latest": both(norm, latest(), reciprocal(0.1)),
    "gains": both(touched, compounded(0.1, high=2.0), identity()),
    "clipped": (
        row_chain(optax.clip_by_global_norm(1.0), row_adagrad(0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), rowwise_adagrad(0.1, **ROWWISE)),
    ),
    "clipped-per-row": (
        row_chain(clip_per_neuron(0.1, **ROWWISE), row_adagrad(0.1)),
        optax.chain(clip_per_neuron(0.1, **ROWWISE), rowwise_adagrad(0.1, **ROWWISE)),
    ),
    "max-norm": (
        row_chain(row_adagrad(0.5), limit_norms(2.5, **ROWWISE)),
        optax.chain(rowwise_adagrad(0.5, **ROWWISE), limit_norms(2.5, **ROWWISE)),
    ),
    "per-entry-adagrad": (
        row_chain(lazy_rows(optax.scale_by_rss()), SGD),
        optax.chain(optax.scale_by_rss(), SGD),
    ),
}
SEMANTICS = (
    *("adagrad", "adagrad-decoupled", "adagrad-l2", "rmsprop-catch_up"),
    *("adam_mini-catch_up", "frequency", "frequency-ema", "clipped"),
)
DIFFERENT = {
    "rmsprop-lazy": (row_rmsprop(0.05), neuron_rmsprop(0.05, **ROWWISE)),
    "adam_mini-lazy": (
        row_adam_mini(0.05, b2=0.99),
        adam_mini(0.05, b1=0.0, b2=0.99, **ROWWISE),
    ),
    "adam_mini-momentum": (
        row_adam_mini(0.05, b1=0.9, b2=0.99),
        adam_mini(0.05, b1=0.9, b2=0.99, **ROWWISE),
    ),
    "momentum": (
        row_chain(lazy_rows(optax.trace(0.9)), SGD),
        optax.chain(optax.trace(0.9), SGD),
    ),
    "decay-of-all-rows": (
        row_adagrad(0.1, weight_decay=0.1),
        rowwise_adagrad(0.1, weight_decay=0.1, lazy=False, **ROWWISE),
    ),
    "rmsprop-decay-of-all-rows": (
        row_rmsprop(0.05, weight_decay=0.1, untouched="catch_up"),
        neuron_rmsprop(0.05, weight_decay=0.1, **ROWWISE),
    ),
    "frequency-decay-of-all-rows": (
        row_frequency_sgd(0.05, weight_decay=0.1),
        frequency_sgd(0.05, weight_decay=0.1, **ROWWISE),
    ),
    "mean-of-touched-rows": both(
        mean_square, total(), redistributed(inverse_root(1e-8))
    ),
    "l2-of-all-rows": (
        row_chain(l2(row_adagrad(0.1))),
        l2(rowwise_adagrad(0.1, **ROWWISE)),
    ),
}


def tables(sparse, dense):
    """Train both on the same batches; return the tables and the states."""
    data, start = zipf.batches(STEPS), zipf.table()
    data = data[0], data[1].astype(start.dtype)
    ours, state = zipf.trained(zipf.sparse_step, sparse, start, data)
    theirs, whole = zipf.trained(zipf.dense_step, dense, start, data)
    assert np.abs(ours - start).max() > 0.1
    return (ours, state), (theirs, whole)


@pytest.mark.parametrize(("sparse", "dense"), EQUAL.values(), ids=EQUAL)
def test_fifty_sparse_steps_are_the_dense_ones(sparse, dense, float64):
    (ours, _), (theirs, _) = tables(sparse, dense)
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SEMANTICS)
def test_fifty_sparse_steps_are_the_dense_ones_in_float32(name):
    (ours, _), (theirs, _) = tables(*EQUAL[name])
    # 50 steps of a few ulps each; powers of a decay stand for repeated products
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("sparse", "dense"), DIFFERENT.values(), ids=DIFFERENT)
def test_fifty_lazy_steps_are_not_the_dense_ones(sparse, dense, float64):
    (ours, _), (theirs, _) = tables(sparse, dense)
    assert np.abs(ours - theirs).max() > 1e-2


@pytest.mark.parametrize("name", ["adagrad", "frequency", "maximum"])
def test_the_memory_of_a_row_is_that_of_the_dense_step(name, float64):
    (_, state), (_, whole) = tables(*EQUAL[name])
    ours, theirs = (optax.tree.get(s, "memory") for s in (state, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_row_that_catches_up_has_the_memory_of_the_dense_step_when_touched(float64):
    (_, state), (_, whole) = tables(*EQUAL["rmsprop-catch_up"])
    ours, theirs = (optax.tree.get(s, "memory") for s in (state, whole))
    late = STEPS - optax.tree.get(state, "seen")
    assert late.max() == STEPS and late.min() == 0
    np.testing.assert_allclose(ours * 0.9**late, theirs, rtol=1e-12)
    assert np.abs(ours - theirs).max() > 1e-3


@pytest.mark.parametrize("name", [n for n in EQUAL if n != "per-entry-adagrad"])
def test_rates_are_not_stored(name):
    state = jax.eval_shape(EQUAL[name][0].init, zipf.table())
    ((_, of),) = optax.tree.get_all_with_path(state, NeuronState.__name__)
    assert of.rate == ()
