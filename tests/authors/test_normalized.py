"""Strategies that divide by a norm, against those of pytorch_optimizer.

Of its optimizers these do what the authors' own do.
"""

import importlib

import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import FLAX, PER_ENTRY, PER_LAYER, Neurons
from tests.authors.packages import (
    ADAM_TOLERANCE,
    BIAS,
    CONV,
    DENSE,
    EMBEDDING,
    MARKS,
    RATE,
    STEPS,
    TOLERANCE,
    Leaf,
    agree,
    apart,
    ours,
    start,
    theirs,
)

pytestmark = MARKS

MATRICES = DENSE | CONV | EMBEDDING
ZEROS = {"zeros/bias": Leaf((5,), "zeros.bias")}
NERO = MATRICES | BIAS | ZEROS
SWAPPED = FLAX.override({"kernel": Neurons((0,)), "embedding": Neurons((1,))})
# They add an eps to a norm, which is above 0.001 at the first step and then the mean of
# several: a step of at most 3 RATE is smaller by that share.
NORM_TOLERANCE = TOLERANCE + STEPS * 3 * RATE * 1e-8 / 0.001


def package(name, **options):
    """Return what makes an optimizer of theirs."""
    kind = getattr(importlib.import_module("pytorch_optimizer"), name)
    return lambda named: kind([*named.values()], RATE, **options)


def projected():
    """Return weights on their surface, where Nero starts."""
    weights = neuron_optax.project_neurons(start(NERO))
    return weights | {"zeros/bias": np.zeros(5, np.float32)}


@pytest.mark.parametrize(
    ("changed", "said", "tolerance"),
    [
        pytest.param({}, {"eps": 0.0}, TOLERANCE, id="authors"),
        pytest.param({}, {}, NORM_TOLERANCE, id="default"),
        pytest.param({"decay": 0.9}, {"beta": 0.9}, NORM_TOLERANCE, id="decay"),
    ],
)
def test_nero_from_projected_weights_is_theirs(changed, said, tolerance):
    expected = theirs(package("Nero", **said), NERO, projected())
    optimizer = neuron_optax.nero(RATE, **changed)
    agree(ours(optimizer, NERO, projected()), expected, tolerance)


@pytest.mark.parametrize(
    "neurons", [SWAPPED, PER_LAYER, PER_ENTRY], ids=["swapped", "layers", "entries"]
)
def test_comparison_with_nero_notices_other_neurons(neurons):
    expected = theirs(package("Nero"), NERO, projected())
    actual = ours(neuron_optax.nero(RATE, neurons=neurons), NERO, projected())
    assert MATRICES.keys() <= apart(actual, expected)


ROW = {"norm": "l2", "shape_factor": "fan_in"}
COL = {"norm": "rms"}
NORMS = {  # leaves, what theirs is called, whether of the transpose, ours
    "row": (DENSE, "ROW", False, ROW),
    "column": (DENSE, "COL", False, COL | {"neurons": SWAPPED}),
    "token-row": (EMBEDDING, "ROW", True, ROW | {"neurons": SWAPPED}),
    "token-column": (EMBEDDING, "COL", True, COL),
}


def scion(norm, transposed, **said):
    """Return what makes Scion with one norm."""
    norms = importlib.import_module("pytorch_optimizer.optimizer.scion").LMONorm
    kwargs = {"transpose": transposed}
    return package("SCION", norm_type=norms[norm], norm_kwargs=kwargs, **said)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({}, {}, id="default"),
        pytest.param({"momentum": 0.5}, {"momentum": 0.5}, id="momentum"),
        pytest.param({"weight_decay": 0.1}, {"weight_decay": 0.1}, id="weight_decay"),
        pytest.param({"weight_decay": 1.0}, {"constraint": True}, id="constraint"),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_neuron_sgd_is_scion_with_its_norms(norm, changed, said):
    leaves, name, transposed, options = NORMS[norm]
    optimizer = neuron_optax.neuron_sgd(RATE, **options, **changed)
    expected = theirs(scion(name, transposed, **said), leaves)
    agree(ours(optimizer, leaves), expected, NORM_TOLERANCE)


