"""Parts for matrices, and the published variants of NorMuon composed of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from neuron_optax import (
    FLAX,
    PER_LAYER,
    Neurons,
    Rate,
    ema,
    inverse_root,
    latest,
    mean_square,
    normuon,
    orthogonalize,
    preserve_norm,
    reciprocal,
    rms,
    scale_by_shape,
    scale_per_neuron,
)
from neuron_optax.projections import aspect_ratio
from neuron_optax.trees import named_leaves
from tests.case import STEPS, oracle

torch = pytest.importorskip("torch")

TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
B1, B2 = 0.9, 0.95
EPS = 0.05  # as large as the oracle's, so that its place matters
KERNELS = {"more_inputs": (5, 3), "more_outputs": (3, 5), "square": (4, 4)}
SHORT = FLAX.override({"more_inputs": Neurons(output=(0,))})
INSIDE = Rate(lambda value, neurons: 1 / jnp.sqrt(value + EPS))
CLAMPED = Rate(lambda value, neurons: 1 / jnp.sqrt(jnp.maximum(value, EPS)))
ROOT = inverse_root(EPS)
SAME = optax.identity()
ASPECT = scale_by_shape(lambda outputs, inputs: math.sqrt(max(1, outputs / inputs)))
RATIO = scale_by_shape(lambda outputs, inputs: math.sqrt(outputs / inputs))
MATCHED = optax.chain(  # the rms of a layer becomes 0.2
    scale_per_neuron(rms, latest(), reciprocal(1e-30), neurons=PER_LAYER),
    optax.scale(0.2),
)
TRACE = optax.ema(B1, debias=False)
NESTEROV = optax.chain(optax.scale(1 - B1), optax.trace(B1, nesterov=True))


def equalized(rate, neurons=FLAX):
    return scale_per_neuron(mean_square, ema(B2, False), rate, neurons=neurons)


def kept(rate, neurons=FLAX):
    return preserve_norm(equalized(rate, neurons))


VARIANTS = {  # ours between momentum and step; Nesterov, rate, size, short axis
    "authors": (NESTEROV, kept(ROOT), ASPECT, (True, "outside", "aspect", False)),
    "paper": (TRACE, equalized(ROOT), MATCHED, (False, "outside", "paper", False)),
    "U-NorMuon": (NESTEROV, kept(ROOT), SAME, (True, "outside", "kept", False)),
    "dion": (TRACE, kept(ROOT), RATIO, (False, "outside", "spectral", False)),
    "optax #1612": (
        TRACE,
        equalized(INSIDE),
        MATCHED,
        (False, "inside", "paper", False),
    ),
    "rollfast": (NESTEROV, kept(INSIDE), SAME, (True, "inside", "kept", False)),
    "emerging": (TRACE, kept(CLAMPED, SHORT), SAME, (False, "clamped", "kept", True)),
    "clamped": (NESTEROV, kept(CLAMPED), SAME, (True, "clamped", "kept", False)),
    "modded": (NESTEROV, kept(CLAMPED, SHORT), SAME, (True, "clamped", "kept", True)),
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in KERNELS.items()}


def ours(momentum, scaled, sized):
    """Yield the update of every step."""
    optimizer = optax.chain(momentum, orthogonalize(), scaled, sized)
    state = optimizer.init(jax.tree.map(jnp.asarray, draw(0)))
    update = jax.jit(optimizer.update)
    for step in range(STEPS):
        updates, state = update(jax.tree.map(jnp.asarray, draw(step)), state)
        yield updates


@functools.cache
def theirs(said):
    """Return the update of every step, of the oracle."""
    rows = lambda name: (torch.tensor(draw(s)[name].T.copy()) for s in range(STEPS))
    normuon_ = oracle("normuon_variants:normuon")
    every = [normuon_(rows(name), B1, B2, *said) for name in KERNELS]
    steps = zip(*every, strict=True)
    return [dict(zip(KERNELS, [u.T for u in step], strict=True)) for step in steps]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_normuon_is_a_composition_of_parts(variant):
    *parts, said = VARIANTS[variant]
    pairs = zip(ours(*parts), theirs(said), strict=True)
    for step, (updates, expected) in enumerate(pairs, start=1):
        for name, update in updates.items():
            where = f"step {step}, {name}"
            np.testing.assert_allclose(
                update, expected[name], TOLERANCE, TOLERANCE, err_msg=where
            )
    for other in VARIANTS.keys() - {variant}:
        *_, wrong = theirs(VARIANTS[other][-1])
        away = [np.abs(updates[name] - wrong[name].numpy()).max() for name in KERNELS]
        assert max(away) > 1e-3, other


LEAVES = {  # path, shape, matrices of Optax, blocks that split its rows in halves
    "wide": ("Dense_0/kernel", (6, 4), MuonDimensionNumbers(0, 1), (1, 2)),
    "tall": ("Dense_0/kernel", (4, 6), MuonDimensionNumbers(0, 1), (1, 2)),
    "query": ("query/kernel", (5, 4, 3), MuonDimensionNumbers(0, (1, 2)), (1, 2)),
    "out": ("attention/out/kernel", (3, 4, 6), MuonDimensionNumbers((0, 1), 2), (2, 2)),
    "conv": ("Conv_0/kernel", (3, 2, 2, 6), MuonDimensionNumbers((0, 1, 2), 3), (3, 2)),
    "stacked": ("layers/kernel", (2, 5, 4), MuonDimensionNumbers(1, 2), (2, 2)),
}
STACKED = FLAX.override({"layers": Neurons(stack=(0,))})


def turned(optimizer, path, leaf):
    update = lambda tree: optimizer.update(tree, optimizer.init(tree))[0]
    return jax.jit(update)({path: leaf})[path]


def as_optax(optimizer, neurons):
    """Add the factor of a matrix's shape that Optax 0.2.6 has in its direction."""
    factor = aspect_ratio if optax.__version__ == "0.2.6" else lambda *shape: 1.0
    return optax.chain(optimizer, scale_by_shape(factor, neurons=neurons))


