"""Layers of torch, inputs for them, and their twins in Flax and Equinox."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx

from tests.interop_twins import (
    Case,
    Twin,
    channels_last,
    draw,
    each,
    in_equinox,
    in_linen,
    in_nnx,
    plain,
)

LINEN = {"param_dtype": jnp.float64}
TAPS = (3, 2, 4)
SIZES = {"square": (4, 4), "oblong": (4, 6)}


def linear(i, o):
    x = draw(3, i)
    return Case(
        torch.nn.Linear(i, o),
        (x,),
        {
            "linen": in_linen(linen.Dense(o, **LINEN), plain, x),
            "nnx": in_nnx(functools.partial(nnx.Linear, i, o, **LINEN), plain),
            "equinox": in_equinox(functools.partial(eqx.nn.Linear, i, o), each),
        },
    )


def convolution(rank, i, o, groups=1):
    taps = TAPS[:rank]
    x = draw(2, i, *[5] * rank)
    layers = torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d
    flax = {"padding": "VALID", "feature_group_count": groups, **LINEN}
    make = functools.partial(nnx.Conv, i, o, taps, **flax)
    ours = functools.partial(eqx.nn.Conv, rank, i, o, taps, groups=groups)
    return Case(
        layers[rank - 1](i, o, taps, groups=groups),
        (x,),
        {
            "linen": in_linen(linen.Conv(o, taps, **flax), channels_last, x),
            "nnx": in_nnx(make, channels_last),
            "equinox": in_equinox(ours, each),
        },
    )


def transposed(rank, i, o, swapped=False):
    taps = TAPS[:rank]
    x = draw(2, i, *[3] * rank)
    layers = (
        torch.nn.ConvTranspose1d,
        torch.nn.ConvTranspose2d,
        torch.nn.ConvTranspose3d,
    )
    strides = (2,) * rank
    said = {"transpose_kernel": swapped}
    flax = {"strides": strides, "padding": "VALID", **said, **LINEN}
    model = linen.ConvTranspose(o, taps, **flax)
    make = functools.partial(nnx.ConvTranspose, i, o, taps, **flax)
    ours = functools.partial(eqx.nn.ConvTranspose, rank, i, o, taps, strides)
    return Case(
        layers[rank - 1](i, o, taps, 2),
        (x,),
        {
            "linen": in_linen(model, channels_last, x, **said),
            "nnx": in_nnx(make, channels_last, **said),
            "equinox": in_equinox(ours, each),
        },
    )


def transposed_groups(i, o):
    ours = functools.partial(eqx.nn.ConvTranspose, 2, i, o, TAPS[:2], groups=2)
    module = torch.nn.ConvTranspose2d(i, o, TAPS[:2], groups=2)
    return Case(module, (draw(2, i, 3, 3),), {"equinox": in_equinox(ours, each)})


def embedding(i, o):
    tokens = np.array([0, 2, 2, 1])
    return Case(
        torch.nn.Embedding(i, o),
        (tokens,),
        {
            "linen": in_linen(linen.Embed(i, o, **LINEN), plain, tokens),
            "nnx": in_nnx(functools.partial(nnx.Embed, i, o, **LINEN), plain),
            "equinox": in_equinox(functools.partial(eqx.nn.Embedding, i, o), each),
        },
    )


def layer_norm(i, o):
    x = draw(o, i)
    eps = {"epsilon": 1e-5}
    return Case(
        torch.nn.LayerNorm(i),
        (x,),
        {
            "linen": in_linen(linen.LayerNorm(**eps, **LINEN), plain, x),
            "nnx": in_nnx(functools.partial(nnx.LayerNorm, i, **eps, **LINEN), plain),
            "equinox": in_equinox(lambda key: eqx.nn.LayerNorm(i), each),
        },
    )


def group_norm(i, o):
    x, eps = draw(o, i, 5), {"epsilon": 1e-5}
    make = functools.partial(nnx.GroupNorm, i, 2, **eps, **LINEN)
    return Case(
        torch.nn.GroupNorm(2, i),
        (x,),
        {
            "linen": in_linen(linen.GroupNorm(2, **eps, **LINEN), channels_last, x),
            "nnx": in_nnx(make, channels_last),
            "equinox": in_equinox(lambda key: eqx.nn.GroupNorm(2, i), each),
        },
    )


def rms_norm(i, o):
    x, eps = draw(o, i), {"epsilon": 1e-5}
    return Case(
        torch.nn.RMSNorm(i, eps=1e-5),
        (x,),
        {
            "linen": in_linen(linen.RMSNorm(**eps, **LINEN), plain, x),
            "nnx": in_nnx(functools.partial(nnx.RMSNorm, i, **eps, **LINEN), plain),
            "equinox": in_equinox(
                lambda key: eqx.nn.RMSNorm(i, eps=1e-5, use_bias=False), each
            ),
        },
    )


def batch_norm(i, o, mode="ema"):
    x = draw(o, i, 5)
    said = {"use_running_average": True, "epsilon": 1e-5}
    pair = eqx.filter_eval_shape(
        lambda: eqx.nn.make_with_state(eqx.nn.BatchNorm)(i, "batch", mode=mode)
    )

    run = lambda pair, x: jax.vmap(
        lambda x: eqx.nn.inference_mode(pair[0])(x, pair[1])[0], axis_name="batch"
    )(jnp.asarray(x))
    make = functools.partial(nnx.BatchNorm, i, **said, **LINEN)
    return Case(
        torch.nn.BatchNorm1d(i),
        (x,),
        {
            "linen": in_linen(linen.BatchNorm(**said, **LINEN), channels_last, x),
            "nnx": in_nnx(make, channels_last),
            "equinox": Twin(pair, run),
        },
    )


class Attention(torch.nn.MultiheadAttention):
    """Attention without its weights."""

    def forward(self, query, key, value):
        """Return the outputs alone."""
        return super().forward(query, key, value, need_weights=False)[0]


def in_float64_attention(query, key, value, **_):
    """Return attention; that of `jax.nn` has its softmax in float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def attention(i, o):
    heads, width = 2, 2 * o
    inputs = draw(2, 5, width), draw(2, 3, 2 * i), draw(2, 3, 2 * i)
    model = linen.MultiHeadDotProductAttention(heads, **LINEN)
    make = functools.partial(
        nnx.MultiHeadAttention,
        heads,
        width,
        in_kv_features=2 * i,
        decode=False,
        attention_fn=in_float64_attention,
        **LINEN,
    )
    biased = dict.fromkeys([f"use_{n}_bias" for n in ("query", "key", "value")], True)
    biased["use_output_bias"] = True
    sizes = (heads, width, 2 * i, 2 * i)
    ours = functools.partial(eqx.nn.MultiheadAttention, *sizes, **biased)
    return Case(
        Attention(width, heads, kdim=2 * i, vdim=2 * i, batch_first=True),
        inputs,
        {
            "linen": in_linen(model, plain, *inputs),
            "nnx": in_nnx(make, plain),
            "equinox": in_equinox(ours, each),
        },
    )


