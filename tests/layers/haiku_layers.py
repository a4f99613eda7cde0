"""The layers of Haiku, with the parameters that transform returns."""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from tests.layers import Layer


def draw(shape, seed=0):
    """Draw numbers of both signs, all well away from zero."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], shape)
    return jnp.asarray(sign * rng.uniform(0.5, 1.5, shape), jnp.float32)


def build(function):
    """Transform ``function()``; weights are small, so that no gate is shut.

    The function returns the pre-activations by the beginning of their path.
    """
    network = hk.transform_with_state(function)
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    leaves, structure = jax.tree.flatten(params)
    leaves = [0.2 * draw(leaf.shape, seed) for seed, leaf in enumerate(leaves, 1)]

    def outputs(params):
        return network.apply(params, state, None)[0]

    return Layer(jax.tree.unflatten(structure, leaves), outputs)


def capture(function, *args, **options):
    """Call ``function`` and return what each of its modules returns, by name."""
    found = {}

    def record(method, args, kwargs, context):
        out = method(*args, **kwargs)
        if context.method_name == "__call__":
            name = context.module.module_name
            found[name] = out[0] if isinstance(out, tuple) else out
        return out

    with hk.intercept_methods(record):
        function(*args, **options)
    return found


def call(make, *shapes, **options):
    """Call the module that ``make`` makes on inputs of these shapes."""
    inputs = [draw(shape, seed) for seed, shape in enumerate(shapes, 100)]
    return build(lambda: capture(make(), *inputs, **options))


def linear(*args, **options):
    return call(partial(hk.Linear, *args, **options), (2, 5))


def mlp(**options):
    """Build an MLP whose hidden units are never at rest, as those of a ReLU may be."""
    return call(lambda: hk.nets.MLP([6, 7, 4], activation=jnp.tanh, **options), (2, 5))


def convolution(kind, channels, kernel, **options):
    """Build a convolution with two positions along each axis of its output."""
    fan_in, fan_out = channels
    make = partial(kind, fan_out, kernel, **{"padding": "VALID", **options})
    spatial = [size + 1 for size in kernel]
    first = options.get("data_format", "").startswith("NC")
    return call(make, (1, fan_in, *spatial) if first else (1, *spatial, fan_in))


def transposed(kind, channels, kernel, **options):
    """Build a transposed convolution, cropped to where every tap meets an input."""
    return convolution(
        kind, channels, kernel, padding=[(0, 0)] * len(kernel), **options
    )


def embed(style):
    """Look up every row of the table."""
    return build(lambda: capture(hk.Embed(11, 7, lookup_style=style), jnp.arange(11)))


def attention(**options):
    """Make three heads, each with its own sizes of query, key, value and output."""
    options = {"w_init": INIT, "value_size": 2, "model_size": 7, **options}
    make = partial(hk.MultiHeadAttention, 3, 4, **options)
    return call(make, (1, 2, 5), (1, 2, 8), (1, 2, 9))


def batch_norm(shape, **options):
    make = partial(hk.BatchNorm, True, True, 0.9, **options)
    return call(make, shape, is_training=True)


def lstm():
    """Take one step from a state of hidden units and cells."""
    state = hk.LSTMState(draw((2, 7), 1), draw((2, 7), 2))
    return build(lambda: capture(hk.LSTM(7), draw((2, 5)), state))


def convolutional_lstm():
    """Take one step, cropped to where every tap meets an input; it pads with zeros."""
    state = hk.LSTMState(draw((1, 4, 5, 4), 1), draw((1, 4, 5, 4), 2))

    def step():
        found = capture(hk.Conv2DLSTM((4, 5), 4, (2, 3)), draw((1, 4, 5, 5)), state)
        return {name: y[:, :-1, 1:-1] for name, y in found.items()}

    return build(step)


def transformer_block(x):
    """Attend, then apply an MLP, each with a norm before it and a shortcut."""
    y = hk.LayerNorm(-1, True, True)(x)
    x = x + hk.MultiHeadAttention(3, 4, model_size=5, w_init=INIT)(y, y, y)
    return x + hk.nets.MLP([7, 5], activation=jnp.tanh)(hk.LayerNorm(-1, True, True)(x))


def stacked(copies, make, shape, name="__layer_stack_with_per_layer"):
    """Stack copies that all see the same input, so that none feeds the next."""

    def function():
        stack = hk.layer_stack(copies, with_per_layer_inputs=True, name=name)
        _, found = stack(lambda x: (x, capture(make(), x)))(draw(shape))
        return {f"{name}/{path}": y for path, y in found.items()}

    return build(function)


def ensemble(lift, prefix):
    """Lift the mapped initialisation of one member into the parameters of all."""

    def function():
        x = draw((1, 5))
        member = hk.transform(lambda x: capture(hk.Linear(7), x))
        keys = hk.next_rng_keys(13) if hk.running_init() else None
        params = lift(jax.vmap(member.init, in_axes=(0, None)))(keys, x)
        found = jax.vmap(member.apply, in_axes=(0, None, None))(params, None, x)
        return {f"{prefix}{path}": y for path, y in found.items()}

    return build(function)


def mapped():
    """Map one Linear over the rows of its input."""
    layer = hk.Linear(7)
    return {"linear": hk.vmap(layer, split_rng=False)(draw((2, 5)))}


INIT = hk.initializers.RandomNormal()
NO_STACK_INPUTS = "__layer_stack_no_per_layer"  # the prefix without per-layer inputs

LAYERS = {
    "Linear": partial(linear, 7),
    "Linear, no bias": partial(linear, 7, with_bias=False),
    "Linear, square": partial(linear, 5),
    "Linear, square, no bias": partial(linear, 5, with_bias=False),
    "Linear, mapped inputs": partial(build, mapped),
    "MLP": mlp,
    "MLP, no bias": partial(mlp, with_bias=False),
    "Conv1D": partial(convolution, hk.Conv1D, (5, 7), (3,)),
    "Conv2D": partial(convolution, hk.Conv2D, (5, 7), (3, 4)),
    "Conv3D": partial(convolution, hk.Conv3D, (5, 6), (2, 3, 4)),
    "Conv1D, no bias": partial(convolution, hk.Conv1D, (5, 7), (3,), with_bias=False),
    "Conv2D, no bias": partial(convolution, hk.Conv2D, (5, 7), (3, 4), with_bias=False),
    "Conv2D, square": partial(convolution, hk.Conv2D, (5, 5), (3, 4)),
    "Conv1D, grouped": partial(
        convolution, hk.Conv1D, (10, 14), (3,), feature_group_count=2
    ),
    "Conv2D, grouped": partial(
        convolution, hk.Conv2D, (10, 14), (2, 3), feature_group_count=2
    ),
    "Conv2D, depthwise": partial(
        convolution, hk.Conv2D, (10, 20), (2, 3), feature_group_count=10
    ),
    "Conv1D, NCW": partial(convolution, hk.Conv1D, (5, 7), (3,), data_format="NCW"),
    "Conv2D, NCHW": partial(convolution, hk.Conv2D, (5, 7), (3, 4), data_format="NCHW"),
    "DepthwiseConv1D": partial(convolution, hk.DepthwiseConv1D, (5, 2), (3,)),
    "DepthwiseConv2D": partial(convolution, hk.DepthwiseConv2D, (10, 1), (3, 4)),
    "DepthwiseConv2D, multiplier 2": partial(
        convolution, hk.DepthwiseConv2D, (10, 2), (2, 3)
    ),
    "DepthwiseConv3D": partial(convolution, hk.DepthwiseConv3D, (5, 2), (2, 3, 4)),
    "SeparableDepthwiseConv2D": partial(
        convolution, hk.SeparableDepthwiseConv2D, (5, 2), (3, 4)
    ),
    "Conv1DTranspose": partial(transposed, hk.Conv1DTranspose, (5, 7), (3,)),
    "Conv2DTranspose": partial(transposed, hk.Conv2DTranspose, (5, 7), (3, 4)),
    "Conv3DTranspose": partial(transposed, hk.Conv3DTranspose, (5, 6), (2, 3, 4)),
    "Conv2DTranspose, no bias": partial(
        transposed, hk.Conv2DTranspose, (5, 7), (3, 4), with_bias=False
    ),
    "Conv2DTranspose, NCHW": partial(
        transposed, hk.Conv2DTranspose, (5, 7), (3, 4), data_format="NCHW"
    ),
    "Embed": partial(embed, "ARRAY_INDEX"),
    "Embed, one-hot": partial(embed, "ONE_HOT"),
    "BatchNorm": partial(batch_norm, (2, 7)),
    "BatchNorm, image": partial(batch_norm, (2, 3, 4, 7)),
    "BatchNorm, NCHW": partial(batch_norm, (2, 7, 3, 4), data_format="NCHW"),
    "LayerNorm": partial(call, lambda: hk.LayerNorm(-1, True, True), (2, 7)),
    "LayerNorm, two axes": partial(
        call, lambda: hk.LayerNorm((1, 2), True, True, param_axis=(1, 2)), (2, 5, 7)
    ),
    "RMSNorm": partial(call, lambda: hk.RMSNorm(-1), (2, 7)),
    "GroupNorm": partial(call, lambda: hk.GroupNorm(2), (2, 3, 6)),
    "InstanceNorm": partial(call, lambda: hk.InstanceNorm(True, True), (2, 3, 7)),
    "MultiHeadAttention": attention,
    "MultiHeadAttention, no bias": partial(attention, with_bias=False),
    "VanillaRNN": partial(call, lambda: hk.VanillaRNN(7), (2, 5), (2, 7)),
    "LSTM": lstm,
    "GRU": partial(call, lambda: hk.GRU(7), (2, 5), (2, 7)),
    "Conv2DLSTM": convolutional_lstm,
    "Bias": partial(call, hk.Bias, (2, 5, 7)),
    "Bias, last axis": partial(call, lambda: hk.Bias(bias_dims=[-1]), (2, 5, 7)),
    "layer_stack, Linear": partial(
        stacked, 13, lambda: hk.Linear(7), (1, 5), NO_STACK_INPUTS
    ),
    "layer_stack, Linear, square": partial(
        stacked, 13, lambda: hk.Linear(5), (1, 5), NO_STACK_INPUTS
    ),
    "layer_stack, Linear, per-layer inputs": partial(
        stacked, 13, lambda: hk.Linear(7, with_bias=False), (1, 5)
    ),
    "layer_stack, Conv2D": partial(
        stacked, 6, lambda: hk.Conv2D(5, (2, 3), padding="VALID"), (1, 3, 4, 4)
    ),
    "layer_stack, transformer block": partial(
        stacked, 6, lambda: transformer_block, (1, 2, 5), NO_STACK_INPUTS
    ),
    "lift, Linear": partial(ensemble, partial(hk.lift, name="ensemble"), "ensemble/"),
    "transparent_lift, Linear": partial(ensemble, hk.transparent_lift, ""),
}
