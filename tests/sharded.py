"""A small sharded network: specs as a user writes them and as they must come out."""

import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from neuron_optax import NeuronState
from tests.contract_models import CONTENDERS

BATCH, WIDTHS = 8, (8, 16, 8)
PARAMS = {  # the specs a user writes
    "first": {"kernel": P("data", "model"), "bias": P("model")},
    "second": {"kernel": P("model", "data"), "bias": P("data")},
}
NEURON = {  # those of one number per neuron, by hand
    "first": {"kernel": P(None, "model"), "bias": P("model")},
    "second": {"kernel": P(None, "data"), "bias": P("data")},
}
LAYER = {name: {"kernel": P(None, None), "bias": P(None)} for name in PARAMS}
INPUT = {  # those of one number per input
    "first": {"kernel": P("data", None)},
    "second": {"kernel": P("model", None)},
}
OTHERWISE = {
    "layerwise": LAYER,
    "per_entry": PARAMS,
    "per_layer": LAYER,
    "namo_d": INPUT,
}
ROWS = [  # a strategy and the specs of its numbers
    pytest.param(
        *row.values,
        next((specs for part, specs in OTHERWISE.items() if part in row.id), NEURON),
        id=row.id,
    )
    for row in CONTENDERS
    if not row.id.endswith("-weight_decay")  # it has no state
]


def inputs():
    """Draw a batch."""
    return np.random.default_rng(0).standard_normal((BATCH, WIDTHS[0]), np.float32)


def numbers_of(state):
    """List the trees with one number per neuron in a state."""
    found = optax.tree.get_all_with_path(state, NeuronState.__name__)
    polar = optax.tree.get_all_with_path(state, "MuownState")
    pairs = [(of.memory, of.rate) for _, of in found]
    pairs += [(of.magnitude, of.size) for _, of in polar]
    return [tree for pair in pairs for tree in pair if tree != ()]


def assert_lie(found, specs):
    """Assert that the leaves that are not masked away lie as written by hand."""
    found = {
        f"{layer}/{name}": spec
        for layer, of in found.items()
        for name, spec in of.items()
        if not isinstance(spec, optax.MaskedNode)
    }
    wanted = {
        f"{layer}/{n}": spec for layer, of in specs.items() for n, spec in of.items()
    }
    assert found and found == {name: wanted[name] for name in found}


def agree(params, expected):
    """Compare params that were trained on eight devices and on one."""
    for name, of in expected.items():
        for leaf, value in of.items():
            # a few ulps in the sums, times up to three steps of Adam
            np.testing.assert_allclose(params[name][leaf], value, rtol=1e-5, atol=1e-6)
