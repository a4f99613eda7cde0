"""Twins of torch's layers in Flax linen, NNX and Equinox, in float64.

A twin's `run` takes arrays in torch's axes and returns such.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx


class Twin(NamedTuple):
    """A model of JAX.

    Attributes:
      like: its abstract tree.
      run: ``run(tree, *inputs)``.
      said: options of the conversion.
    """

    like: Any
    run: Callable[..., Any]
    said: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """A layer of torch, inputs for it, and its twins by library."""

    module: torch.nn.Module
    inputs: tuple[np.ndarray, ...]
    twins: dict[str, Twin]


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def drawn(module):
    """Return a module in float64 and evaluation mode, every tensor drawn."""
    module = module.double().eval()
    rng = np.random.default_rng(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            value = rng.standard_normal(tuple(tensor.shape))
            value = np.exp(value) if name.endswith("running_var") else value
            tensor.copy_(torch.tensor(value))
    return module


def forward(module, inputs):
    with torch.no_grad():
        return module(*map(torch.tensor, inputs)).numpy()


def without_reset_bias(library, module):
    """Zero what `nnx.GRUCell` has no leaf for."""
    if library == "nnx GRUCell":
        width = module.rnn.hidden_size
        module.rnn.bias_hh_l0.data[2 * width :] = 0


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float64)


def in_float64(tree):
    """Return a tree whose averages are float64, too: Flax has them in float32."""
    wide = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64)
    return jax.tree.map(wide, tree)


def in_linen(model, call, *inputs, **said):
    """Return the twin of a linen module; ``call(apply, *inputs)`` runs it."""
    key = jax.random.key(0)
    like = jax.eval_shape(
        lambda: model.init_with_output(
            key, *inputs, method=lambda m, *x: call(m, *map(jnp.asarray, x))
        )[1]
    )
    run = lambda tree, *x: model.apply(tree, *x, method=call)
    return Twin(in_float64(like), run, said)


def in_nnx(make, call, **said):
    """Return the twin of an NNX module."""
    abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    graph, like = nnx.split(abstract)
    run = lambda tree, *x: call(nnx.merge(graph, tree), *x)
    return Twin(in_float64(like), run, said)


def in_equinox(make, call, **said):
    """Return the twin of an Equinox module."""
    like = eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))
    return Twin(like, call, said)


def last(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def first(x):
    return jnp.moveaxis(x, -1, 1)


def plain(model, *x):
    return model(*x)


def channels_last(model, x):
    return first(model(last(x)))


def each(model, *x):
    """Run a model of Equinox on every example of batches."""
    return jax.vmap(model)(*map(jnp.asarray, x))
