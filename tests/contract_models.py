"""What the contract tests run on: the contenders, a small tree and its gradients."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neuron_optax import (
    FLAX,
    PER_ENTRY,
    PER_LAYER,
    adam_mini,
    layerwise,
    layerwise_decay,
    scale_by_weight_norm,
)
from tests.case import NUMBERS
from tests.cases import CASES

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # one program fused, the other not: a few ulps
NOT_A_BIAS = r"^(?!.*(bias|b)$)"
SHAPES = {
    "first": {"bias": (4,), "kernel": (3, 4)},
    "second": {"bias": (4,), "kernel": (4, 4)},  # square: no axis differs by size
}


def chained(learning_rate, weight_decay=0.0, *, neurons=FLAX):
    """Compose weight-norm Adam by hand, without its alias."""
    return optax.chain(
        optax.scale_by_adam(),
        scale_by_weight_norm(neurons=neurons),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def layered(learning_rate, weight_decay=0.0):
    """Give kernels ``learning_rate`` and biases a third, whatever the tree."""
    third = lambda step: jnp.asarray(learning_rate(step)) / 3
    rest = third if callable(learning_rate) else learning_rate / 3
    return layerwise({NOT_A_BIAS: learning_rate}, rest, weight_decay=weight_decay)


def decaying(learning_rate, decay=0.5, weight_decay=0.0):
    """Put all leaves in one layer, whatever the tree."""
    return layerwise_decay(learning_rate, decay, [""], weight_decay=weight_decay)


def contenders(neurons):
    """Return a row of factories, learning rate first, for trees laid out so."""
    public = {name: case for name, case in CASES.items() if case.alias}
    aliases = {n: functools.partial(c.build, **c.options) for n, c in public.items()}
    measured = {**aliases, "chained": chained}
    named = {n: functools.partial(f, neurons=neurons) for n, f in measured.items()}
    named |= {"layerwise": layered, "layerwise_decay": decaying}
    mini = named["adam_mini"]
    named |= {  # decay is the same Optax transformation in all of them
        "adam_mini-weight_decay": functools.partial(mini, weight_decay=0.01),
        "adam_mini-bias": functools.partial(mini, bias="kernel"),
        "adam_mini-bounds": functools.partial(mini, low=0.5, high=2.0),
        "adam_mini-redistribute": functools.partial(mini, redistribute=True),
        "adam_mini-per_entry": functools.partial(adam_mini, neurons=PER_ENTRY),
        "adam_mini-per_layer": functools.partial(adam_mini, neurons=PER_LAYER),
    }
    return [pytest.param(make, id=name) for name, make in named.items()]


CONTENDERS = contenders(FLAX)
BY_HAND = [row for row in CONTENDERS if row.id.startswith("chained")]
ALIASES = [row for row in CONTENDERS if row not in BY_HAND]


def promising(promise):
    """List the rows whose case keeps a promise; rates per layer are Adam's."""
    cases = {row.id: CASES.get(row.id.split("-")[0]) for row in ALIASES}
    adam = dataclasses.replace(CASES["adam_mini"], on_adam=True)
    return [row for row in ALIASES if promise(cases[row.id] or adam)]


ON_ADAM = promising(lambda case: case.on_adam)
AT_REST = promising(lambda case: case.rests)
FREE = promising(lambda case: not case.on_surface)
ROUNDING = promising(  # the others enlarge roundings, or take small differences
    lambda case: case.isolated and not case.on_surface
)
READABLE = promising(lambda case: case.numbers == NUMBERS)  # hold a NeuronState


def injected(make, **options):
    """Inject hyperparameters, but for counts, some of which make shapes."""
    arguments = inspect.signature(make).parameters.values()
    counts = [a.name for a in arguments if type(a.default) is int]
    return optax.inject_hyperparams(make, static_args=counts, **options)


def normal(shape, dtype=jnp.float32, seed=0):
    """Draw normal numbers; where complex, in both parts."""
    real, imaginary = np.random.default_rng([seed, *shape]).standard_normal((2, *shape))
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.asarray(real + 1j * imaginary, dtype)
    return jnp.asarray(real, dtype)


def tree_of(dtype=jnp.float32, seed=0):
    """Draw a tree of two layers."""
    is_shape = lambda node: isinstance(node, tuple)
    draw = lambda shape: normal(shape, dtype, seed)
    return jax.tree.map(draw, SHAPES, is_leaf=is_shape)


def layer_of(dtype=jnp.float32, seed=0):
    """Draw one layer, where two would only cost time."""
    return tree_of(dtype, seed)["second"]


def run(optimizer, params, gradients, state=None):
    """Take a step for each gradient; return the last params, all updates, the state."""
    state = optimizer.init(params) if state is None else state
    trail = []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        trail.append(updates)
    return params, trail, state


def types(tree):
    """Return shape, dtype, weak type and sharding of every leaf."""
    return jax.tree.map(jax.typeof, tree)


def types_around_update(optimizer, params, gradient):
    """Return the types of a gradient and the state, before and after an update."""
    before = optimizer.init(params)
    update, after = jax.eval_shape(optimizer.update, gradient, before, params)
    return types((gradient, before)), types((update, after))


def differ(left, right):
    """Return whether any leaf differs by more than rounding."""
    # a thousand ulps: what is rounded must never count as different
    close = lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-6)
    return not all(jax.tree.leaves(jax.tree.map(close, left, right)))


def all_zero(tree):
    """Return whether nothing in the tree differs from zero."""
    return not any(np.any(leaf) for leaf in jax.tree.leaves(tree))