def muon_of(numbers):
    return optax.contrib.scale_by_muon(
        beta=0.0, eps=1e-7, nesterov=False, weight_dimension_numbers=numbers
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("path", "shape", "numbers", "_"), LEAVES.values(), ids=LEAVES)
def test_orthogonalizing_is_muons_for_every_kind_of_matrix(
    path, shape, numbers, _, dtype
):
    with jax.enable_x64(dtype == np.float64):
        kernel = jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
        muon = muon_of({path: numbers})
        ours = as_optax(orthogonalize(neurons=STACKED), STACKED)
        actual, expected = (turned(of, path, kernel) for of in (ours, muon))
        # Five iterations enlarge a small rounding by at most 3.4445 each.
        tolerance = 3.4445**5 * 8 * np.finfo(dtype).eps
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["query", "out", "conv"])
def test_the_last_two_axes_are_not_the_matrix(name):
    path, shape, *_ = LEAVES[name]
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    wrong = turned(muon_of({path: MuonDimensionNumbers(-2, -1)}), path, kernel)
    actual = turned(orthogonalize(neurons=STACKED), path, kernel)
    assert np.abs(actual - wrong).max() > 1e-2


def test_every_copy_is_a_matrix_of_its_own():
    kernels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    together = turned(orthogonalize(neurons=STACKED), "layers/kernel", kernels)
    alone = [turned(orthogonalize(), "kernel", kernel) for kernel in kernels]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=0, atol=1e-5)
    merged = turned(orthogonalize(), "kernel", kernels)
    assert np.abs(merged - together).max() > 1e-2


