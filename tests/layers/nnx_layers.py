"""Flax NNX's layers, as attributes of a model with typical names."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter

import jax
import jax.numpy as jnp
from flax import nnx

from tests.layers import Layer
from tests.layers.linen_layers import draw, redraw


class Model(nnx.Module):
    """Layers by name."""

    def __init__(self, rngs, **makes):
        for name, make in makes.items():
            setattr(self, name, make(rngs=rngs))


class MoE(nnx.Module):
    """Experts whose weights are parameters of the module itself."""

    def __init__(self, rngs):
        self.wi = nnx.Param(jnp.ones((4, 5, 7)))


def call(module, x):
    """Call a layer; a bare matrix, or a stack of them, multiplies."""
    return x @ module[...] if isinstance(module, nnx.Variable) else module(x)


def layer(name, make, inputs, run=call):
    """Catalogue ``make(rngs=)`` as attribute ``name`` of a model.

    ``inputs`` is the layer's, or by path inside the layer those of the parts that show
    their own outputs.
    """
    inputs = inputs if isinstance(inputs, Mapping) else {"": inputs}
    inputs = {f"{name}/{part}".removesuffix("/"): x for part, x in inputs.items()}

    def build():
        def init():
            model = Model(nnx.Rngs(0), **{name: make})
            model.eval()
            return nnx.split(model, nnx.Param, ...)

        graphdef, params, rest = redraw(jax.eval_shape(init))
        rest = jax.tree.map(jnp.abs, rest)

        def outputs(params):
            merged = nnx.merge(graphdef, params, rest)
            part = lambda path: attrgetter(path.replace("/", "."))(merged)
            return {path: run(part(path), x) for path, x in inputs.items()}

        return Layer(params, outputs)

    return build


def copies(make, axis=0, count=3):
    """Make copies of a layer, stacked at ``axis`` of each weight."""
    stack = nnx.vmap(lambda rngs: make(rngs=rngs), out_axes=axis)
    return lambda rngs: nnx.split_rngs(splits=count)(stack)(rngs)


def ensemble(axis=0):
    """Call every copy of a layer on the same input, at once."""
    return nnx.vmap(call, in_axes=(axis, None))


def scan(axis=0, run=call):
    """Call one copy of a layer after the other, each on the same input."""
    body = nnx.scan(
        lambda carry, copy: (carry, run(copy, carry)),
        in_axes=(nnx.Carry, axis),
        out_axes=(nnx.Carry, 0),
    )
    return lambda module, x: body(x, module)[1]


def unscaled_spectral_norm(rngs):
    """Wrap a layer, but do not divide by the norm, which every entry moves."""
    return nnx.SpectralNorm(linear(rngs=rngs), n_steps=0, rngs=rngs)


linear, no_bias = partial(nnx.Linear, 5, 7), partial(nnx.Linear, 5, 7, use_bias=False)
general = nnx.LinearGeneral
conv = partial(nnx.Conv, padding="CIRCULAR")
conv_transpose = partial(nnx.ConvTranspose, padding="CIRCULAR")
attention = partial(
    nnx.MultiHeadAttention,
    num_heads=3,
    in_features=5,
    qkv_features=12,
    out_features=7,
    decode=False,
)

ROW, PICTURE, WIDE = draw(2, 5), draw(1, 3, 4, 5), draw(1, 3, 4, 10)
SEQUENCE, HEADS, IDS = draw(1, 2, 5), draw(1, 2, 3, 4), jnp.arange(11)
PROJECTIONS = {"query": SEQUENCE, "key": SEQUENCE, "value": SEQUENCE, "out": HEADS}
SCANNED = {f"attn/{name}": x for name, x in PROJECTIONS.items()}
X, H = draw(1, 5), draw(1, 7)
GATES = {"ii": X, "if_": X, "ig": X, "io": X, "hi": H, "hf": H, "hg": H, "ho": H}
FUSED = {"dense_i": X, "dense_h": H}

LAYERS: dict[str, Callable[[], Layer]] = {
    "Linear": layer("linear", linear, ROW),
    "Linear, no bias": layer("linear", no_bias, ROW),
    "Linear, square": layer("linear", partial(nnx.Linear, 6, 6), draw(2, 6)),
    "Linear, square, no bias": layer(
        "linear", partial(nnx.Linear, 6, 6, use_bias=False), draw(2, 6)
    ),
    "LinearGeneral, two features": layer("linear", partial(general, 5, (7, 4)), ROW),
    "LinearGeneral, two input axes": layer(
        "linear", partial(general, (3, 5), 7, axis=(-2, -1)), draw(2, 3, 5)
    ),
    "LinearGeneral, two input axes, two features": layer(
        "linear", partial(general, (3, 5), (7, 4), axis=(-2, -1)), draw(2, 3, 5)
    ),
    "LinearGeneral, batch axis": layer(
        "linear", partial(general, 5, 7, batch_axis={0: 3}), draw(3, 2, 5)
    ),
    "LinearGeneral, batch axis, two input axes, two features": layer(
        "linear",
        partial(general, (3, 5), (6, 4), axis=(-2, -1), batch_axis={0: 2}),
        draw(2, 1, 3, 5),
    ),
    "Einsum, two features": layer(
        "linear", partial(nnx.Einsum, "bd,dhk->bhk", (5, 3, 4), (3, 4)), ROW
    ),
    "Einsum, features first": layer(
        "linear", partial(nnx.Einsum, "bd,od->bo", (7, 5), (7,)), ROW
    ),
    "Einsum, features first, square, no bias": layer(
        "linear", partial(nnx.Einsum, "bd,od->bo", (6, 6)), draw(2, 6)
    ),
    "Einsum, experts": layer(
        "experts",
        partial(nnx.Einsum, "ebd,edf->ebf", (3, 5, 7), (3, 7)),
        draw(3, 2, 5),
    ),
    "Conv 1D": layer("conv1", partial(conv, 5, 7, (3,)), draw(1, 4, 5)),
    "Conv 2D": layer("conv1", partial(conv, 5, 7, (2, 3)), PICTURE),
    "Conv 3D": layer("conv1", partial(conv, 5, 6, (2, 3, 4)), draw(1, 2, 3, 4, 5)),
    "Conv 1D, no bias": layer(
        "conv1", partial(conv, 5, 7, (3,), use_bias=False), draw(1, 4, 5)
    ),
    "Conv 2D, no bias": layer(
        "conv1", partial(conv, 5, 7, (2, 3), use_bias=False), PICTURE
    ),
    "Conv 2D, grouped": layer(
        "conv1", partial(conv, 10, 14, (2, 3), feature_group_count=2), WIDE
    ),
    "Conv 2D, depthwise": layer(
        "conv1", partial(conv, 10, 10, (2, 3), feature_group_count=10), WIDE
    ),
    "Conv 2D, depthwise, multiplier 2": layer(
        "conv1", partial(conv, 10, 20, (2, 3), feature_group_count=10), WIDE
    ),
    "ConvTranspose 1D": layer(
        "deconv", partial(conv_transpose, 5, 7, (3,)), draw(1, 4, 5)
    ),
    "ConvTranspose 1D, transposed kernel": layer(
        "deconv",
        partial(conv_transpose, 5, 7, (3,), transpose_kernel=True),
        draw(1, 4, 5),
    ),
    "ConvTranspose 2D": layer("deconv", partial(conv_transpose, 5, 7, (2, 3)), PICTURE),
    "ConvTranspose 2D, no bias": layer(
        "deconv", partial(conv_transpose, 5, 7, (2, 3), use_bias=False), PICTURE
    ),
    "ConvTranspose 2D, transposed kernel": layer(
        "deconv", partial(conv_transpose, 5, 7, (2, 3), transpose_kernel=True), PICTURE
    ),
    "Embed": layer("embed", partial(nnx.Embed, 11, 5), IDS),
    "MultiHeadAttention": layer("attn", attention, PROJECTIONS),
    "MultiHeadAttention, no bias": layer(
        "attn", partial(attention, use_bias=False), PROJECTIONS
    ),
    "MultiHeadAttention, normalized queries and keys": layer(
        "attn",
        partial(attention, normalize_qk=True),
        {**PROJECTIONS, "query_ln": HEADS, "key_ln": HEADS},
    ),
    "LSTMCell": layer("cell", partial(nnx.LSTMCell, 5, 7), GATES),
    "OptimizedLSTMCell": layer("cell", partial(nnx.OptimizedLSTMCell, 5, 7), FUSED),
    "SimpleCell": layer("cell", partial(nnx.SimpleCell, 5, 7), FUSED),
    "GRUCell": layer("cell", partial(nnx.GRUCell, 5, 7), FUSED),
    "LayerNorm": layer("norm", partial(nnx.LayerNorm, 5), ROW),
    "LayerNorm, two feature axes": layer(
        "norm",
        partial(nnx.LayerNorm, 15, reduction_axes=(-2, -1), feature_axes=(-2, -1)),
        draw(2, 3, 5),
    ),
    "RMSNorm": layer("norm", partial(nnx.RMSNorm, 5), ROW),
    "BatchNorm": layer("bn1", partial(nnx.BatchNorm, 5), ROW),
    "BatchNorm of pictures": layer("bn1", partial(nnx.BatchNorm, 5), PICTURE),
    "GroupNorm": layer("norm", partial(nnx.GroupNorm, 6, 2), draw(1, 3, 6)),
    "InstanceNorm": layer("norm", partial(nnx.InstanceNorm, 5), SEQUENCE),
    "WeightNorm": layer(
        "linear", lambda rngs: nnx.WeightNorm(linear(rngs=rngs), rngs=rngs), ROW
    ),
    "SpectralNorm": layer("linear", unscaled_spectral_norm, ROW),
    "PReLU": layer("act", lambda rngs: nnx.PReLU(), ROW),
    "LoRA": layer("lora", partial(nnx.LoRA, 5, 3, 7), {"": ROW, "lora_a": ROW}),
    "LoRALinear": layer(
        "linear",
        partial(nnx.LoRALinear, 5, 7, lora_rank=3),
        {"": ROW, "lora/lora_a": ROW},
    ),
    "vmap, Linear": layer("ensemble", copies(linear), ROW, ensemble()),
    "vmap, Linear, axis 1": layer("ensemble", copies(linear, 1), ROW, ensemble(1)),
    "vmap, Linear, no bias": layer("ensemble", copies(no_bias), ROW, ensemble()),
    "vmap, Conv 1D": layer(
        "ensemble", copies(partial(conv, 5, 7, (4,))), draw(1, 4, 5), ensemble()
    ),
    "scan, Linear": layer(
        "layers", copies(partial(Model, linear=linear)), {"linear": ROW}, scan()
    ),
    "scan, Linear, axis 1": layer(
        "layers", copies(partial(Model, linear=linear), 1), {"linear": ROW}, scan(1)
    ),
    "scan, Linear, axis -1": layer(
        "layers", copies(partial(Model, linear=linear), -1), {"linear": ROW}, scan(-1)
    ),
    "scan, Conv 2D": layer(
        "layers",
        copies(partial(Model, conv1=partial(conv, 5, 7, (2, 2)))),
        {"conv1": draw(1, 2, 3, 5)},
        scan(),
    ),
    "scan, Embed": layer(
        "layers",
        copies(partial(Model, embed=partial(nnx.Embed, 11, 5))),
        {"embed": IDS},
        scan(),
    ),
    "scan, LayerNorm": layer(
        "layers",
        copies(partial(Model, norm=partial(nnx.LayerNorm, 5))),
        {"norm": ROW},
        scan(),
    ),
    "scan, MultiHeadAttention": layer(
        "layers", copies(partial(Model, attn=attention), count=2), SCANNED, scan()
    ),
    "scan, MultiHeadAttention, axis 1": layer(
        "layers", copies(partial(Model, attn=attention), 1, 2), SCANNED, scan(1)
    ),
    "scan of vmap, Linear": layer(
        "layers", copies(copies(linear, count=2)), ROW, scan(run=ensemble())
    ),
    "MoE": layer("moe", MoE, {"wi": ROW}),
    "scan, MoE": layer(
        "layers", copies(partial(Model, moe=MoE)), {"moe/wi": ROW}, scan()
    ),
    "scan, MoE, axis 1": layer(
        "layers", copies(partial(Model, moe=MoE), 1), {"moe/wi": ROW}, scan(1)
    ),
}

if "num_kv_heads" in inspect.signature(nnx.MultiHeadAttention.__init__).parameters:
    LAYERS["MultiHeadAttention, grouped queries"] = layer(
        "attn",
        partial(attention, num_heads=6, qkv_features=24, num_kv_heads=2),
        {**PROJECTIONS, "out": draw(1, 2, 6, 4)},
    )
