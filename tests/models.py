"""Small vision transformers as four libraries write them, with real gradients.

All classify the same images: a convolution cuts patches, a table holds one embedding
per position, then a normalisation, attention and a linear layer. The same part has
the same name in all libraries.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from neuron_optax import FLAX, HAIKU, TORCH, Layout

BATCH, SIDE, PATCH, CHANNELS, HEADS, WIDTH, CLASSES = 4, 6, 2, 3, 4, 24, 24
TOKENS = (SIDE // PATCH) ** 2
POSITIONS = np.arange(TOKENS)
QUICK = {"xla_backend_optimization_level": 0}  # quick to compile, slow to run


@dataclasses.dataclass(frozen=True)
class Model:
    """One library's network, built when first asked for.

    Attributes:
      build: returns the params and a pure function from such params to logits.
      layout: where the library has the neurons of its layers.
    """

    build: Callable[[], tuple[Any, Callable[[Any], jax.Array]]]
    layout: Layout

    @functools.cached_property
    def built(self):
        """The params and their logits."""
        return self.build()

    @property
    def params(self):
        """What a user hands over to Optax, in the library's own container."""
        return self.built[0]

    @functools.cached_property
    def loss_and_gradient(self):
        """The loss of such params on one batch and its gradient, compiled once."""
        labels = np.arange(BATCH) % CLASSES
        losses = optax.softmax_cross_entropy_with_integer_labels
        loss = lambda params: jnp.mean(losses(self.built[1](params), labels))
        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)

    def loss(self, params):
        """Return the loss of such params."""
        return self.loss_and_gradient(params)[0]

    def gradient(self, params):
        """Return the gradient of the loss, in the container of the params."""
        return self.loss_and_gradient(params)[1]


def images():
    """Draw a batch of images, channels last."""
    shape = BATCH, SIDE, SIDE, CHANNELS
    return np.random.default_rng(0).standard_normal(shape, np.float32)


class LinenTransformer(linen.Module):
    """Flax linen, its layers made where they are called."""

    @linen.compact
    def __call__(self, images):
        """Return the logits."""
        x = linen.Conv(WIDTH, (PATCH, PATCH), strides=PATCH, name="conv")(images)
        x = x.reshape(BATCH, TOKENS, WIDTH)
        x += linen.Embed(TOKENS, WIDTH, name="embed")(POSITIONS)[None]
        x = linen.LayerNorm(name="norm")(x)
        x += linen.MultiHeadDotProductAttention(HEADS, name="attention")(x)
        return linen.Dense(CLASSES, name="head")(x.mean(axis=1))


def linen_model():
    """Return the collection of params."""
    module, inputs = LinenTransformer(), images()
    init = jax.jit(module.init, compiler_options=QUICK)
    params = init(jax.random.key(0), inputs)["params"]
    return params, lambda params: module.apply({"params": params}, inputs)


class NnxTransformer(nnx.Module):
    """Flax nnx; batch statistics and random keys are no params."""

    def __init__(self):
        rngs, window = nnx.Rngs(0), (PATCH, PATCH)
        self.conv = nnx.Conv(CHANNELS, WIDTH, window, strides=PATCH, rngs=rngs)
        self.embed = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images):
        """Return the logits."""
        x = self.conv(images).reshape(BATCH, TOKENS, WIDTH)
        x = self.norm(x + self.embed(POSITIONS)[None])
        x += self.attention(x)
        return self.head(x.mean(axis=1))


def nnx_model():
    """Return the ``nnx.State`` of Variables that holds the params, no more."""
    graph, params, rest = nnx.split(NnxTransformer(), nnx.Param, ...)
    inputs = images()
    return params, lambda params: nnx.merge(graph, params, rest, copy=True)(inputs)


class EquinoxTransformer(equinox.Module):
    """Equinox: one image, channels first, weights (out, in, ...)."""

    conv: equinox.nn.Conv2d
    embed: equinox.nn.Embedding
    norm: equinox.nn.LayerNorm
    attention: equinox.nn.MultiheadAttention
    head: equinox.nn.Linear
    activation: Callable[[jax.Array], jax.Array]

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.conv = equinox.nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH, key=keys[0])
        self.embed = equinox.nn.Embedding(TOKENS, WIDTH, key=keys[1])
        self.norm = equinox.nn.LayerNorm(WIDTH)
        self.attention = equinox.nn.MultiheadAttention(HEADS, WIDTH, key=keys[2])
        self.head = equinox.nn.Linear(WIDTH, CLASSES, key=keys[3])
        self.activation = jax.nn.relu

    def __call__(self, image):
        """Return the logits of one image."""
        x = self.conv(image).reshape(WIDTH, TOKENS).T
        x += jax.vmap(self.embed)(jnp.asarray(POSITIONS))
        x = jax.vmap(self.norm)(x)
        x += self.attention(x, x, x)
        return self.head(self.activation(x.mean(axis=0)))


def equinox_model():
    """Return the module with its arrays, ``None`` where it holds something else."""
    module = EquinoxTransformer(jax.random.key(0))
    params, rest = equinox.partition(module, equinox.is_inexact_array)
    inputs = jnp.moveaxis(images(), -1, 1)
    return params, lambda params: jax.vmap(equinox.combine(params, rest))(inputs)


def haiku_transformer(images):
    """Return the logits, as dm-haiku writes them."""
    x = haiku.Conv2D(WIDTH, PATCH, stride=PATCH, name="conv")(images)
    x = x.reshape(BATCH, TOKENS, WIDTH)
    x += haiku.Embed(TOKENS, WIDTH, name="embed")(POSITIONS)[None]
    norm = haiku.LayerNorm(-1, create_scale=True, create_offset=True, name="norm")
    start = haiku.initializers.VarianceScaling()
    size = WIDTH // HEADS
    attend = haiku.MultiHeadAttention(HEADS, size, w_init=start, name="attention")
    x = norm(x)
    x += attend(x, x, x)
    return haiku.Linear(CLASSES, name="head")(x.mean(axis=1))


def haiku_model():
    """Return the dict of modules."""
    network, inputs = haiku.transform(haiku_transformer), images()
    init = jax.jit(network.init, compiler_options=QUICK)
    params = init(jax.random.key(0), inputs)
    return params, lambda params: network.apply(params, None, inputs)


MODELS = {
    "linen": Model(linen_model, FLAX),
    "nnx": Model(nnx_model, FLAX),
    "equinox": Model(equinox_model, TORCH),
    "haiku": Model(haiku_model, HAIKU),
}
