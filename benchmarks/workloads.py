"""Parameters to optimize: trees of shapes as models have them."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.transformer import Model, parameters

TRANSFORMER = Model(layers=4, width=384, heads=6, vocabulary=8192)


def dense(layers: int = 12, width: int = 2048, dtype: Any = jnp.float32) -> Any:
    """Return square kernels."""
    kernel = jax.ShapeDtypeStruct((width, width), dtype)
    return {f"layer_{number:03}": {"kernel": kernel} for number in range(layers)}


def transformer() -> Any:
    """Return a transformer language model of 13 million parameters in 43 leaves."""
    return parameters(TRANSFORMER, lambda *names: None)


def convolutional() -> Any:
    """Return a residual network of 11 million parameters in 62 leaves."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    norm = lambda width: {"scale": shape(width), "bias": shape(width)}

    def unit(size, inputs, outputs):
        kernel = shape(size, size, inputs, outputs)
        return {"Conv_0": {"kernel": kernel}, "BatchNorm_0": norm(outputs)}

    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = {
        f"block_{number}": {
            "first": unit(3, inputs, outputs),
            "second": unit(3, outputs, outputs),
            **({"shortcut": unit(1, inputs, outputs)} if inputs != outputs else {}),
        }
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths))
    }
    head = {"kernel": shape(512, 1000), "bias": shape(1000)}
    return {"stem": unit(7, 3, 64), **blocks, "head": head}


def embeddings() -> Any:
    """Return two tables of 25 million parameters and a small network on them."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    return {
        "users": {"embedding": shape(300_000, 64)},
        "items": {"embedding": shape(100_000, 64)},
        "Dense_0": {"kernel": shape(128, 256), "bias": shape(256)},
        "Dense_1": {"kernel": shape(256, 1), "bias": shape(1)},
    }


WORKLOADS = {
    "dense": dense,
    "transformer": transformer,
    "small": lambda: dense(200, 64),
    "convolutional": convolutional,
    "bfloat16": lambda: dense(dtype=jnp.bfloat16),
    "embeddings": embeddings,
    "matrices": dense,
}


def as_float32(shapes: Any) -> Any:
    """Return float32 leaves of as many bytes."""

    def leaf(of):
        *axes, last = of.shape
        last = last * of.dtype.itemsize // jnp.float32.dtype.itemsize
        return jax.ShapeDtypeStruct((*axes, last), jnp.float32)

    return jax.tree.map(leaf, shapes)


def draw(shapes: Any, seed: int) -> Any:
    """Draw leaves whose columns have norms around one."""
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, list(map(_normal, keys, leaves)))


def _normal(key, leaf):
    size = max(leaf.size // leaf.shape[-1], 1) ** -0.5
    return jnp.asarray(size * jax.random.normal(key, leaf.shape), leaf.dtype)


def count(shapes: Any) -> tuple[int, int, int]:
    """Return how many leaves, parameters and bytes a tree has."""
    leaves = jax.tree.leaves(shapes)
    sizes = [leaf.size for leaf in leaves]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return len(leaves), sum(sizes), total
