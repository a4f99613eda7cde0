"""A model of Flax and its transpose in Equinox take the same steps."""

import functools

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from neuron_optax import FLAX, TORCH
from tests.cases import variants

pytestmark = pytest.mark.slow

STEPS, LEARNING_RATE = 20, 0.01
HEADS, WIDTH, TOKENS, CLASSES = 2, 6, 4, 3
TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
POSITIONS = np.arange(TOKENS)


class FlaxModel(linen.Module):
    """A convolution, a table, a normalisation, attention and a linear layer."""

    @linen.compact
    def __call__(self, images):
        """Return the logits."""
        x = linen.Conv(WIDTH, (2, 2), strides=2, name="conv")(images)
        x = x.reshape(len(images), TOKENS, WIDTH)
        x += linen.Embed(TOKENS, WIDTH, name="embed")(POSITIONS)[None]
        x = linen.LayerNorm(use_fast_variance=False, name="norm")(x)
        attention = linen.MultiHeadDotProductAttention(
            HEADS, use_bias=False, name="attention"
        )
        return linen.Dense(CLASSES, name="head")((x + attention(x)).mean(axis=1))


class EquinoxModel(equinox.Module):
    """The same for one image, channels first, with weights (out, in, ...)."""

    conv: equinox.nn.Conv2d
    embed: equinox.nn.Embedding
    norm: equinox.nn.LayerNorm
    attention: equinox.nn.MultiheadAttention
    head: equinox.nn.Linear

    def __init__(self):
        key = jax.random.key(0)
        self.conv = equinox.nn.Conv2d(3, WIDTH, 2, 2, key=key)
        self.embed = equinox.nn.Embedding(TOKENS, WIDTH, key=key)
        self.norm = equinox.nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = equinox.nn.MultiheadAttention(HEADS, WIDTH, key=key)
        self.head = equinox.nn.Linear(WIDTH, CLASSES, key=key)

    def __call__(self, image):
        """Return the logits of one image."""
        x = self.conv(image).reshape(WIDTH, TOKENS).T
        x += jax.vmap(self.embed)(jnp.asarray(POSITIONS))
        x = jax.vmap(self.norm)(x)
        return self.head((x + self.attention(x, x, x)).mean(axis=0))


def transposed(params):
    """Return the leaves of a Flax model as Equinox lays them out, by path."""
    heads = lambda kernel: kernel.reshape(WIDTH, WIDTH).T
    attention = params["attention"]
    return {
        "conv/weight": jnp.moveaxis(params["conv"]["kernel"], (3, 2), (0, 1)),
        "conv/bias": params["conv"]["bias"].reshape(WIDTH, 1, 1),
        "embed/weight": params["embed"]["embedding"],
        "norm/weight": params["norm"]["scale"],
        "norm/bias": params["norm"]["bias"],
        "attention/query_proj/weight": heads(attention["query"]["kernel"]),
        "attention/key_proj/weight": heads(attention["key"]["kernel"]),
        "attention/value_proj/weight": heads(attention["value"]["kernel"]),
        "attention/output_proj/weight": heads(attention["out"]["kernel"]),
        "head/weight": params["head"]["kernel"].T,
        "head/bias": params["head"]["bias"],
    }


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
    return {name(keys): leaf for keys, leaf in leaves}


def cross_entropy(logits):
    labels = np.arange(len(logits)) % CLASSES
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.fixture(scope="module")
def models():
    """Return params and gradient of the Flax model and of its transpose."""
    with jax.enable_x64(True):
        return build_models()


def build_models():
    """Build both; their gradients are compiled once for all strategies."""
    images = np.random.default_rng(0).standard_normal((5, 4, 4, 3))
    flax = FlaxModel()
    wide = lambda leaf: jnp.asarray(leaf, jnp.float64)
    params = jax.tree.map(wide, flax.init(jax.random.key(0), images)["params"])
    flax_loss = lambda params: cross_entropy(flax.apply({"params": params}, images))

    leaves, rest = equinox.partition(EquinoxModel(), equinox.is_inexact_array)
    turned = transposed(params)
    paths = by_path(leaves)
    assert paths.keys() == turned.keys()
    leaves = jax.tree.unflatten(jax.tree.structure(leaves), [turned[p] for p in paths])
    channels_first = jnp.moveaxis(images, -1, 1)
    torch_loss = lambda leaves: cross_entropy(
        jax.vmap(equinox.combine(leaves, rest))(channels_first)
    )
    gradients = jax.jit(jax.grad(flax_loss)), jax.jit(jax.grad(torch_loss))
    return (params, gradients[0]), (leaves, gradients[1])


def trajectory(optimizer, params, gradient):
    state = optimizer.init(params)
    for _ in range(STEPS):
        updates, state = optimizer.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        yield params


ROWS = {n: row for n, row in variants(["default"]).items() if row[0].permutation}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("case", "changed"), ROWS.values(), ids=ROWS)
def test_transposing_a_model_and_its_layout_transposes_its_steps(case, changed, models):
    (start, gradient), (turned_start, turned_gradient) = models
    flax = case.start(start, FLAX), gradient
    torch_like = case.start(turned_start, TORCH), turned_gradient
    options = {"learning_rate": LEARNING_RATE, **changed}
    build = functools.partial(case.make, options)
    pairs = zip(
        trajectory(build(neurons=FLAX), *flax),
        trajectory(build(neurons=TORCH), *torch_like),
        strict=True,
    )
    for params, turned in pairs:
        expected = transposed(params)
        chex.assert_trees_all_close(by_path(turned), expected, rtol=0, atol=TOLERANCE)
    *_, wrong = trajectory(build(neurons=FLAX, bias="own"), *torch_like)
    moved = by_path(jax.tree.map(lambda a, b: np.abs(a - b).max(), wrong, turned))
    noticed = moved["head/weight"] > 1e-6 and moved["conv/weight"] > 1e-6
    assert noticed != case.steady
