"""What whole families of strategies promise: shares, subsets, activity, learning."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import ADAM_MINI, FLAX, Neurons
from neuron_optax.trees import named_leaves
from tests.case import STEPS, oracle
from tests.cases import CASES

torch = pytest.importorskip("torch")

TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
STACKED = FLAX.override({"layers": Neurons(stack=(0,))})
TREE = {
    "layers": {"kernel": (2, 3, 4), "bias": (2, 4)},
    "Dense_0": {"kernel": (3, 4), "bias": (4,)},
}
SHARING = {
    name: case
    for name, case in CASES.items()
    if "redistribute" in inspect.signature(case.build).parameters
}


def drawn(seed, shapes=TREE):
    """Draw a tree of these shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def moved(optimizer, params, grads):
    """Yield what every step of fixed params gives: updates and state."""
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in grads:
        updates, state = update(gradient, state, params)
        yield updates, state


def uneven(step):
    """Draw gradients that span decades; neuron n has one in every nth step, 0 never."""

    def sized(leaf):
        neurons = np.arange(leaf.shape[-1])
        active = (neurons > 0) & (step % np.maximum(neurons, 1) == 0)
        return jnp.asarray(leaf * np.logspace(-2, 2, len(neurons)) * active)

    return jax.tree.map(sized, jax.tree.map(np.asarray, drawn(step)))


def layers(numbers):
    """Return numbers per neuron as one row for each copy of each layer."""
    shape = lambda path: (2 if "layers" in path else 1, -1)
    return [row for p, leaf in named_leaves(numbers) for row in leaf.reshape(shape(p))]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", SHARING.values(), ids=SHARING)
def test_redistributed_factors_have_mean_one_and_keep_their_ratios(case):
    grads = [uneven(step) for step in range(1, 7)]
    params, states = drawn(0), []
    for redistribute in (True, False):
        options = {"redistribute": redistribute, "low": None, "high": None}
        optimizer = case.build(0.1, neurons=STACKED, **options)
        *_, (_, state) = moved(optimizer, params, grads)
        states.append(optax.tree.get(state, "NeuronState"))
    shared, plain = states
    rows = zip(*map(layers, (shared.memory, shared.rate, plain.rate)), strict=True)
    means = []
    for memory, rate, before in rows:
        live = memory != 0
        np.testing.assert_allclose(rate[live].mean(), 1, rtol=TOLERANCE)
        ratios = before[live] / before[live][0]
        np.testing.assert_allclose(rate[live] / rate[live][0], ratios, rtol=TOLERANCE)
        assert np.ptp(rate[live]) > 1e-3
        means.append(before[live].mean())
    assert np.abs(np.array(means) - 1).max() > 1e-3


def of_rows(build, path, shape, rows, theirs, **changed):
    """Compare the trajectory of one leaf with an oracle on its rows; return ours."""
    params = drawn(0, {path: shape})
    view = lambda tree: np.ascontiguousarray(rows(np.asarray(tree[path])))
    weight = torch.tensor(view(params))
    twin = oracle(theirs)([weight], 0.1, **changed)
    optimizer = build(0.1, **changed)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        grads = drawn(1 + step, {path: shape})
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        weight.grad = torch.tensor(view(grads))
        twin.step()
        np.testing.assert_allclose(
            view(params), weight, TOLERANCE, TOLERANCE, err_msg=f"step {step + 1}"
        )
    assert optax.tree.get(state, "memory")[path].size == len(weight)


FAN_OUT = functools.partial(
    neuron_optax.slim_adam, neurons=FLAX.override({"kernel": Neurons(output=(0,))})
)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "changed", [{}, {"eps": 0.1, "weight_decay": 0.1, "redistribute": True}]
)
def test_a_moment_shared_over_the_fan_out_matches_pytorch(changed):
    kernel = ["Dense_0/kernel", (4, 4)]
    slim = "slim_adam:SlimAdam"
    of_rows(FAN_OUT, *kernel, lambda w: w, slim, **changed)
    with pytest.raises(AssertionError, match="step 1"):
        of_rows(FAN_OUT, *kernel, lambda w: w.T, slim, **changed)


