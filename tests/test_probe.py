"""The axes of every layer are those along which its weights move other units.

A probe adds 1 to single entries of a weight and records which numbers of that weight's
own pre-activation move. An axis along which they change indexes neurons (or copies);
along the others, the fan-in, they stay the same.
"""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuron_optax import FLAX, HAIKU, TORCH, Neurons, describe, infer_layout
from neuron_optax.axes.evidence import leaves_of
from neuron_optax.boxes import unbox
from neuron_optax.trees import named_leaves

pytestmark = pytest.mark.slow

NOISE = 2e-5  # rounding moves other units, by at most 1e-6
LAYOUTS = {"linen": FLAX, "nnx": FLAX, "equinox": TORCH, "haiku": HAIKU}
LAYERS = {
    library: importlib.import_module(f"tests.layers.{library}_layers").LAYERS
    for library in LAYOUTS
}

STACK = {"kernel|wi": Neurons(stack=(0,))}
STACK_OF_STACKS = {"kernel|wi": Neurons(stack=(0, 1))}
SECOND = {"kernel": Neurons(stack=(1,))}
TWO_FEATURES = {"kernel": Neurons((-2, -1))}
FEATURES_FIRST = {"kernel": Neurons((0,))}
TRANSPOSED = {"kernel": Neurons((-2,))}
HEADS = r"(query|key|value)/kernel"
EQUINOX_STACK = {"weight": Neurons((1,), stack=(0,))}


def flax(dense, attention):
    """Return the overrides of what linen and nnx have both."""
    general = f"{dense}General"
    return {
        f"{general}, two features": TWO_FEATURES,
        f"{general}, two input axes, two features": TWO_FEATURES,
        f"{general}, batch axis": STACK,
        f"{general}, batch axis, two input axes, two features": {
            "kernel": Neurons((-2, -1), stack=(0,))
        },
        "Einsum, two features": TWO_FEATURES,
        "Einsum, features first": FEATURES_FIRST,
        "Einsum, features first, square, no bias": FEATURES_FIRST,
        "Einsum, experts": STACK,
        "ConvTranspose 1D, transposed kernel": TRANSPOSED,
        "ConvTranspose 2D, transposed kernel": TRANSPOSED,
        f"vmap, {dense}": STACK,
        "vmap, Conv 1D": STACK,
        f"scan, {dense}": STACK,
        f"scan, {dense}, axis 1": SECOND,
        f"scan, {dense}, axis -1": {"kernel": Neurons((1,), stack=(-1,))},
        f"scan of vmap, {dense}": STACK_OF_STACKS,
        "scan, Conv 2D": STACK,
        "scan, Embed": {"embedding": Neurons((1,), stack=(0,))},
        f"scan, {attention}": {
            HEADS: Neurons((2, 3), stack=(0,)),
            "out/kernel": Neurons(stack=(0,)),
        },
        f"scan, {attention}, axis 1": {
            HEADS: Neurons((2, 3), stack=(1,)),
            "out/kernel": Neurons(stack=(1,)),
        },
        "MoE": STACK,
        "scan, MoE": STACK_OF_STACKS,
        "scan, MoE, axis 1": STACK_OF_STACKS,
    }


OVERRIDES = {  # what name and shape cannot decide
    "linen": flax("Dense", "MultiHeadDotProductAttention")
    | {
        "ConvTranspose 2D, transposed square kernel, no bias": TRANSPOSED,
        "scan, Dense, no bias": STACK,
    },
    "nnx": flax("Linear", "MultiHeadAttention")
    | {"vmap, Linear, axis 1": SECOND, "vmap, Linear, no bias": STACK},
    "equinox": {
        "Linear, stacked": EQUINOX_STACK,
        "Linear, stacked, no bias": EQUINOX_STACK,
        "Linear, stacked twice": {"weight": Neurons((2,), stack=(0, 1))},
        "Conv2d, stacked": EQUINOX_STACK,
        "MultiheadAttention, stacked": EQUINOX_STACK,
    },
    "haiku": {
        "lift, Linear": {"w": Neurons(stack=(0,))},
        "transparent_lift, Linear": {"w": Neurons(stack=(0,))},
    },
}
EXCEPTIONS = {  # by the end of library, layer and path
    r"(?i)embed.*/(embeddings?|weight)": "one row a token: a neuron by convention",
}
UNDECIDABLE = EXCEPTIONS | {
    r"Einsum, features first, square, no bias/.*": "a kernel, so taken as (in, out)",
}
ROWS = [
    pytest.param(library, name, id=f"{library}-{name}")
    for library, layers in LAYERS.items()
    for name in layers
]
every_layer = pytest.mark.parametrize(("library", "name"), ROWS)


