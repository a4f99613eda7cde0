"""Flax linen's layers, under the names that an ``nn.compact`` parent gives them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from tests.layers import Layer

COPIES = 3


def away_from_zero(rng, shape):
    """Draw numbers of either sign that are neither tiny nor large."""
    size, sign = rng.uniform(0.5, 1.0, shape), rng.choice([-1.0, 1.0], shape)
    return jnp.asarray(size * sign, jnp.float32)


def draw(*shape):
    """Draw inputs, the same for the same shape."""
    return away_from_zero(np.random.default_rng(shape), shape)


def redraw(tree):
    """Replace every array by random numbers, so that no weight is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: away_from_zero(rng, leaf.shape), tree)


class Parent(nn.Module):
    """One layer; where the layer returns a carry too, only its output."""

    make: Callable[[], Callable[..., Any]]

    @nn.compact
    def __call__(self, *inputs):
        """Call the layer."""
        output = self.make()(*inputs)
        return output[-1] if isinstance(output, tuple) else output


class Block(nn.Module):
    """The body of a scan: every copy sees the same carry and stacks its output."""

    make: Callable[[], Callable[..., Any]]

    @nn.compact
    def __call__(self, carry, _):
        """Call the layer on the carry."""
        return carry, self.make()(carry)


class MoeBlock(nn.Module):
    """Experts whose weights are parameters of the block itself."""

    @nn.compact
    def __call__(self, x):
        """Give every input to every expert."""
        wi = self.param("wi", nn.initializers.normal(), (4, x.shape[-1], 7))
        return jnp.einsum("bd,edf->ebf", x, wi)


def layer(make, *inputs):
    """Catalogue what ``make`` returns; each module in it shows its own output."""

    def build():
        model = Parent(make)
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        params = redraw(variables.pop("params"))
        statistics = jax.tree.map(jnp.abs, redraw(variables))

        def outputs(params):
            _, captured = model.apply(
                {"params": params, **statistics},
                *inputs,
                capture_intermediates=True,
                mutable=["intermediates"],
            )
            calls = flatten_dict(captured["intermediates"], sep="/")
            return {
                path.removesuffix("__call__").removesuffix("/"): output
                for path, (output,) in calls.items()
                if isinstance(output, jax.Array)
            }

        return Layer(params, outputs)

    return build


def scan(make, *inputs, axis=0):
    """Catalogue copies of a layer, stacked at ``axis`` of each weight by a scan."""
    stack = nn.scan(
        Block,
        variable_axes={"params": axis, "intermediates": 0},
        split_rngs={"params": True},
        length=COPIES,
    )
    return layer(lambda: lambda x: stack(make)(x, None), *inputs)


def ensemble(module, *arguments, copies=COPIES):
    """Make copies of a layer that see the same inputs."""
    stack = nn.vmap(
        module,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=copies,
    )
    return stack(*arguments)


def spectral_norm():
    """Wrap a layer, but do not divide by the norm, which every entry moves."""
    return partial(nn.SpectralNorm(nn.Dense(7), n_steps=0), update_stats=False)


conv = partial(nn.Conv, padding="CIRCULAR")
conv_transpose = partial(nn.ConvTranspose, padding="CIRCULAR")
attention = partial(
    nn.MultiHeadDotProductAttention, num_heads=3, qkv_features=12, out_features=7
)
eval_batch_norm = partial(nn.BatchNorm, use_running_average=True)

ROW, PICTURE, WIDE = draw(2, 5), draw(1, 3, 4, 5), draw(1, 3, 4, 10)
SEQUENCE, IDS = draw(1, 2, 5), jnp.arange(11)
STATE, CARRY = draw(1, 7), tuple(draw(2, 1, 7))

