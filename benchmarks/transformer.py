"""A transformer language model in plain JAX, named as by Flax, sharded as users do.

Rows of the kernels lie over the mesh axis ``fsdp``, heads, hidden neurons and tokens of
the vocabulary over ``tp``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding


class Model(NamedTuple):
    """A transformer language model and its batch."""

    layers: int = 1
    width: int = 512
    heads: int = 4
    vocabulary: int = 2048
    batch: int = 16
    length: int = 64


def parameters(model: Model, at: Callable[..., NamedSharding | None]) -> Any:
    """Return the parameters, named as by Flax, each axis with its mesh axis."""

    def leaf(*axes):
        shape, names = zip(*axes, strict=True)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at(*names))

    head = model.width // model.heads, None
    heads, tokens = (model.heads, "tp"), (model.vocabulary, "tp")
    width, hidden = (model.width, "fsdp"), (4 * model.width, "tp")
    norm, project = {"scale": leaf(width)}, {"kernel": leaf(width, heads, head)}
    block = {
        "norm_1": norm,
        "attention": {
            **dict.fromkeys(("query", "key", "value"), project),
            "out": {"kernel": leaf(heads, head, width)},
        },
        "norm_2": norm,
        "up": {"kernel": leaf(width, hidden), "bias": leaf(hidden)},
        "down": {"kernel": leaf(hidden, width), "bias": leaf(width)},
    }
    return {
        "embed": {"embedding": leaf(tokens, width)},
        "blocks": {f"block_{n}": block for n in range(model.layers)},
        "norm": norm,
        "head": {"kernel": leaf(width, tokens)},
    }


def loss(params: Any, tokens: jax.Array, constrain: Callable[..., Any]) -> jax.Array:
    """Return the mean cross-entropy of the next tokens."""
    x = constrain(params["embed"]["embedding"][tokens[:, :-1]])
    for block in params["blocks"].values():
        x = constrain(x + attention(block["attention"], normed(block["norm_1"], x)))
        x = constrain(x + mlp(block, normed(block["norm_2"], x)))
    logits = normed(params["norm"], x) @ params["head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def normed(params: Any, x: jax.Array) -> jax.Array:
    """Give the features a root mean square of one, then their scales."""
    mean = jnp.mean(x * x, axis=-1, keepdims=True)
    return params["scale"][None, None] * x * jax.lax.rsqrt(mean + 1e-6)


def attention(params: Any, x: jax.Array) -> jax.Array:
    """Mix every position with those before it."""
    project = lambda name: jnp.einsum("bti,ihd->bthd", x, params[name]["kernel"])
    rows = map(project, ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(*rows, is_causal=True)
    return jnp.einsum("bthd,hdo->bto", mixed, params["out"]["kernel"])


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Apply a layer of hidden neurons."""
    hidden = jax.nn.gelu(x @ params["up"]["kernel"] + params["up"]["bias"][None, None])
    return hidden @ params["down"]["kernel"] + params["down"]["bias"][None, None]
