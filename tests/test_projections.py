"""Clipping, centralising and normalising per neuron, against PyTorch and Optax."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neuron_optax import (
    FLAX,
    HAIKU,
    TORCH,
    Neurons,
    centralize_per_neuron,
    clip_per_neuron,
    normalize_per_neuron,
)

torch = pytest.importorskip("torch")

TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
SCANNED = FLAX.override({"layers": Neurons(stack=(0,))})
HEADS = HAIKU.override({"query/w": Neurons(blocks=((1, 3),))})
LEAVES = {  # layout, path, shape, and the leaf as weights of torch
    "Dense": (FLAX, "Dense_0/kernel", (3, 4), lambda w: [w.T]),
    "Conv1D": (FLAX, "Conv_0/kernel", (3, 2, 5), lambda w: [w.reshape(6, 5).T]),
    "Conv2D": (FLAX, "Conv_0/kernel", (3, 2, 2, 5), lambda w: [w.reshape(12, 5).T]),
    "query": (FLAX, "query/kernel", (5, 3, 4), lambda w: [w.reshape(5, 12).T]),
    "out": (FLAX, "attn/out/kernel", (3, 4, 7), lambda w: [w.reshape(12, 7).T]),
    "scanned": (SCANNED, "layers/kernel", (3, 4, 5), lambda w: [c.T for c in w]),
    "Equinox": (TORCH, "linear/weight", (4, 3), lambda w: [w]),
    "Equinox conv": (TORCH, "conv/weight", (5, 2, 3, 3), lambda w: [w]),
    "heads": (HEADS, "query/w", (5, 12), lambda w: [heads(w)]),
}


def heads(kernel):
    return np.moveaxis(kernel.reshape(5, 3, 4), 1, 0).reshape(3, 20)


def reference(name):
    module = importlib.import_module(f"tests.reference.{name}")
    return getattr(module, name)


def partial(build, *arguments):
    return functools.partial(build, *arguments), build.__name__, arguments


CHANGES = {
    "clip": partial(clip_per_neuron, 0.1, 0.01),
    "clip at eps": partial(clip_per_neuron, 0.02, 20.0),
    "centralize": partial(centralize_per_neuron),
    "normalize": partial(normalize_per_neuron, 1e-3),
    "normalize at eps": partial(normalize_per_neuron, 1.5),
}
OURS = [clip_per_neuron(0.1), centralize_per_neuron(), normalize_per_neuron()]


def draw(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def theirs(reference, arguments, rows, weights, gradients):
    """Return what a torch reference makes of the gradients, as rows."""
    changed = []
    for weight, gradient in zip(rows(weights), rows(gradients), strict=True):
        leaf = torch.tensor(np.ascontiguousarray(weight))
        leaf.grad = torch.tensor(np.ascontiguousarray(gradient))
        reference([leaf], *arguments)
        changed.append(leaf.grad.numpy())
    return changed


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("layout", "path", "shape", "rows"), LEAVES.values(), ids=LEAVES
)
@pytest.mark.parametrize(("build", "name", "arguments"), CHANGES.values(), ids=CHANGES)
def test_every_layer_matches_pytorch(build, name, arguments, layout, path, shape, rows):
    weights = draw(shape, 0) * 10.0 ** np.random.default_rng(3).integers(-2, 2, shape)
    gradients = draw(shape, 1)
    optimizer = build(neurons=layout)
    params, grads = {path: jnp.asarray(weights)}, {path: jnp.asarray(gradients)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = theirs(reference(name), arguments, rows, weights, gradients)
    actual = rows(np.asarray(updates[path]))
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.abs(np.asarray(actual) - rows(gradients)).max() > 0.01
    whole = build(neurons=FLAX.override({re.escape(path): Neurons(())}))
    merged, _ = whole.update(grads, whole.init(params), params)
    assert np.abs(np.asarray(rows(np.asarray(merged[path]))) - expected).max() > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("build", "name", "arguments"), CHANGES.values(), ids=CHANGES)
def test_a_bias_is_clipped_as_a_whole_if_it_is_one_neuron(build, name, arguments):
    weights, gradients = draw(5, 0), draw(5, 1)
    layout = FLAX.override({"bias": Neurons(())} if name == "clip_per_neuron" else {})
    optimizer = build(neurons=layout)
    params, grads = {"bias": jnp.asarray(weights)}, {"bias": jnp.asarray(gradients)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    (expected,) = theirs(reference(name), arguments, lambda w: [w], weights, gradients)
    np.testing.assert_allclose(updates["bias"], expected, rtol=TOLERANCE)


PEERS = {  # Optax's, and the leaves where its guess from the rank is right
    "clip": (
        functools.partial(clip_per_neuron, 0.1),
        optax.adaptive_grad_clip(0.1),
        {"Dense", "Conv2D", "query"},
    ),
    "centralize": (
        centralize_per_neuron,
        optax.centralize(),
        {"Equinox", "Equinox conv"},
    ),
}


@pytest.mark.parametrize(("layout", "path", "shape", "_"), LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize(("build", "peer", "right"), PEERS.values(), ids=PEERS)
def test_optax_reduces_other_axes_where_it_guesses_wrong(
    build, peer, right, layout, path, shape, _, request
):
    ours = build(neurons=layout)
    params, grads = ({path: jnp.asarray(draw(shape, n), jnp.float32)} for n in (0, 1))
    updates, _ = ours.update(grads, ours.init(params), params)
    guessed, _ = peer.update(grads, peer.init(params), params)
    agree = np.allclose(updates[path], guessed[path], rtol=1e-4, atol=1e-6)
    assert agree == any(f"-{name}]" in request.node.name for name in right)


@pytest.mark.parametrize("optimizer", OURS, ids=["clip", "centralize", "normalize"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64])
def test_dtype_in_is_dtype_out_and_nothing_is_remembered(optimizer, dtype):
    params = {
        "kernel": jnp.asarray(draw((3, 4), 0), dtype),
        "empty": jnp.ones((0, 3), dtype),
        "none": None,
    }
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params, unheard_of=1)
    assert jax.tree.map(lambda u: u.dtype, updates) == {
        **dict.fromkeys(["kernel", "empty"], dtype),
        "none": None,
    }
    assert state == after == optax.EmptyState()
    zeros = jax.tree.map(jnp.zeros_like, params)
    for still in (
        optimizer.update(zeros, state, params),
        optimizer.update(zeros, state, zeros),
    ):
        assert not jnp.any(still[0]["kernel"])


def test_it_is_jitted_chained_and_masked():
    params = {"kernel": jnp.asarray(draw((3, 4), 0), jnp.float32), "bias": jnp.ones(4)}
    spared = {"kernel": True, "bias": False}
    optimizer = optax.chain(
        optax.masked(centralize_per_neuron(), spared),
        clip_per_neuron(0.1),
        optax.sgd(1),
    )
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(params, state, params)
    sizes = [jnp.linalg.norm(tree["kernel"], axis=0) for tree in (updates, params)]
    np.testing.assert_allclose(sizes[0], 0.1 * sizes[1], rtol=1e-5)
    assert updates["bias"].tolist() == pytest.approx([-0.1] * 4)


def test_clipping_without_params_names_the_leaf():
    params = {"a": {"kernel": jnp.ones((3, 4))}}
    optimizer = clip_per_neuron(0.1)
    with pytest.raises(ValueError, match=r"a/kernel: .*pass params"):
        optimizer.update(params, optimizer.init(params))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="clipping must be positive"):
        clip_per_neuron(0.0)
    with pytest.raises(ValueError, match="eps must be positive"):
        normalize_per_neuron(-1.0)
    with pytest.raises(ValueError, match=r"kernel: neuron axes of shape \(3, 4\)"):
        centralize_per_neuron(neurons=Neurons((5,))).init({"kernel": jnp.ones((3, 4))})
    with pytest.raises(TypeError, match="kernel: params must be float"):
        centralize_per_neuron().init({"kernel": jnp.ones((3, 4), int)})


def test_updates_that_do_not_fit_are_refused_by_their_leaf():
    params = {"a": {"kernel": jnp.ones((3, 4))}, "b": jnp.ones(4)}
    optimizer = clip_per_neuron(0.1)
    with pytest.raises(ValueError, match=r"missing \['a/kernel'\]"):
        optimizer.update({"a": None, "b": params["b"]}, optax.EmptyState(), params)
    with pytest.raises(ValueError, match=r"b: .*\(4,\) of its parameter, got \(5,\)"):
        optimizer.update({**params, "b": jnp.ones(5)}, optax.EmptyState(), params)
    with pytest.raises(TypeError, match="b: params must be float"):
        optimizer.update({**params, "b": jnp.ones(4, int)}, optax.EmptyState(), params)
