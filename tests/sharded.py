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
OTHERWISE = {"layerwise": LAYER, "per_entry": PARAMS, "per_layer": LAYER}
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
    return [tree for _, of in found for tree in (of.memory, of.rate) if tree != ()]


def agree(params, expected):
    """Compare params that were trained on eight devices and on one."""
    for name, of in expected.items():
        for leaf, value in of.items():
            # a few ulps in the sums, times up to three steps of Adam
            np.testing.assert_allclose(params[name][leaf], value, rtol=1e-5, atol=1e-6)