@pytest.mark.parametrize(("path", "shape", "_", "blocks"), LEAVES.values(), ids=LEAVES)
def test_blocks_do_not_cut_a_matrix(path, shape, _, blocks):
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    said = STACKED.neurons(path, len(shape))
    halves = said._replace(blocks=(blocks,))
    whole = turned(orthogonalize(neurons=said), path, kernel)
    np.testing.assert_array_equal(
        turned(orthogonalize(neurons=halves), path, kernel), whole
    )
    axis, count = blocks
    kept, half = (np.split(np.asarray(a), count, axis)[0] for a in (whole, kernel))
    alone = turned(orthogonalize(neurons=said), path, jnp.asarray(half))
    assert np.abs(alone - kept).max() > 1e-2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_iterated_in_float32(dtype):
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), dtype)
    actual = turned(orthogonalize(), "kernel", kernel)
    assert actual.dtype == dtype
    expected = turned(orthogonalize(), "kernel", kernel.astype(jnp.float32))
    np.testing.assert_array_equal(actual, expected.astype(dtype))
    narrow = muon_of({"kernel": MuonDimensionNumbers()})
    assert not np.array_equal(turned(narrow, "kernel", kernel), actual)


def test_what_is_no_matrix_stays_as_it_is():
    params = {"bias": jnp.array([3.0, 4.0]), "scale": jnp.array(2.0)}
    params |= {"kernel": jnp.array([[3.0, 4.0]]), "whole": jnp.ones((2, 3))}
    layout = FLAX.override({"whole": Neurons(output=())})
    doubled = scale_by_shape(lambda outputs, inputs: 2.0, neurons=layout)
    for optimizer in (orthogonalize(neurons=layout), doubled):
        updates, _ = optimizer.update(params, optimizer.init(params))
        for name in ("bias", "scale", "whole"):
            np.testing.assert_array_equal(updates[name], params[name])
        assert not np.array_equal(updates["kernel"], params["kernel"])


@pytest.mark.usefixtures("float64")
def test_the_frobenius_norm_is_restored_for_every_copy():
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(rng.normal(size=(2, 5, 4)) * [[[1.0]], [[1e3]]])
    sizes = lambda tree: np.sqrt(np.square(tree).sum((1, 2)))
    signs = preserve_norm(optax.scale_by_sign(), 1e-30, neurons=STACKED)
    restored = turned(signs, "layers/kernel", kernels)
    np.testing.assert_allclose(sizes(restored), sizes(kernels), rtol=TOLERANCE)
    np.testing.assert_array_equal(np.sign(restored), np.sign(kernels))
    merged = turned(
        preserve_norm(optax.scale_by_sign(), 1e-30), "layers/kernel", kernels
    )
    assert sizes(merged)[0] > 100 * sizes(kernels)[0]
    np.testing.assert_allclose(
        np.linalg.norm(merged), np.linalg.norm(kernels), rtol=TOLERANCE
    )
    assert not turned(signs, "layers/kernel", 0 * kernels).any()


@pytest.mark.parametrize(("path", "shape", "numbers", "_"), LEAVES.values(), ids=LEAVES)
def test_the_shape_of_a_matrix_is_its_neurons_and_its_fan_in(path, shape, numbers, _):
    sizes = lambda axes: np.prod([shape[axis] for axis in np.atleast_1d(axes)])
    outputs, inputs = sizes(numbers.output_axis), sizes(numbers.reduction_axis)
    optimizer = scale_by_shape(lambda m, k: m + 1000 * k, neurons=STACKED)
    update = turned(optimizer, path, jnp.ones(shape))
    np.testing.assert_array_equal(update, outputs + 1000 * inputs)
    assert outputs != inputs


TREE = {
    "Embed_0": {"embedding": (7, 4)},
    "Dense_0": {"kernel": (4, 3), "bias": (3,)},
    "Conv_0": {"kernel": (3, 3, 2, 5), "bias": (5,)},
    "LayerNorm_0": {"scale": (4,), "bias": (4,)},
    "lm_head": {"kernel": (4, 7)},
}
MATRICES = {"Dense_0/kernel", "Conv_0/kernel"}
FOR_ADAM = {  # pattern of leaves for AdamW, leaves that are then matrices
    "default": ({}, MATRICES),
    "all": (
        {"auxiliary": "nothing"},
        MATRICES | {"Embed_0/embedding", "lm_head/kernel"},
    ),
    "conv": (
        {"auxiliary": "Conv"},
        {"Dense_0/kernel", "Embed_0/embedding", "lm_head/kernel"},
    ),
}


