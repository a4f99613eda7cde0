"""The layers of Equinox, held as attributes of a model and filtered to its arrays."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import nn

from tests.layers import Layer

KEY = jax.random.key(0)  # of the initial values, all of which are replaced


class Network(eqx.Module):
    """A model of one layer, under a name that such a layer often has."""

    linear: Any = None
    layers: Any = None
    experts: Any = None
    conv: Any = None
    conv1: Any = None
    depthwise: Any = None
    upsample: Any = None
    embedding: Any = None
    attention: Any = None
    blocks: Any = None
    cell: Any = None
    norm: Any = None
    activation: Any = None
    mlp: Any = None


def draw(shape, seed=0):
    """Draw numbers of both signs, all well away from zero."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], shape)
    return jnp.asarray(sign * rng.uniform(0.5, 1.5, shape), jnp.float32)


def build(name, make, forward):
    """Filter a model that holds what ``make`` makes; small weights shut no gate.

    ``forward(layer, state)`` returns the pre-activations by their path in the layer.
    """
    made = eqx.filter_eval_shape(lambda: nn.make_with_state(Network)(**{name: make()}))
    arrays, rest = eqx.partition(made, lambda leaf: hasattr(leaf, "dtype"))
    leaves, structure = jax.tree.flatten(arrays)
    leaves = [0.2 * draw(leaf.shape, seed) for seed, leaf in enumerate(leaves, 1)]
    network, state = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def outputs(params):
        found = forward(getattr(eqx.combine(params, static), name), state)
        return {f"{name}/{path}" if path else name: y for path, y in found.items()}

    return Layer(params, outputs)


def call(name, make, shape):
    """Call the layer on a batch of inputs."""
    x = draw((2, *shape))
    return build(name, make, lambda layer, _: {"": jax.vmap(layer)(x)})


def linear(fan_in, fan_out, wrap=lambda layer: layer, **options):
    """Build a Linear, perhaps wrapped in another layer."""
    make = lambda: wrap(nn.Linear(fan_in, fan_out, key=KEY, **options))
    return call("linear", make, () if fan_in == "scalar" else (fan_in,))


def convolution(kind, channels, kernel, name="conv", wrap=lambda x: x, **options):
    """Build a convolution with two positions along each axis of its output."""
    make = lambda: wrap(kind(*channels, kernel, key=KEY, **options))
    return call(name, make, (channels[0], *[size + 1 for size in kernel]))


def transposed(kind, channels, kernel, **options):
    """Build a transposed convolution, cropped to where every tap meets an input."""
    options = {"name": "upsample", "padding": [size - 1 for size in kernel], **options}
    return convolution(kind, channels, kernel, **options)


def embedding():
    """Look up every row of the table."""
    lookup = lambda layer, _: {"": jax.vmap(layer)(jnp.arange(11))}
    return build("embedding", partial(nn.Embedding, 11, 7, key=KEY), lookup)


def attend(attention):
    """Return what each projection computes; the first three split into heads."""
    heads = {}

    def record(query, key, value):
        heads.update(query_proj=query, key_proj=key, value_proj=value)
        return query, key, value

    sizes = attention.query_size, attention.key_size, attention.value_size
    inputs = [draw((2, size), seed) for seed, size in enumerate(sizes, 100)]
    return {"output_proj": attention(*inputs, process_heads=record), **heads}


def make_attention(key=KEY, bias=False):
    """Make three heads, each with its own sizes of query, key, value and output."""
    flags = {f"use_{part}_bias": bias for part in ("query", "key", "value", "output")}
    return nn.MultiheadAttention(3, 5, 8, 9, 7, 4, 2, key=key, **flags)


def attention(make):
    return build("attention", make, lambda layer, _: attend(layer))


def gated(kind, *states, **options):
    """Take one step of a cell; its new state stands for the gates, which are hidden."""

    def step(layer, _):
        x, *state = [draw((2, size), seed) for seed, size in enumerate((5, *states))]
        new = jax.vmap(layer)(x, tuple(state) if len(state) > 1 else state[0])
        return {"": jnp.concatenate(jax.tree.leaves(new), axis=-1)}

    return build("cell", partial(kind, 5, states[0], key=KEY, **options), step)