@pytest.mark.parametrize("norm", NORMS)
def test_comparison_with_scion_notices_the_other_axis(norm):
    leaves, name, transposed, options = NORMS[norm]
    neurons = FLAX if "neurons" in options else SWAPPED
    optimizer = neuron_optax.neuron_sgd(RATE, **options | {"neurons": neurons})
    expected = theirs(scion(name, transposed), leaves)
    assert apart(ours(optimizer, leaves), expected) == leaves.keys()


DECAY = 5.0  # so strong that its order tells
SUBSET = 4  # entries; three of them are a neuron's fan-in
THIRDS = Neurons(output=(0, 1), blocks=((0, 3),))
SUBSETS = {  # leaves, entries in a subset, ours
    "thirds": (DENSE, SUBSET, THIRDS),
    "neurons": (CONV, 24, FLAX),
    "entries": (BIAS, None, FLAX),
}


def subset_norm(leaves, size, **said):
    """Yield their params; they cut each weight into subsets in the order of memory."""
    kind = importlib.import_module("pytorch_optimizer").AdamWSN
    of = {"sn": False} if size is None else {"sn": True, "subset_size": size}
    make = lambda named: kind([{"params": [*named.values()], **of}], RATE, **said)
    return theirs(make, leaves)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"eps": 1e-6}, id="default"),
        pytest.param({"eps": 0.1}, id="eps"),
        pytest.param({"eps": 1e-6, "weight_decay": DECAY}, id="weight_decay"),
    ],
)
@pytest.mark.parametrize("subset", SUBSETS)
def test_subset_norm_adam_is_theirs(subset, changed):
    leaves, size, neurons = SUBSETS[subset]
    optimizer = neuron_optax.subset_norm_adam(RATE, **changed, neurons=neurons)
    expected = subset_norm(leaves, size, **changed)
    agree(ours(optimizer, leaves), expected, ADAM_TOLERANCE)


@pytest.mark.parametrize(
    "neurons",
    [FLAX, Neurons((0, 1), blocks=((0, 6),)), Neurons((0, 1), blocks=((1, 2),))],
    ids=["neurons", "sixths", "outputs"],
)
def test_comparison_notices_other_subsets(neurons):
    optimizer = neuron_optax.subset_norm_adam(RATE, neurons=neurons)
    expected = subset_norm(DENSE, SUBSET, eps=1e-6)
    assert apart(ours(optimizer, DENSE), expected) == DENSE.keys()


def test_comparison_notices_decay_before_the_step():
    step = neuron_optax.subset_norm_adam(RATE, neurons=THIRDS)
    optimizer = optax.chain(step, optax.add_decayed_weights(-RATE * DECAY))
    expected = subset_norm(DENSE, SUBSET, eps=1e-6, weight_decay=DECAY)
    assert apart(ours(optimizer, DENSE), expected) == DENSE.keys()


CLIPPED = DENSE | CONV | BIAS
ONE_BIAS = FLAX.override({"bias": Neurons(())})  # they clip a vector as a whole


def clipped(clipping, eps):
    """Yield params that descend along what their function leaves of gradients."""
    agc = importlib.import_module("pytorch_optimizer.optimizer.agc").agc

    class Descent:
        def __init__(self, named):
            self.leaves = named.values()

        def step(self):
            """Take one step."""
            for leaf in self.leaves:
                leaf.data -= RATE * agc(leaf.detach(), leaf.grad, eps, clipping)

    return theirs(Descent, CLIPPED)


def clip(clipping, eps, neurons):
    """Yield our params."""
    clip = neuron_optax.clip_per_neuron(clipping, eps, neurons=neurons)
    return ours(optax.chain(clip, optax.sgd(RATE)), CLIPPED)


@pytest.mark.parametrize(
    ("clipping", "eps"), [(1.0, 1e-3), (10.0, 1e-3), (1.0, 1.0)], ids=str
)
def test_clip_per_neuron_is_theirs_if_a_bias_is_one_neuron(clipping, eps):
    agree(clip(clipping, eps, ONE_BIAS), clipped(clipping, eps))


def test_comparison_notices_clipping_of_other_neurons():
    expected = clipped(1.0, 1e-3)
    swapped = ONE_BIAS.override({"kernel": Neurons((0,))})
    assert apart(clip(1.0, 1e-3, swapped), expected) == (DENSE | CONV).keys()
    assert apart(clip(1.0, 1e-3, FLAX), clipped(1.0, 1e-3)) == BIAS.keys()