class Recurrent(torch.nn.Module):
    """A recurrent layer without its last state."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        """Return the outputs alone."""
        return self.rnn(x)[0]


def scanned(cell, carry, xs, output):
    """Return the outputs of a cell step by step."""
    outputs = []
    for x in jnp.asarray(xs):
        carry = cell(carry, x)
        outputs.append(output(carry))
    return jnp.stack(outputs)


def recurrent(kind, i, o):
    x = draw(2, 2, i)
    two = kind == "LSTM"
    zeros = jnp.zeros((2, o), jnp.float64)
    carry = (zeros, zeros) if two else zeros
    newest = lambda carry: carry[1] if two else carry
    call = lambda cell, x: scanned(lambda c, x: cell(c, x)[0], carry, x, newest)
    stepped = lambda cell, x: scanned(
        lambda c, x: jax.vmap(cell)(x, c), carry, x, lambda c: c[0] if two else c
    )
    names = {"rnn.l0": ""}
    ours = functools.partial(getattr(eqx.nn, f"{kind}Cell"), i, o)
    twins = {"equinox": in_equinox(ours, stepped, names=names)}
    for name in [f"{kind}Cell", f"Optimized{kind}Cell"][: 1 + two]:
        model = getattr(linen, name)(o, **LINEN)
        twins[f"linen {name}"] = in_linen(model, call, x, names=names)
        make = functools.partial(getattr(nnx, name), i, o, **LINEN)
        twins[f"nnx {name}"] = in_nnx(make, call, names=names)
    return Case(Recurrent(getattr(torch.nn, kind)(i, o)), (x,), twins)


CASES = {
    "linear": linear,
    **{f"conv{n}d": functools.partial(convolution, n) for n in (1, 2, 3)},
    "grouped": functools.partial(convolution, 2, groups=2),
    **{f"transposed{n}d": functools.partial(transposed, n) for n in (1, 2, 3)},
    "transpose_kernel": functools.partial(transposed, 2, swapped=True),
    "transposed groups": transposed_groups,
    "embedding": embedding,
    "attention": attention,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "rms_norm": rms_norm,
    "batch_norm": batch_norm,
    "batch_norm mode": functools.partial(batch_norm, mode="batch"),
    "lstm": functools.partial(recurrent, "LSTM"),
    "gru": functools.partial(recurrent, "GRU"),
}