def batch_norm():
    """Normalise over a named batch axis, as in training."""
    x = draw((2, 7, 3))
    make = partial(nn.BatchNorm, 7, axis_name="batch", mode="batch")
    over = partial(jax.vmap, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return build("norm", make, lambda layer, state: {"": over(layer)(x, state)[0]})


def spectral_norm(name, make, shape):
    """Show the wrapped layer; every weight enters the one number it is divided by."""
    x = draw((2, *shape))
    wrapped = lambda: nn.SpectralNorm(make(key=KEY), "weight", key=KEY)
    return build(name, wrapped, lambda norm, _: {"layer": jax.vmap(norm.layer)(x)})


def prelu(**options):
    """Call a PReLU where its slope counts: below zero."""
    x = -abs(draw((2, 7)))
    make = partial(nn.PReLU, **options)
    return build("activation", make, lambda layer, _: {"": jax.vmap(layer)(x)})


def mlp(**options):
    """Show each layer of an MLP before its activation."""

    def forward(network, _):
        x, found = draw((2, 5)), {}
        for number, layer in enumerate(network.layers):
            x = found[f"layers/{number}"] = jax.vmap(layer)(x)
            x = jax.nn.tanh(x)
        return found

    return build("mlp", partial(nn.MLP, 5, 7, 6, 2, key=KEY, **options), forward)


def stacked(name, copies, make, outputs):
    """Stack copies along leading axes; ``outputs(layer)`` is for a single one."""
    many = lambda key: make(key=key)
    for _ in copies:
        many, outputs = eqx.filter_vmap(many), eqx.filter_vmap(outputs)
    keys = jax.random.split(KEY, copies)
    return build(name, lambda: many(keys), lambda layers, _: outputs(layers))


def stacked_linear(name, copies, **options):
    make = partial(nn.Linear, 5, 7, **options)
    return stacked(name, copies, make, lambda layer: {"": layer(draw((5,)))})


def stacked_convolution():
    make = partial(nn.Conv2d, 4, 5, (2, 3))
    return stacked("layers", (6,), make, lambda layer: {"": layer(draw((4, 3, 4)))})


LAYERS = {
    "Linear": partial(linear, 5, 7),
    "Linear, no bias": partial(linear, 5, 7, use_bias=False),
    "Linear, square": partial(linear, 6, 6),
    "Linear, square, no bias": partial(linear, 6, 6, use_bias=False),
    "Linear, scalar output": partial(linear, 5, "scalar"),
    "Linear, scalar input": partial(linear, "scalar", 7),
    "Conv1d": partial(convolution, nn.Conv1d, (5, 7), (3,)),
    "Conv2d": partial(convolution, nn.Conv2d, (5, 7), (3, 4)),
    "Conv3d": partial(convolution, nn.Conv3d, (5, 6), (2, 3, 4)),
    "Conv1d, no bias": partial(convolution, nn.Conv1d, (5, 7), (3,), use_bias=False),
    "Conv2d, no bias": partial(
        convolution, nn.Conv2d, (5, 7), (3, 4), name="conv1", use_bias=False
    ),
    "Conv2d, square": partial(convolution, nn.Conv2d, (5, 5), (3, 4), name="conv1"),
    "Conv1d, grouped": partial(convolution, nn.Conv1d, (10, 14), (3,), groups=2),
    "Conv2d, grouped": partial(convolution, nn.Conv2d, (10, 14), (2, 3), groups=2),
    "Conv1d, depthwise": partial(
        convolution, nn.Conv1d, (10, 10), (3,), name="depthwise", groups=10
    ),
    "Conv2d, depthwise": partial(
        convolution, nn.Conv2d, (10, 10), (3, 4), name="depthwise", groups=10
    ),
    "Conv2d, depthwise, multiplier 2": partial(
        convolution, nn.Conv2d, (10, 20), (2, 3), name="depthwise", groups=10
    ),
    "ConvTranspose1d": partial(transposed, nn.ConvTranspose1d, (5, 7), (3,)),
    "ConvTranspose2d": partial(transposed, nn.ConvTranspose2d, (5, 7), (3, 4)),
    "ConvTranspose3d": partial(transposed, nn.ConvTranspose3d, (5, 6), (2, 3, 4)),
    "ConvTranspose2d, no bias": partial(
        transposed, nn.ConvTranspose2d, (5, 7), (3, 4), name="conv", use_bias=False
    ),
    "ConvTranspose2d, grouped": partial(
        transposed, nn.ConvTranspose2d, (10, 14), (2, 3), groups=2
    ),
    "Embedding": embedding,
    "MultiheadAttention": partial(attention, make_attention),
    "MultiheadAttention, biases": partial(
        attention, partial(make_attention, bias=True)
    ),
    "MultiheadAttention, one size": partial(
        attention, lambda: nn.MultiheadAttention(3, 6, key=KEY)
    ),
    "LSTMCell": partial(gated, nn.LSTMCell, 7, 7),
    "LSTMCell, no bias": partial(gated, nn.LSTMCell, 7, 7, use_bias=False),
    "GRUCell": partial(gated, nn.GRUCell, 7),
    "GRUCell, no bias": partial(gated, nn.GRUCell, 7, use_bias=False),
    "LayerNorm": partial(call, "norm", lambda: nn.LayerNorm(7), (7,)),
    "LayerNorm, two axes": partial(call, "norm", lambda: nn.LayerNorm((5, 7)), (5, 7)),
    "RMSNorm": partial(call, "norm", lambda: nn.RMSNorm(7), (7,)),
    "RMSNorm, two axes": partial(call, "norm", lambda: nn.RMSNorm((5, 7)), (5, 7)),
    "GroupNorm": partial(call, "norm", lambda: nn.GroupNorm(2, 6), (6, 3)),
    "BatchNorm": batch_norm,
    "WeightNorm": partial(linear, 5, 7, nn.WeightNorm),
    "WeightNorm, Conv1d": partial(
        convolution, nn.Conv1d, (5, 7), (3,), wrap=nn.WeightNorm
    ),
    "SpectralNorm": partial(spectral_norm, "linear", partial(nn.Linear, 5, 7), (5,)),
    "SpectralNorm, Conv2d": partial(
        spectral_norm, "conv", partial(nn.Conv2d, 5, 7, (3, 4)), (5, 4, 5)
    ),
    "PReLU": prelu,
    "PReLU, one slope each": lambda: prelu(init_alpha=jnp.ones(7)),
    "MLP": mlp,
    "MLP, no final bias": partial(mlp, use_final_bias=False),
    "Linear, stacked": partial(stacked_linear, "layers", (13,)),
    "Linear, stacked, no bias": lambda: stacked_linear(
        "experts", (13,), use_bias=False
    ),
    "Linear, stacked twice": partial(stacked_linear, "layers", (4, 3)),
    "Conv2d, stacked": stacked_convolution,
    "MultiheadAttention, stacked": partial(
        stacked, "blocks", (6,), partial(make_attention, bias=True), attend
    ),
}
