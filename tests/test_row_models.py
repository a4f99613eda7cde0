"""Models of tables and dense layers train through one optimizer, as written in Flax."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from neuron_optax import (
    adam_mini,
    apply_row_updates,
    embedding_bag,
    partition_rows,
    row_adagrad,
    row_adam_mini,
    row_chain,
    rowwise_adagrad,
    take_rows,
    unique_rows,
)

pytestmark = pytest.mark.slow

USERS, ITEMS, DIM, STEPS = 50, 30, 4, 5
TABLES = r"(user|item)/embedding"


def batches():
    """Draw users, bags of items with padding of -1, and clicks."""
    draw = np.random.default_rng(0)
    users = draw.integers(0, USERS, (STEPS, 8))
    items = draw.integers(-1, ITEMS, (STEPS, 8, 3))
    return users, items, draw.integers(0, 2, (STEPS, 8)).astype(np.float32)


class Linen(flax.linen.Module):
    """As many rows of users and items as the caller holds, and a dense head."""

    users: int = USERS
    items: int = ITEMS

    @flax.linen.compact
    def __call__(self, user, item, shown):
        """Return logits; ``shown`` are the items that are not padding."""
        user = flax.linen.Embed(self.users, DIM, name="user")(user)
        item = flax.linen.Embed(self.items, DIM, name="item")(item)
        pooled = jnp.sum(shown[..., None] * item, axis=-2)
        return flax.linen.Dense(1, name="head")(jnp.hstack([user, pooled]))[:, 0]


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.user = nnx.Embed(USERS, DIM, rngs=rngs)
        self.item = nnx.Embed(ITEMS, DIM, rngs=rngs)
        self.head = nnx.Linear(2 * DIM, 1, rngs=rngs)

    def __call__(self, user, item, shown):
        """Return logits; ``shown`` are the items that are not padding."""
        pooled = jnp.sum(shown[..., None] * self.item(item), axis=-2)
        return self.head(jnp.hstack([self.user(user), pooled]))[:, 0]


def linen():
    """Return params and apply(params, user, item, shown) for tables of any length."""
    like = [jnp.zeros(shape, int) for shape in ((8,), (8, 3), (8, 3))]
    params = Linen().init(jax.random.key(0), *like)

    def apply(params, *inputs):
        held = {
            f"{n}s": len(params["params"][n]["embedding"]) for n in ("user", "item")
        }
        return Linen(**held).apply(params, *inputs)

    return params, apply, lambda user, item: {"params": _rows(user, item)}


def nnx_model():
    """Return params and apply(params, user, item, shown) for tables of any length."""
    graph, params = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param)
    return params, lambda p, *inputs: nnx.merge(graph, p)(*inputs), _rows


def _rows(user, item):
    return {"user": {"embedding": user}, "item": {"embedding": item}}


MODELS = {"linen": linen, "nnx": nnx_model}


def cross_entropy(logits, clicks):
    return optax.sigmoid_binary_cross_entropy(logits, clicks).mean()


def sparse(optimizer, params, apply, where):
    """Train on the rows that each batch touches."""

    @jax.jit
    def step(params, state, users, items, clicks):
        user = unique_rows(users, USERS)
        item = unique_rows(items, ITEMS, padding_id=-1)
        rows = where(user, item)
        compact = take_rows(params, rows)

        def loss(compact):
            logits = apply(compact, user.slots, item.slots, item.kept)
            return cross_entropy(logits, clicks)

        updates, state = optimizer.update(
            jax.grad(loss)(compact), state, compact, row_ids=rows
        )
        return apply_row_updates(params, updates, rows), state

    state = optimizer.init(params)
    for batch in zip(*batches(), strict=True):
        params, state = step(params, state, *batch)
    return params, state


def dense(optimizer, params, apply):
    """Train on gradients as large as the tables."""

    @jax.jit
    def step(params, state, users, items, clicks):
        def loss(params):
            return cross_entropy(
                apply(params, users, jnp.maximum(items, 0), items >= 0), clicks
            )

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for users, items, clicks in zip(*batches(), strict=True):
        params, state = step(params, state, users, items, clicks)
    return params


def plain(params):
    """List the arrays of a tree, without boxes."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_tables_and_layers_train_through_one_optimizer(model):
    params, apply, where = model()
    optimizer = partition_rows(row_adagrad(0.1), adam_mini(0.01), TABLES)
    ours, state = sparse(optimizer, params, apply, where)
    assert jax.tree.structure(ours) == jax.tree.structure(params)

    labels = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: "rows" if "embedding" in str(path) else "dense", params
    )
    whole = {"rows": rowwise_adagrad(0.1), "dense": adam_mini(0.01)}
    theirs = dense(optax.partition(whole, labels), params, apply)
    start = plain(params)
    for before, leaf, expected in zip(start, plain(ours), plain(theirs), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(leaf - before).max() > 1e-3
    assert optax.tree.get(state, "inner_states").keys() == {"rows", "dense"}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_table_may_have_an_optimizer_of_its_own(model):
    params, apply, where = model()
    each = {
        "user": row_chain(optax.clip(0.1), row_adagrad(0.1)),
        "item": row_adam_mini(0.01, b1=0.9),
        "head": optax.adam(0.01),
    }
    labels = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: next(name for name in each if name in str(path)), params
    )
    ours, state = sparse(optax.partition(each, labels), params, apply, where)
    rows = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert (USERS, 1) in rows and (ITEMS, 1) in rows and (ITEMS, DIM) in rows
    assert all(np.isfinite(leaf).all() for leaf in plain(ours))


def test_a_pattern_that_names_no_table_is_refused():
    params, *_ = linen()
    optimizer = partition_rows(row_adagrad(0.1), optax.sgd(0.1), "tables$")
    with pytest.raises(ValueError, match=r"tables='tables\$' must be in a path, got"):
        optimizer.init(params)
    with pytest.raises(ValueError, match="tables must be a regular expression"):
        partition_rows(row_adagrad(0.1), optax.sgd(0.1), "(")


def test_bags_are_sums_of_what_is_shown():
    params, *_ = nnx_model()
    _, items, _ = batches()
    item = unique_rows(items[0], ITEMS, padding_id=-1)
    rows = {"item": {"embedding": item}}
    table = take_rows(params, rows)["item"]["embedding"][...]
    padded = jnp.sum(item.kept[..., None] * table[item.slots], axis=-2)
    np.testing.assert_array_equal(embedding_bag(table, item), padded)
