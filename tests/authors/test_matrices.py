"""`normuon` against NorMuon of pytorch_optimizer, whose iteration is made float32."""

import functools
import importlib

import pytest

import neuron_optax
from neuron_optax import FLAX, PER_LAYER, TORCH, Neurons
from tests.authors.packages import (
    BIAS,
    CONV,
    DENSE,
    EPS,
    MARKS,
    RATE,
    STEPS,
    TOLERANCE,
    Leaf,
    agree,
    apart,
    ours,
    rows,
    theirs,
)

pytestmark = MARKS

MATRICES = {
    **DENSE,
    **CONV,
    "tall/kernel": Leaf((3, 8), "tall.weight", rows),  # more neurons than inputs
}
LEAVES = MATRICES | BIAS
# Newton-Schulz multiplies what is small by 3.4445, five times, and with it an eps of
# rounding; the root of the neuron's mean square then brings entries back to size 1.
GROWTH = 3.4445**5
MATRIX_TOLERANCE = TOLERANCE + STEPS * RATE * GROWTH * EPS


@pytest.fixture
def normuon(monkeypatch):
    """Return what makes their optimizer for given options."""
    package = importlib.import_module("pytorch_optimizer")
    module = importlib.import_module("pytorch_optimizer.optimizer.muon.normuon")
    torch, name = importlib.import_module("torch"), "zero_power_via_newton_schulz_5"
    wide = functools.partial(getattr(module, name), dtype=torch.float32)
    monkeypatch.setattr(module, name, wide)

    def make(named, weight_decay=0.0, **options):
        kernels = [leaf for name, leaf in named.items() if name.endswith("weight")]
        others = [leaf for name, leaf in named.items() if name.endswith("bias")]
        shared = {"weight_decay": weight_decay}
        groups = [
            {"params": kernels, "use_muon": True, "lr": RATE, **shared, **options}
        ]
        rest = {"params": others, "use_muon": False, "lr": 0.015 * RATE, **shared}
        return package.NorMuon(groups + [rest] * bool(others), foreach=False)

    return lambda **changed: functools.partial(make, **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({}, {}, id="default"),
        pytest.param({"weight_decay": 0.1}, {"weight_decay": 0.1}, id="weight_decay"),
        pytest.param({"b1": 0.8}, {"momentum": 0.8}, id="b1"),
        pytest.param({"b2": 0.8}, {"beta2": 0.8}, id="b2"),
        pytest.param({"nesterov": False}, {"nesterov": False}, id="nesterov"),
        pytest.param({"steps": 3}, {"ns_steps": 3}, id="steps"),
    ],
)
def test_normuon_is_theirs(normuon, changed, said):
    optimizer = neuron_optax.normuon(RATE, **changed)
    agree(ours(optimizer, LEAVES), theirs(normuon(**said), LEAVES), MATRIX_TOLERANCE)


@pytest.mark.parametrize(
    ("options", "noticed"),
    [
        pytest.param({"neurons": TORCH}, MATRICES.keys(), id="inputs"),
        pytest.param(
            {"neurons": PER_LAYER, "matrices": FLAX}, MATRICES.keys(), id="Muon"
        ),
        pytest.param(
            {"neurons": Neurons((0, -1)), "matrices": FLAX}, MATRICES.keys(), id="taps"
        ),
    ],
)
def test_comparison_notices_other_neurons(normuon, options, noticed):
    optimizer = neuron_optax.normuon(RATE, **options)
    assert apart(ours(optimizer, LEAVES), theirs(normuon(), LEAVES)) == noticed