SUBSETS = {  # subsets of 2 entries each: layout, path, shape, view as rows
    "parts of the fan-in": (
        Neurons((0, 1), blocks=((0, 3),)),
        "Dense_0/kernel",
        (6, 4),
        lambda w: np.moveaxis(w.reshape(3, 2, 4), 1, 2).reshape(12, 2),
    ),
    "contiguous in torch": (
        Neurons((0, 1), blocks=((1, 3),)),
        "linear/weight",
        (4, 6),
        lambda w: w.reshape(12, 2),
    ),
    "pairs of neurons": (
        Neurons((0, 1), blocks=((1, 2),)),
        "Dense_0/kernel",
        (6, 4),
        lambda w: w.reshape(12, 2),
    ),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("neurons", "path", "shape", "rows"), SUBSETS.values(), ids=SUBSETS
)
def test_subsets_are_blocks_and_match_pytorch(neurons, path, shape, rows):
    build = functools.partial(neuron_optax.subset_norm_adam, neurons=neurons)
    twin = "subset_norm_adam:SubsetNormAdam"
    of_rows(build, path, shape, rows, twin, weight_decay=0.1)
    with pytest.raises(AssertionError, match="step 1"):
        of_rows(build, path, shape, lambda w: np.roll(w, 1).reshape(12, 2), twin)


@pytest.mark.usefixtures("float64")
def test_a_norm_makes_steps_smaller_than_a_mean_by_the_root_of_the_size():
    neurons = Neurons((0, 1), blocks=((0, 3),))  # of one entry each
    params, grads = ({"kernel": drawn(seed)["Dense_0"]["kernel"]} for seed in (0, 1))
    updates = []
    for build in (neuron_optax.subset_norm_adam, neuron_optax.adam_mini):
        for layout in (neurons, FLAX):
            optimizer = build(0.1, eps=1e-30, neurons=layout)
            ((update, _),) = moved(optimizer, params, [grads])
            updates.append(update["kernel"])
    of_entries, of_neurons, *means = updates
    np.testing.assert_allclose(of_entries, means[0], rtol=TOLERANCE)
    np.testing.assert_allclose(of_neurons * 3**0.5, means[1], rtol=TOLERANCE)
    # not a tolerance: without the root they must be off by more than a thousandth
    assert not np.allclose(of_neurons, means[1], rtol=1e-3)


ATTENTION = "encoder/MultiHeadDotProductAttention_0"
TRANSFORMER = {  # shapes of the leaf, of the numbers of Adam-mini and of SlimAdam
    "Embed_0/embedding": ((11, 6), (11, 1), (11, 1)),
    f"{ATTENTION}/query/kernel": ((6, 2, 3), (1, 2, 1), (1, 2, 3)),
    f"{ATTENTION}/key/kernel": ((6, 2, 3), (1, 2, 1), (1, 2, 3)),
    f"{ATTENTION}/value/kernel": ((6, 2, 3), (1, 2, 3), (6, 1, 1)),
    f"{ATTENTION}/out/kernel": ((2, 3, 6), (1, 1, 6), (2, 3, 1)),
    f"{ATTENTION}/query/bias": ((2, 3), (2, 3), (2, 3)),
    f"{ATTENTION}/out/bias": ((6,), (6,), (6,)),
    "encoder/MlpBlock_0/Dense_0/kernel": ((6, 12), (1, 12), (6, 1)),
    "encoder/MlpBlock_0/Dense_0/bias": ((12,), (12,), (12,)),
    "encoder/MlpBlock_0/Dense_1/kernel": ((12, 6), (1, 6), (12, 1)),
    "encoder/LayerNorm_0/scale": ((6,), (1,), (6,)),
    "encoder/LayerNorm_0/bias": ((6,), (6,), (6,)),
    "encoder/RMSNorm_0/scale": ((6,), (1,), (6,)),
    "Conv_0/kernel": ((3, 3, 1, 6), (1, 1, 1, 1), (3, 3, 1, 6)),
    "lm_head/kernel": ((6, 11), (1, 11), (1, 11)),
}


@pytest.mark.parametrize("place", [1, 2], ids=["ADAM_MINI", "SLIM_ADAM"])
def test_a_transformer_has_the_numbers_of_its_authors(place):
    params = {path: jnp.zeros(shapes[0]) for path, shapes in TRANSFORMER.items()}
    build = [
        functools.partial(neuron_optax.adam_mini, neurons=ADAM_MINI),
        neuron_optax.slim_adam,
    ][place - 1]
    memory = optax.tree.get(build(0.1).init(params), "memory")
    expected = {path: shapes[place] for path, shapes in TRANSFORMER.items()}
    assert {path: leaf.shape for path, leaf in memory.items()} == expected
    others = neuron_optax.adam_mini(0.1).init(params)
    shapes = {p: leaf.shape for p, leaf in optax.tree.get(others, "memory").items()}
    assert {p.split("/")[-2] for p in shapes if shapes[p] != expected[p]} == (
        {"query", "key", "LayerNorm_0", "RMSNorm_0", "Conv_0"},
        {"value", "out", "Dense_0", "Dense_1", "Conv_0"},
    )[place - 1]