LAYERS: dict[str, Callable[[], Layer]] = {
    "Dense": layer(partial(nn.Dense, 7), ROW),
    "Dense, no bias": layer(partial(nn.Dense, 7, use_bias=False), ROW),
    "Dense, square": layer(partial(nn.Dense, 6), draw(2, 6)),
    "Dense, square, no bias": layer(partial(nn.Dense, 6, use_bias=False), draw(2, 6)),
    "DenseGeneral, two features": layer(partial(nn.DenseGeneral, (7, 4)), ROW),
    "DenseGeneral, two input axes": layer(
        partial(nn.DenseGeneral, 7, axis=(-2, -1)), draw(2, 3, 5)
    ),
    "DenseGeneral, two input axes, two features": layer(
        partial(nn.DenseGeneral, (7, 4), axis=(-2, -1)), draw(2, 3, 5)
    ),
    "DenseGeneral, batch axis": layer(
        partial(nn.DenseGeneral, 7, batch_dims=(0,)), draw(3, 2, 5)
    ),
    "DenseGeneral, batch axis, two input axes, two features": layer(
        partial(nn.DenseGeneral, (6, 4), axis=(-2, -1), batch_dims=(0,)),
        draw(2, 1, 3, 5),
    ),
    "Einsum, two features": layer(partial(nn.Einsum, (5, 3, 4), "bd,dhk->bhk"), ROW),
    "Einsum, features first": layer(partial(nn.Einsum, (7, 5), "bd,od->bo"), ROW),
    "Einsum, features first, square, no bias": layer(
        partial(nn.Einsum, (6, 6), "bd,od->bo", use_bias=False), draw(2, 6)
    ),
    "Einsum, experts": layer(
        partial(nn.Einsum, (3, 5, 7), "ebd,edf->ebf"), draw(3, 2, 5)
    ),
    "Conv 1D": layer(partial(conv, 7, (3,)), draw(1, 4, 5)),
    "Conv 2D": layer(partial(conv, 7, (2, 3)), PICTURE),
    "Conv 3D": layer(partial(conv, 6, (2, 3, 4)), draw(1, 2, 3, 4, 5)),
    "Conv 1D, no bias": layer(partial(conv, 7, (3,), use_bias=False), draw(1, 4, 5)),
    "Conv 2D, no bias": layer(partial(conv, 7, (2, 3), use_bias=False), PICTURE),
    "Conv 2D, grouped": layer(partial(conv, 14, (2, 3), feature_group_count=2), WIDE),
    "Conv 2D, depthwise": layer(
        partial(conv, 10, (2, 3), feature_group_count=10), WIDE
    ),
    "Conv 2D, depthwise, multiplier 2": layer(
        partial(conv, 20, (2, 3), feature_group_count=10), WIDE
    ),
    "Conv 1D, depthwise": layer(
        partial(conv, 10, (3,), feature_group_count=10), draw(1, 4, 10)
    ),
    "ConvTranspose 1D": layer(partial(conv_transpose, 7, (3,)), draw(1, 4, 5)),
    "ConvTranspose 1D, transposed kernel": layer(
        partial(conv_transpose, 7, (3,), transpose_kernel=True), draw(1, 4, 5)
    ),
    "ConvTranspose 2D, no bias": layer(
        partial(conv_transpose, 7, (2, 3), use_bias=False), PICTURE
    ),
    "ConvTranspose 2D": layer(partial(conv_transpose, 7, (2, 3)), PICTURE),
    "ConvTranspose 2D, transposed kernel": layer(
        partial(conv_transpose, 7, (2, 3), transpose_kernel=True), PICTURE
    ),
    "ConvTranspose 2D, transposed square kernel, no bias": layer(
        partial(conv_transpose, 5, (2, 3), transpose_kernel=True, use_bias=False),
        PICTURE,
    ),
    "ConvLocal": layer(
        partial(nn.ConvLocal, 5, (2, 2), padding="VALID"), draw(1, 3, 4, 2)
    ),
    "Embed": layer(partial(nn.Embed, 11, 5), IDS),
    "MultiHeadDotProductAttention": layer(attention, SEQUENCE),
    "MultiHeadDotProductAttention, no bias": layer(
        partial(attention, use_bias=False), SEQUENCE
    ),
    "MultiHeadDotProductAttention, normalized queries and keys": layer(
        partial(attention, normalize_qk=True), SEQUENCE
    ),
    "LSTMCell": layer(partial(nn.LSTMCell, 7), CARRY, draw(1, 5)),
    "OptimizedLSTMCell": layer(partial(nn.OptimizedLSTMCell, 7), CARRY, draw(1, 5)),
    "SimpleCell": layer(partial(nn.SimpleCell, 7), STATE, draw(1, 5)),
    "GRUCell": layer(partial(nn.GRUCell, 7), STATE, draw(1, 5)),
    "MGUCell": layer(partial(nn.MGUCell, 7), STATE, draw(1, 5)),
    "ConvLSTMCell": layer(
        partial(nn.ConvLSTMCell, 4, (2, 3), padding="CIRCULAR"),
        tuple(draw(2, 1, 3, 4, 4)),
        PICTURE,
    ),
    "LayerNorm": layer(nn.LayerNorm, ROW),
    "LayerNorm, two feature axes": layer(
        partial(nn.LayerNorm, reduction_axes=(-2, -1), feature_axes=(-2, -1)),
        draw(2, 3, 5),
    ),
    "RMSNorm": layer(nn.RMSNorm, ROW),
    "BatchNorm": layer(eval_batch_norm, ROW),
    "BatchNorm of pictures": layer(eval_batch_norm, PICTURE),
    "GroupNorm": layer(partial(nn.GroupNorm, 2), draw(1, 3, 6)),
    "InstanceNorm": layer(nn.InstanceNorm, SEQUENCE),
    "WeightNorm": layer(lambda: nn.WeightNorm(nn.Dense(7)), ROW),
    "WeightNorm, Conv 2D": layer(lambda: nn.WeightNorm(conv(7, (2, 3))), PICTURE),
    "remat, Dense": layer(lambda: nn.remat(nn.Dense)(7), ROW),
    "SpectralNorm": layer(spectral_norm, ROW),
    "PReLU": layer(nn.PReLU, ROW),
    "scan, Dense": scan(partial(nn.Dense, 7), ROW),
    "scan, Dense, axis 1": scan(partial(nn.Dense, 7), ROW, axis=1),
    "scan, Dense, axis -1": scan(partial(nn.Dense, 7), ROW, axis=-1),
    "scan, Dense, no bias": scan(partial(nn.Dense, 7, use_bias=False), ROW),
    "scan, Conv 2D": scan(partial(conv, 7, (2, 2)), draw(1, 2, 3, 5)),
    "scan, Embed": scan(partial(nn.Embed, 11, 5), IDS),
    "scan, LayerNorm": scan(nn.LayerNorm, ROW),
    "scan, MultiHeadDotProductAttention": scan(
        partial(attention, num_heads=2, qkv_features=8), SEQUENCE
    ),
    "scan, MultiHeadDotProductAttention, axis 1": scan(
        partial(attention, num_heads=2, qkv_features=8), SEQUENCE, axis=1
    ),
    "vmap, Dense": layer(lambda: ensemble(nn.Dense, 7), ROW),
    "vmap, Conv 1D": layer(
        lambda: ensemble(nn.Conv, 7, (4,), 1, "CIRCULAR"), draw(1, 4, 5)
    ),
    "scan of vmap, Dense": scan(lambda: ensemble(nn.Dense, 7, copies=2), ROW),
    "MoE": layer(MoeBlock, ROW),
    "scan, MoE": scan(MoeBlock, ROW),
    "scan, MoE, axis 1": scan(MoeBlock, ROW, axis=1),
}
