"""Heads, tokens and copies: neurons that are not the last axis alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neuron_optax import FLAX, HAIKU, TORCH, Neurons, adam_mini, infer_layout
from tests.case import STEPS, oracle
from tests.cases import variants

torch = pytest.importorskip("torch")

TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
HEADS, DIM = 3, 4  # of queries; keys and values have one head
FUSED = HEADS + 2  # grouped queries: the heads of q, k and v in one kernel
LEAVES = {  # layout, path, shape, view as rows: one a neuron
    "neurons of heads": (
        FLAX,
        "attn/query/kernel",
        (5, HEADS, DIM),
        lambda w: w.reshape(5, -1).T,
    ),
    "tokens": (FLAX, "Embed_0/embedding", (7, 5), lambda w: w),
    "heads with an axis": (
        FLAX.override({"query/kernel": Neurons((1,))}),
        "attn/query/kernel",
        (5, HEADS, DIM),
        lambda w: np.moveaxis(w, 1, 0).reshape(HEADS, -1),
    ),
    "heads folded, Haiku": (
        HAIKU.override({"query/w": Neurons(blocks=((-1, HEADS),))}),
        "attention/query/w",
        (5, HEADS * DIM),
        lambda w: np.moveaxis(w.reshape(5, HEADS, DIM), 1, 0).reshape(HEADS, -1),
    ),
    "heads folded, Equinox": (
        TORCH.override({"query_proj/weight": Neurons((0,), blocks=((0, HEADS),))}),
        "attention/query_proj/weight",
        (HEADS * DIM, 5),
        lambda w: w.reshape(HEADS, -1),
    ),
    "grouped queries fused, torch": (
        TORCH.override({"in_proj_weight": Neurons((0,), blocks=((0, FUSED),))}),
        "attention/in_proj_weight",
        (FUSED * DIM, 5),
        lambda w: w.reshape(FUSED, -1),
    ),
    "grouped queries fused, Flax": (
        FLAX.override({"qkv/kernel": Neurons(blocks=((1, FUSED),))}),
        "attn/qkv/kernel",
        (5, FUSED * DIM),
        lambda w: np.moveaxis(w.reshape(5, FUSED, DIM), 1, 0).reshape(FUSED, -1),
    ),
    "heads of stacked layers": (
        FLAX.override({"kernel": Neurons((2,), stack=(0,), blocks=((2, HEADS),))}),
        "layers/query/kernel",
        (2, 5, HEADS * DIM),
        lambda w: np.moveaxis(w.reshape(2, 5, HEADS, DIM), 2, 1).reshape(2 * HEADS, -1),
    ),
    "groups of a transposed convolution, torch": (
        TORCH.override({"up": Neurons((1,), stack=(0,), blocks=((0, 2),))}),
        "up/weight",
        (6, 5, 3),  # (in, out / groups, taps)
        lambda w: np.moveaxis(w.reshape(2, 3, 5, 3), 2, 1).reshape(10, -1),
    ),
}
DEFAULT = {n: row for n, row in variants(["default"]).items() if row[0].isolated}
PAIRS = {  # every leaf with a fourth of the strategies, every strategy with two leaves
    f"{leaf}-{name}": (*row, *LEAVES[leaf])
    for number, (name, row) in enumerate(DEFAULT.items())
    for place, leaf in enumerate(LEAVES)
    if (place - number) % 4 == 0
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("case", "changed", "layout", "path", "shape", "rows"), PAIRS.values(), ids=PAIRS
)
def test_every_step_matches_pytorch(case, changed, layout, path, shape, rows):
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.standard_normal(shape))}
    params = case.start(params, layout)
    view = lambda tree: np.ascontiguousarray(rows(np.asarray(tree[path])))
    weight = torch.tensor(view(params))
    theirs = oracle(case.oracle)([weight], case.learning_rate, **changed)
    optimizer = case.build(case.learning_rate, neurons=layout, **changed)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    of = layout.axes(path, shape)
    for step in range(STEPS):
        active = rng.integers(2, size=of.numbers) if case.sparse else np.ones(1)
        active = np.broadcast_to(active, of.view).reshape(shape)
        grads = {path: jnp.asarray(active * rng.standard_normal(shape))}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        weight.grad = torch.tensor(view(grads))
        theirs.step()
        where = f"step {step + 1}"
        np.testing.assert_allclose(
            view(params), weight, TOLERANCE, TOLERANCE, err_msg=where
        )
    rate = optax.tree.get(state, "rate")[path]
    assert rate.size == len(weight) and np.ptp(rate) > 1e-3 * np.mean(rate)


@pytest.mark.parametrize("name", ["heads folded, Haiku", "heads of stacked layers"])
def test_a_count_of_other_heads_is_noticed(name):
    layout, path, shape, _ = LEAVES[name]
    (pattern, neurons, _), *_ = layout.rules
    ((axis, count),) = neurons.blocks
    other = layout.override({pattern: neurons._replace(blocks=((axis, 2 * count),))})
    params = {path: jnp.asarray(np.random.default_rng(0).standard_normal(shape))}
    pair = [adam_mini(0.1, neurons=neurons) for neurons in (layout, other)]
    updates = [opt.update(params, opt.init(params))[0][path] for opt in pair]
    assert not np.allclose(*updates, rtol=1e-3)  # by far


@pytest.mark.parametrize("blocks", [(), ((0, HEADS),)], ids=["entries", "heads"])
def test_a_bias_uses_the_rate_of_its_head(blocks):
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(5, HEADS * DIM)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=HEADS * DIM), jnp.float32),
    }
    per_head = {"w$": Neurons(blocks=((1, HEADS),)), "b$": Neurons(..., blocks=blocks)}
    optimizer = adam_mini(0.1, neurons=HAIKU.override(per_head), bias="kernel")
    _, (state, *_) = optimizer.update(params, optimizer.init(params), params)
    assert state.rate["w"].shape == (1, HEADS, 1)
    rates = np.broadcast_to(state.rate["b"].reshape(HEADS, -1), (HEADS, DIM))
    expected = np.broadcast_to(state.rate["w"].reshape(HEADS, 1), (HEADS, DIM))
    np.testing.assert_array_equal(rates, expected)
    assert np.ptp(expected) > 1e-3


def test_heads_are_redistributed_within_their_layer():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 12)))}
    layout = Neurons((2,), stack=(0,), blocks=((2, HEADS),))
    optimizer = adam_mini(0.1, neurons=layout, redistribute=True)
    _, (state, *_) = optimizer.update(params, optimizer.init(params))
    assert state.rate["w"].shape == (2, 1, HEADS, 1)
    np.testing.assert_allclose(state.rate["w"].mean((1, 2, 3)), 1, rtol=1e-6)


WRONG = {
    "does not divide": (Neurons(blocks=((1, 5),)), r"w: axis 1 of length 12 has no 5"),
    "none": (Neurons(blocks=((1, 0),)), r"w: axis 1 of length 12 has no 0 blocks"),
    "fan-in": (Neurons((1,), blocks=((0, 3),)), r"w: blocks of shape \(6, 12\)"),
    "out of range": (
        Neurons(blocks=((2, 3),)),
        r"distinct axes named in output or stack",
    ),
    "twice": (
        Neurons(blocks=((1, 3), (-1, 2))),
        r"distinct axes named in output or stack",
    ),
}


@pytest.mark.parametrize(("neurons", "message"), WRONG.values(), ids=WRONG)
def test_blocks_that_do_not_fit_raise_naming_the_leaf(neurons, message):
    with pytest.raises(ValueError, match=message):
        adam_mini(0.1, neurons=neurons).init({"w": jnp.ones((6, 12))})


def test_inference_knows_no_heads_and_an_override_adds_them():
    params = {"query": {"w": jnp.ones((5, 12)), "b": jnp.ones(12)}}
    layout = infer_layout(params).override({"query/w": Neurons(blocks=((1, HEADS),))})
    state = adam_mini(0.1, neurons=layout).init(params)
    sizes = jax.tree.map(jnp.size, optax.tree.get(state, "memory"))
    assert sizes == {"query": {"w": HEADS, "b": 12}}
