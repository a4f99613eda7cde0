"""`row_adagrad` and SGD of touched rows against the bags and tables of FBGEMM.

Of FBGEMM 1.8.0 on CPUs, found by trying: `max_norm` is accepted and ignored, so that
`limit_norms` is compared with its oracle alone; EXACT_SGD and EXACT_ADAGRAD ignore
decay, and so do pooled tables of a single feature; the mean of a weighted bag is
divided by the number of its ids forward and by nothing backward, which is no gradient
(ours divides both by the sum of the weights).
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import (
    PER_ENTRY,
    apply_row_updates,
    embedding_bag,
    lazy_rows,
    row_chain,
    take_rows,
    unique_rows,
)
from tests.authors.packages import (
    EMBEDDING,
    EPS,
    MARKS,
    RATE,
    STEPS,
    TOLERANCE,
    agree,
    apart,
    draw,
    start,
)

pytestmark = MARKS

TOKENS, WIDTH = EMBEDDING["embedding"].shape
BAGS, IN_BAG, NONE = 3, 4, -1  # for each feature; bags of up to four ids
DECAY = 2.0
SLOW = 1e-3  # so that steps of SGD, too, move a parameter by less than 0.1
# A bag adds up to four rows, weighted by less than 1.5, and rounds four times.
BAG_TOLERANCE = 1.5 * IN_BAG * TOLERANCE
# Each side sums up to STEPS squares of gradients of some ten operations.
STATE_TOLERANCE = 2 * (STEPS + 10) * EPS
MODES = {"none": {}, "l2": {"decay": "l2"}, "decouple": {"decay": "decoupled"}}


def batches(features):
    """Yield the ids of every step, weights of them, and the gradient of every bag."""
    rng = np.random.default_rng(0)
    size = np.exp(2 * draw(1, WIDTH)).clip(max=10)
    for step in range(STEPS):
        ids = rng.integers(NONE, TOKENS, (features, BAGS, IN_BAG))
        ids[0, 0] = 1, 1, 1, step % TOKENS  # repeated in a bag and from step to step
        ids[-1, -1] = NONE
        weights = rng.uniform(0.5, 1.5, ids.shape).astype(np.float32)
        yield ids, weights, size * draw((2, step), features, BAGS, WIDTH)


def fbgemm(optimizer, bags, features=2, **options):
    """Yield a table of FBGEMM, the bags it gave and its state after every step."""
    torch = importlib.import_module("torch")
    importlib.import_module("fbgemm_gpu")
    module = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
    tables = importlib.import_module(module)
    mode = options.pop("mode", "none")
    place = tables.EmbeddingLocation.HOST, tables.ComputeDevice.CPU
    table = tables.SplitTableBatchedEmbeddingBagsCodegen(
        [(TOKENS, WIDTH, *place)],
        feature_table_map=[0] * features,
        optimizer=tables.OptimType[optimizer],
        pooling_mode=tables.PoolingMode["MEAN" if bags == "mean" else "SUM"],
        weight_decay=0.0 if mode == "none" else DECAY,
        weight_decay_mode=tables.WeightDecayMode[mode.upper()],
        **options,
    )
    (held,) = table.split_embedding_weights()
    held.data.copy_(torch.tensor(start(EMBEDDING)["embedding"]))
    for ids, weights, grads in batches(features):
        real = ids != NONE
        offsets = np.append(0, real.sum(-1).cumsum())
        given = torch.tensor(weights[real]) if bags == "weighted" else None
        pooled = table(torch.tensor(ids[real]), torch.tensor(offsets), given)
        pooled.backward(torch.tensor(grads).transpose(0, 1).flatten(1))
        by_feature = pooled.detach().unflatten(1, (features, WIDTH)).transpose(0, 1)
        yield {
            "embedding": held.detach().numpy().copy(),
            "bags": by_feature.numpy().copy(),
            "state": [of.numpy().copy() for (of,) in table.split_optimizer_states()],
        }


def ours(optimizer, bags, features=2, counted=None):
    """Yield our table, bags and state after every step; ``counted`` weights ids."""
    pooling = "mean" if bags == "mean" else "sum"

    @jax.jit
    def step(params, state, ids, weights, grads):
        rows = unique_rows(ids, TOKENS, padding_id=NONE)
        compact = take_rows(params, rows)
        pool = lambda compact: embedding_bag(compact, rows, weights, pooling)
        pooled, backward = jax.vjp(pool, compact)
        updates, state = optimizer.update(
            *backward(grads), state, compact, row_ids=rows
        )
        return apply_row_updates(params, updates, rows), state, pooled

    params = jnp.asarray(start(EMBEDDING)["embedding"])
    state = optimizer.init(params)
    for ids, weights, grads in batches(features):
        given = weights if bags == "weighted" else None
        if counted is not None:
            given = counted(ids).astype(np.float32)
        params, state, pooled = step(params, state, ids, given, grads)
        memory = optax.tree.get(state, "memory")
        yield {"embedding": params, "bags": pooled, "state": memory}


def only(leaf, trajectory):
    return [{leaf: step[leaf]} for step in trajectory]


def agree_on_tables_and_bags(actual, expected):
    actual, expected = [*actual], [*expected]
    agree(only("embedding", actual), only("embedding", expected))
    agree(only("bags", actual), only("bags", expected), BAG_TOLERANCE)
    return actual[-1]["state"], expected[-1]["state"]


def adagrad(mode, bags, features=2, eps=1e-8, **mistake):
    decay = 0.0 if mode == "none" else DECAY
    optimizer = neuron_optax.row_adagrad(
        RATE, eps=eps, weight_decay=decay, **MODES[mode]
    )
    return ours(optimizer, bags, features, **mistake)


def their_adagrad(mode, bags, features=2, eps=1e-8):
    options = {"mode": mode, "eps": eps, "learning_rate": RATE}
    return fbgemm("EXACT_ROWWISE_ADAGRAD", bags, features, **options)


def by_entry():
    return neuron_optax.rowwise_adagrad(RATE, eps=1e-8, neurons=PER_ENTRY)


def sgd(bags, **mistake):
    return ours(row_chain(optax.scale_by_learning_rate(SLOW)), bags, **mistake)


def their_sgd(bags):
    return fbgemm("EXACT_SGD", bags, learning_rate=SLOW)


@pytest.mark.parametrize("bags", ["sum", "weighted", "mean"])
@pytest.mark.parametrize(
    ("mode", "features", "eps"),
    [
        *(("none", 1, 1e-8), ("none", 2, 1e-8), ("l2", 2, 1e-8), ("decouple", 2, 1e-8)),
        *(("none", 1, 1.0), ("none", 2, 1.0)),
    ],
)
def test_row_adagrad_is_fbgemms(mode, features, eps, bags):
    options = mode, bags, features, eps
    actual, (expected,) = agree_on_tables_and_bags(
        adagrad(*options), their_adagrad(*options)
    )
    np.testing.assert_allclose(actual.ravel(), expected, rtol=STATE_TOLERANCE)


@pytest.mark.parametrize("bags", ["sum", "weighted", "mean"])
def test_lazy_rows_of_adagrad_is_fbgemms(bags):
    actual = ours(lazy_rows(by_entry()), bags)
    expected = fbgemm("EXACT_ADAGRAD", bags, eps=1e-8, learning_rate=RATE)
    actual, (expected,) = agree_on_tables_and_bags(actual, expected)
    np.testing.assert_allclose(actual, expected, rtol=STATE_TOLERANCE)


@pytest.mark.parametrize("bags", ["sum", "weighted", "mean"])
def test_row_sgd_is_fbgemms(bags):
    agree_on_tables_and_bags(sgd(bags), their_sgd(bags))


def once_in_a_bag(ids):
    """Mask the ids that stand earlier in their bag."""
    earlier = np.tril(ids[..., None] == ids[..., None, :], -1)
    return ~earlier.any(-1)


def once_in_a_batch(ids):
    """Mask the ids of bags before theirs."""
    bags = ids.reshape(-1, IN_BAG)
    shown = [~np.isin(bag, bags[:number]) for number, bag in enumerate(bags)]
    return np.reshape(shown, ids.shape)


REPEATS = [once_in_a_bag, once_in_a_batch]


@pytest.mark.parametrize("counted", REPEATS)
def test_comparison_notices_repeated_ids(counted):
    expected = only("embedding", their_adagrad("none", "sum"))
    actual = only("embedding", adagrad("none", "sum", counted=counted))
    assert apart(actual, expected)
    actual = only("embedding", sgd("sum", counted=counted))
    assert apart(actual, only("embedding", their_sgd("sum")))


@pytest.mark.parametrize(
    ("mine", "other"), [("sum", "mean"), ("mean", "sum"), ("sum", "weighted")]
)
def test_comparison_notices_other_bags(mine, other):
    expected = [*their_adagrad("none", other)]
    actual = [*adagrad("none", mine)]
    for leaf in ("embedding", "bags"):
        assert apart(only(leaf, actual), only(leaf, expected))
    expected = only("embedding", their_sgd(other))
    assert apart(only("embedding", sgd(mine)), expected)


@pytest.mark.parametrize(
    ("mine", "other"), [("none", "l2"), ("l2", "decouple"), ("decouple", "l2")]
)
def test_comparison_notices_another_decay(mine, other):
    expected = only("embedding", their_adagrad(other, "sum"))
    assert apart(only("embedding", adagrad(mine, "sum")), expected)


def test_comparison_notices_entries_in_place_of_rows():
    actual = only("embedding", ours(lazy_rows(by_entry()), "sum"))
    assert apart(actual, only("embedding", their_adagrad("none", "sum")))


def test_comparison_notices_another_eps():
    actual = only("embedding", adagrad("none", "sum", eps=1.0))
    assert apart(actual, only("embedding", their_adagrad("none", "sum")))
