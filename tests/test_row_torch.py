"""Rows that a batch touches move as in torch with sparse gradients of embeddings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import (
    apply_row_updates,
    embedding_bag,
    lazy_rows,
    row_chain,
    take_rows,
    unique_rows,
)
from tests.case import STEPS

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
ROWS, PADDING = 12, 3  # torch's padding is a row, which is read but not learned
PLACES = 3, 4  # bags of ids


def table(width):
    return np.random.default_rng(1).standard_normal((ROWS, width))


def batches(shape, width):
    """Yield the ids of every step, many repeated, and gradients of what they give."""
    rng = np.random.default_rng(0)
    size = np.logspace(-3, 3, ROWS)  # six decades from row to row
    often = 1 / (1 + rng.permutation(ROWS))
    for _ in range(STEPS):
        ids = rng.choice(ROWS, PLACES, p=often / often.sum())
        scale = size[ids].max(axis=tuple(range(len(shape), ids.ndim)))
        yield ids, scale[..., None] * rng.standard_normal((*shape, width))


def looked_up(compact, rows):
    return compact[rows.slots]


@functools.partial(jax.jit, static_argnames="model")
def differentiate(params, ids, upstream, model):
    """Return the touched rows, their weights and their gradients."""
    rows = unique_rows(ids, ROWS, padding_id=PADDING)
    compact = take_rows(params, rows)
    _, gradient = jax.vjp(lambda compact: model(compact, rows), compact)
    return rows, compact, *gradient(upstream)


def ours(optimizer, width, model=looked_up, shape=PLACES):
    """Yield the table and its state after every step."""

    @jax.jit
    def step(params, state, rows, compact, grads):
        updates, state = optimizer.update(grads, state, compact, row_ids=rows)
        return apply_row_updates(params, updates, rows), state

    params = jnp.asarray(table(width))
    state = optimizer.init(params)
    for ids, upstream in batches(shape, width):
        touched = differentiate(params, ids, upstream, model)
        params, state = step(params, state, *touched)
        yield params, state


def theirs(make, width, eps=None, module=torch.nn.Embedding, shape=PLACES, **options):
    """Yield the table and its state after every step; ``eps`` of step 1, 2, ..."""
    embedding = module(
        ROWS, width, sparse=True, padding_idx=PADDING, dtype=torch.double, **options
    )
    embedding.weight.data.copy_(torch.tensor(table(width)))
    optimizer = make([embedding.weight])
    for step, (ids, upstream) in enumerate(batches(shape, width), start=1):
        if eps is not None:
            optimizer.param_groups[0]["eps"] = eps(step)
        optimizer.zero_grad()
        embedding(torch.tensor(ids)).backward(torch.tensor(upstream))
        assert embedding.weight.grad.is_sparse
        with torch.sparse.check_sparse_tensor_invariants():  # else it warns
            optimizer.step()
        yield embedding.weight.detach().numpy(), optimizer.state[embedding.weight]


def agree(actual, expected, names=()):
    """Assert that tables agree after every step, and states by (ours, theirs)."""
    for step, (mine, other) in enumerate(zip(actual, expected, strict=True), start=1):
        (params, state), (weight, memory) = mine, other
        pairs = [(params, weight)]
        pairs += [(optax.tree.get(state, a), memory[b]) for a, b in names]
        for a, b in pairs:
            np.testing.assert_allclose(
                a, b, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"step {step}"
            )


def apart(actual, expected):
    """Whether the tables end apart by far."""
    (*_, (params, _)), (*_, (weight, _)) = actual, expected
    return not np.allclose(params, weight, rtol=1e-3)


def adam(b1, b2, eps):
    scaled = lazy_rows(optax.scale_by_adam(b1, b2, eps))
    return row_chain(scaled, optax.scale_by_learning_rate(0.1))


def sparse_adam(width, b1, b2, eps, correct=True):
    """Yield SparseAdam's steps.

    It adds eps to the root of v before it corrects that for bias, unlike the paper, our
    strategies, Optax and torch's own Adam: with eps corrected along it is theirs.
    """
    eps_of = lambda step: eps * (1 - b2**step) ** 0.5 if correct else eps
    make = lambda weights: torch.optim.SparseAdam(weights, lr=0.1, betas=(b1, b2))
    return theirs(make, width, eps_of)


ADAM = {"default": (0.9, 0.999, 1e-8), "b": (0.8, 0.7, 1e-8), "eps": (0.9, 0.999, 0.1)}
MOMENTS = ("mu", "exp_avg"), ("nu", "exp_avg_sq")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("numbers", ADAM.values(), ids=ADAM)
@pytest.mark.parametrize("width", [1, 5])
def test_lazy_rows_of_adam_is_sparse_adam(width, numbers):
    agree(ours(adam(*numbers), width), sparse_adam(width, *numbers), MOMENTS)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("numbers", ADAM.values(), ids=ADAM)
def test_row_adam_mini_of_single_entries_is_sparse_adam(numbers):
    b1, b2, eps = numbers
    optimizer = neuron_optax.row_adam_mini(0.1, b1, b2, eps)
    names = ("ema", "exp_avg"), ("memory", "exp_avg_sq")
    agree(ours(optimizer, 1), sparse_adam(1, *numbers), names)


@pytest.mark.usefixtures("float64")
def test_row_adam_mini_of_many_entries_is_not_sparse_adam():
    optimizer = neuron_optax.row_adam_mini(0.1, b1=0.9)
    assert apart(ours(optimizer, 5), sparse_adam(5, *ADAM["default"]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("mine", "other", "correct"),
    [
        pytest.param("default", "b", True, id="b"),
        pytest.param("default", "eps", True, id="eps"),
        pytest.param("eps", "eps", False, id="eps-not-corrected"),
    ],
)
def test_comparison_notices_another_adam(mine, other, correct):
    expected = sparse_adam(5, *ADAM[other], correct=correct)
    assert apart(ours(adam(*ADAM[mine]), 5), expected)


@pytest.mark.usefixtures("float64")
def test_sparse_adam_does_not_let_untouched_rows_coast():
    b1, b2, eps = ADAM["default"]
    dense, params = optax.adam(0.1, b1, b2, eps), jnp.asarray(table(5))
    state = dense.init(params)
    for ids, upstream in batches(PLACES, 5):
        real = np.where(ids == PADDING, ROWS, ids)
        grads = jnp.zeros_like(params).at[real].add(upstream, mode="drop")
        updates, state = dense.update(grads, state)
        params = optax.apply_updates(params, updates)
    assert apart([(params, state)], sparse_adam(5, b1, b2, eps))


def adagrad(width, **options):
    make = lambda weights: torch.optim.Adagrad(weights, lr=0.1, **options)
    return theirs(make, width)


START = {"initial_accumulator_value": 0.5}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options",
    [{}, {"eps": 0.1}, START, {"eps": 0.1, **START}],
    ids=["default", "eps", "start", "both"],
)
def test_row_adagrad_of_single_entries_is_torchs(options):
    optimizer = neuron_optax.row_adagrad(0.1, **options)
    agree(ours(optimizer, 1), adagrad(1, **options), [("memory", "sum")])


def rss(start, eps):
    scaled = lazy_rows(optax.scale_by_rss(start, eps))
    return row_chain(scaled, optax.scale_by_learning_rate(0.1))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_lazy_rows_of_adagrad_is_torchs_without_eps(start):
    """Optax's adds eps inside of the root, torch's and ours outside."""
    expected = adagrad(5, eps=0.0, initial_accumulator_value=start)
    agree(ours(rss(start, 0.0), 5), expected, [("sum_of_squares", "sum")])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("optimizer", "width", "options"),
    [
        pytest.param(neuron_optax.row_adagrad(0.1), 5, {}, id="rows"),
        pytest.param(neuron_optax.row_adagrad(0.1), 1, {"eps": 0.1}, id="eps"),
        pytest.param(neuron_optax.row_adagrad(0.1), 1, START, id="start"),
        pytest.param(rss(0.0, 0.1), 5, {"eps": 0.1}, id="eps-inside"),
        pytest.param(rss(0.0, 0.0), 5, {**START, "eps": 0.0}, id="rss-start"),
    ],
)
def test_comparison_notices_another_adagrad(optimizer, width, options):
    assert apart(ours(optimizer, width), adagrad(width, **options))


POOLED = {
    mode: functools.partial(embedding_bag, pooling=mode) for mode in ("sum", "mean")
}


def bags(mode):
    """Yield the steps of Adagrad on the bags of torch, of one entry a row."""
    make = lambda weights: torch.optim.Adagrad(weights, lr=0.1)
    return theirs(make, 1, None, torch.nn.EmbeddingBag, PLACES[:1], mode=mode)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", POOLED)
def test_bags_are_torchs(mode):
    actual = ours(neuron_optax.row_adagrad(0.1), 1, POOLED[mode], PLACES[:1])
    agree(actual, bags(mode), [("memory", "sum")])


@pytest.mark.usefixtures("float64")
def test_comparison_notices_other_bags():
    actual = ours(neuron_optax.row_adagrad(0.1), 1, POOLED["sum"], PLACES[:1])
    assert apart(actual, bags("mean"))