def drawn(seed):
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: jnp.asarray(rng.standard_normal(shape)) for name, shape in of.items()
        }
        for layer, of in TREE.items()
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("changed", "matrices"), FOR_ADAM.values(), ids=FOR_ADAM)
def test_adamw_trains_all_but_matrices_and_what_is_named_so(changed, matrices):
    optimizer = normuon(0.1, weight_decay=0.1, **changed)
    adamw = optax.adamw(0.015 * 0.1, b2=0.95, eps=1e-10, weight_decay=0.1)
    params = expected = drawn(0)
    states = [tx.init(params) for tx in (optimizer, adamw)]
    steps = [jax.jit(tx.update) for tx in (optimizer, adamw)]
    for seed in range(1, 6):
        updates, states[0] = steps[0](drawn(seed), states[0], params)
        wanted, states[1] = steps[1](drawn(seed), states[1], expected)
        params = optax.apply_updates(params, updates)
        expected = optax.apply_updates(expected, wanted)
    away = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, expected)
    away = dict(named_leaves(away))
    assert {path for path in away if away[path] > 1e-2} == matrices
    assert {path for path in away if away[path] > TOLERANCE} == matrices


def test_a_convolution_has_one_variance_for_each_output_channel():
    state = optax.tree.get(normuon(0.1).init(drawn(0)), "NeuronState")
    shapes = {path: leaf.shape for path, leaf in named_leaves(state.memory)}
    assert shapes == {"Dense_0/kernel": (1, 3), "Conv_0/kernel": (1, 1, 1, 5)}


def rounded_step(kernel):
    """Take a step of Newton-Schulz in numpy, every factor of a product in bfloat16."""
    low = lambda x: x.astype(jnp.bfloat16).astype(np.float32)
    x = kernel.T / (np.linalg.norm(kernel) + 1e-7)
    gram = low(x) @ low(x).T
    square = low(gram) @ low(gram)
    both = np.float32(-4.7750) * gram + np.float32(2.0315) * square
    return (np.float32(3.4445) * x + low(both) @ low(x)).T


def test_factors_of_products_are_rounded_and_no_more():
    kernel = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    step = functools.partial(orthogonalize, steps=1)
    actual = turned(step(matmul_dtype="bfloat16"), "kernel", jnp.asarray(kernel))
    # some hundred roundings of float32, unless one tips a rounding to bfloat16
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(actual, rounded_step(kernel), rtol=100 * eps)
    other = turned(step(), "kernel", jnp.asarray(kernel))
    assert not np.allclose(actual, other, rtol=1000 * eps)


def test_normuon_passes_the_rounding_on():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))}
    grads = jax.tree.map(jnp.sin, params)
    rounded, exact, said = (
        optimizer.update(grads, optimizer.init(params), params)[0]["kernel"]
        for optimizer in (
            normuon(0.1, matmul_dtype="bfloat16"),
            normuon(0.1),
            optax.inject_hyperparams(normuon)(0.1, matmul_dtype="bfloat16"),
        )
    )
    # 1 - b1 as an array is rounded to float32; five iterations of slope 3.4445 at zero
    # amplify what that changes
    eps = np.finfo(np.float32).eps * 3.4445**5
    np.testing.assert_allclose(rounded, said, rtol=2 * eps)
    assert not np.allclose(rounded, exact, rtol=1000 * eps)


def test_a_rounding_that_loses_more_is_refused():
    for name in ("int8", "float64", "float8_e8m0fnu"):
        with pytest.raises(TypeError, match=f"one of bfloat16, .* None, got {name}"):
            orthogonalize(matmul_dtype=name)
    kernel = jnp.ones((3, 2), jnp.complex64)
    optimizer = orthogonalize(matmul_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"kernel: .* None for complex64"):
        optimizer.update({"kernel": kernel}, optimizer.init({"kernel": kernel}))
