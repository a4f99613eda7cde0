"""Trees whose leaves are cut along two mesh axes, and optimizers that see pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from neuron_optax import FLAX, Neurons
from neuron_optax.sharding import state_specs
from tests.contract_models import normal, run

SPECS = {  # the fan-in of the first is cut along data, of the second along model
    "first": {"kernel": P("data", "model"), "bias": P("model")},
    "second": {"kernel": P("model", "data"), "bias": P("data")},
    "third": {"kernel": P(("data", "model"), None), "bias": P()},
}
SHAPES = {"first": (8, 8), "second": (8, 4), "third": (16, 3)}
NAMED = {
    "first/kernel": Neurons(reduce_over=("data",)),
    "second/kernel": Neurons(reduce_over=("model",)),
    "third/kernel": Neurons(reduce_over=("data", "model")),
}
CUT = FLAX.override(NAMED)


@pytest.fixture(scope="module")
def mesh():
    """Eight devices in two rows."""
    return jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)


@functools.cache
def draws():
    """Draw the params and three gradients."""

    def tree(seed):
        return {
            layer: {
                "kernel": normal(shape, seed=seed),
                "bias": normal(shape[1:], seed=seed),
            }
            for layer, shape in SHAPES.items()
        }

    return tree(0), [jax.tree.map(resting, tree(seed)) for seed in (1, 2, 3)]


def resting(leaf):
    """Let the first neuron rest, and the second but for its first entry."""
    if leaf.ndim < 2:
        return leaf
    return leaf.at[:, 0].set(0.0).at[1:, 1].set(0.0)


def in_pieces(optimizer, mesh, specs=SPECS, check_vma=True):
    """Return an optimizer whose update sees pieces of its trees."""
    params, _ = draws()
    shardings = state_specs(optimizer, params, specs, mesh)
    lie = jax.tree.map(lambda sharding: sharding.spec, shardings)
    update = jax.shard_map(
        optimizer.update,
        mesh=mesh,
        in_specs=(specs, lie, specs),
        out_specs=(specs, lie),
        check_vma=check_vma,
    )
    return optax.GradientTransformation(optimizer.init, update)


def jitted(optimizer):
    return optax.GradientTransformation(optimizer.init, jax.jit(optimizer.update))


def apart(pieces, whole, change=lambda leaf: leaf):
    """Return the largest difference between the steps of two optimizers."""
    params, gradients = draws()
    changed = jax.tree.map(change, gradients)
    (_, left, _), (_, right, _) = (
        run(jitted(of), params, changed) for of in (pieces, whole)
    )
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), left, right)
    return np.max(jax.tree.leaves(differences))  # NaN if any is