@functools.cache
def probed(library, name):
    """Return the params of a layer, and shape and neuron axes of each, by the probe."""
    params, outputs = LAYERS[library][name]()
    leaves, tree = jax.tree.flatten(params)
    paths = [path for path, _ in named_leaves(unbox(params))]

    def output(path, leaves):
        shown = outputs(jax.tree.unflatten(tree, leaves))
        return shown[max((key for key in shown if path.startswith(key)), key=len)]

    def moves(place, entry):
        leaf = leaves[place] + entry.reshape(leaves[place].shape)
        perturbed = [*leaves[:place], leaf, *leaves[place + 1 :]]
        return output(paths[place], perturbed) - output(paths[place], leaves)

    @jax.jit
    def differences():
        return [
            jax.vmap(functools.partial(moves, n))(jnp.eye(leaf.size))
            for n, leaf in enumerate(leaves)
        ]

    found = {}
    for path, leaf, move in zip(paths, leaves, differences(), strict=True):
        moved = (abs(np.asarray(move)) > NOISE).reshape(*leaf.shape, -1)
        assert moved.any(-1).all()
        differs = [(moved != moved.take([0], n)).any() for n in range(leaf.ndim)]
        found[path] = leaf.shape, tuple(np.flatnonzero(differs).tolist())
    return params, found


def neuron_axes(layout, path, shape):
    """Return the axes that a layout keeps; one of length 1 cannot be probed."""
    axes = layout.axes(path, shape)
    return tuple(sorted(a for a in axes.output + axes.stack if shape[a] > 1))


def listed(exceptions, *place):
    return any(re.search(f"{pattern}$", "/".join(place)) for pattern in exceptions)


def wrong(layout, library, name):
    """List the leaves whose axes differ from the probe's."""
    _, found = probed(library, name)
    return [
        path
        for path, (shape, axes) in found.items()
        if neuron_axes(layout, path, shape) != axes
    ]


@every_layer
def test_neurons_are_the_units_that_a_weight_moves(library, name):
    layout = LAYOUTS[library].override(OVERRIDES[library].get(name, {}))
    leaves = wrong(layout, library, name)
    assert [p for p in leaves if not listed(EXCEPTIONS, library, name, p)] == []


@every_layer
def test_a_layer_that_needs_an_override_is_marked(library, name, capsys):
    leaves = wrong(LAYOUTS[library], library, name)
    describe(probed(library, name)[0], LAYOUTS[library])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    unmarked = [path for path in leaves if not lines[path].endswith("check")]
    assert [p for p in unmarked if not listed(UNDECIDABLE, library, name, p)] == []


@every_layer
def test_an_inferred_layout_is_right_or_says_that_it_is_not(library, name):
    layout = infer_layout(probed(library, name)[0])
    leaves = set(wrong(layout, library, name)) - set(layout.undecided)
    assert [p for p in leaves if not listed(UNDECIDABLE, library, name, p)] == []


def test_overrides_and_exceptions_are_needed():
    for library, overrides in OVERRIDES.items():
        for name in overrides:
            assert wrong(LAYOUTS[library], library, name)
    places = [
        "/".join((library, name, path))
        for library, name in (row.values for row in ROWS)
        for path in probed(library, name)[1]
    ]
    for pattern in UNDECIDABLE:
        assert any(re.search(f"{pattern}$", place) for place in places)
    assert len(ROWS) >= 60 and len(EXCEPTIONS) <= 15


def test_the_probe_notices_a_wrong_axis():
    flipped = FLAX.override({"kernel": Neurons((0,))})
    assert wrong(flipped, "linen", "Dense") == ["Dense_0/kernel"]
    assert wrong(HAIKU, "equinox", "Linear") == ["linear/weight"]


@every_layer
def test_only_a_leaf_without_a_bias_beside_it_is_left_undecided(library, name):
    leaves = leaves_of(probed(library, name)[0])
    undecided = infer_layout(probed(library, name)[0]).undecided
    assert not any(path in leaves.biases for path in undecided)
    assert all(len(leaves.shapes[path]) > 2 for path in undecided)
