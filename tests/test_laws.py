"""Laws that need no oracle; each runs on the rows of the table that promise it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from tests.cases import CASES, SHAPES, draw, gradients, variants

STEPS = 5
TOLERANCE = 1e-12  # float64: the order of a sum over neurons or fan-in may change
LAWFUL = ["default", "bounds", "redistribute", "redistribute_bounds", "bias", "norm"]
ISOLATED = {
    name: row
    for name, row in variants(LAWFUL).items()
    if row[0].isolated and name.split("-")[1] not in row[0].coupled
}
COUPLED = {
    name: row
    for name, row in variants(LAWFUL).items()
    if name.split("-")[1] in row[0].coupled
}
PERMUTED = {name: row for name, row in variants(LAWFUL).items() if row[0].permutation}
TRANSPOSED = {
    name: row for name, row in variants(["default"]).items() if row[0].transposes
}
KNOWN = {name: case for name, case in CASES.items() if case.per_entry}

pytestmark = pytest.mark.usefixtures("float64")


def rows(table):
    return pytest.mark.parametrize(
        ("case", "changed"), list(table.values()), ids=list(table)
    )


def trajectory(case, changed, grads, params, **options):
    """Return the params after every step."""
    options = {"bias": case.bias, **options, **changed}
    optimizer = case.build(**{"learning_rate": case.learning_rate, **options})
    params = jax.tree.map(jnp.asarray, params)
    state, update, steps = optimizer.init(params), jax.jit(optimizer.update), []
    for g in grads:
        updates, state = update(jax.tree.map(jnp.asarray, g), state, params)
        params = optax.apply_updates(params, updates)
        steps.append(params)
    return steps


def permuted(tree):
    """Reverse the neurons of every leaf."""
    return jax.tree.map(lambda leaf: leaf[..., ::-1], tree)


def louder(tree):
    """Multiply the gradients of the first neuron of every leaf by a million."""
    return jax.tree.map(
        lambda leaf: leaf * np.where(np.arange(leaf.shape[-1]) == 0, 1e6, 1.0), tree
    )


def others(tree):
    """Drop the first neuron of every leaf."""
    return jax.tree.map(lambda leaf: leaf[..., 1:], tree)


def agree(actual, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


@rows(PERMUTED)
def test_permuting_neurons_permutes_updates(case, changed):
    plain = trajectory(case, changed, gradients(STEPS), draw(1))
    grads = [permuted(g) for g in gradients(STEPS)]
    other = trajectory(case, changed, grads, permuted(draw(1)))
    tolerance = TOLERANCE if changed.get("redistribute") else 0
    agree([permuted(step) for step in plain], other, tolerance)


@rows(ISOLATED)
def test_neurons_do_not_see_each_other(case, changed):
    plain = trajectory(case, changed, gradients(STEPS), draw(1))
    other = trajectory(case, changed, [louder(g) for g in gradients(STEPS)], draw(1))
    agree([others(step) for step in plain], [others(step) for step in other], 0)
    loud = louder(gradients(1)[0])["Dense_0"]["kernel"]
    assert not np.array_equal(loud[:, 0], gradients(1)[0]["Dense_0"]["kernel"][:, 0])


@rows(COUPLED)
def test_redistributed_neurons_do_see_each_other(case, changed):
    grads = gradients(STEPS)
    plain = trajectory(case, changed, grads, draw(1))
    weights = louder(draw(1)) if case.needs_params else draw(1)
    grads = grads if case.needs_params else [louder(g) for g in grads]
    other = trajectory(case, changed, grads, weights)
    for layer in SHAPES:
        moved = others(plain[-1])[layer]["kernel"] - others(other[-1])[layer]["kernel"]
        assert np.abs(moved).max() > 1e-6


@rows(TRANSPOSED)
def test_transposing_a_kernel_and_its_layout_transposes_the_update(case, changed):
    turned = lambda tree: jax.tree.map(np.transpose, tree)
    plain = trajectory(case, changed, gradients(STEPS), draw(1))
    layout = neuron_optax.FLAX.override(
        {"kernel": neuron_optax.Neurons(output=(0,)), "bias": neuron_optax.Neurons(...)}
    )
    grads = [turned(g) for g in gradients(STEPS)]
    other = trajectory(case, changed, grads, turned(draw(1)), neurons=layout)
    agree([turned(step) for step in other], plain, TOLERANCE)
    wrong = trajectory(case, changed, grads, turned(draw(1)), bias="own")
    difference = turned(wrong[-1])["Dense_1"]["kernel"] - plain[-1]["Dense_1"]["kernel"]
    assert np.abs(difference).max() > 1e-6


@pytest.mark.parametrize("case", KNOWN.values(), ids=KNOWN)
def test_one_neuron_per_entry_is_the_known_optimizer(case):
    known, changed = case.per_entry
    layout = neuron_optax.PER_ENTRY
    actual = trajectory(case, changed, gradients(STEPS), draw(1), neurons=layout)
    twin = dataclasses.replace(
        case, build=lambda learning_rate, bias: known(learning_rate)
    )
    expected = trajectory(twin, {}, gradients(STEPS), draw(1))
    agree(actual, expected, TOLERANCE)
    per_neuron = trajectory(case, changed, gradients(STEPS), draw(1))
    difference = per_neuron[-1]["Dense_0"]["kernel"] - expected[-1]["Dense_0"]["kernel"]
    assert np.abs(difference).max() > 1e-3


@rows(variants(["default"]))
def test_one_neuron_per_layer_is_a_neuron_with_all_its_entries(case, changed):
    grads, flat = gradients(STEPS), lambda tree: jax.tree.map(lambda x: x.ravel(), tree)
    column = lambda tree: jax.tree.map(  # a kernel has one rank more than its bias
        lambda leaf: leaf.reshape(-1, *[1] * (1 + (leaf.ndim > 1))), tree
    )
    layout = neuron_optax.PER_LAYER
    actual = trajectory(case, changed, grads, draw(1), neurons=layout)
    expected = trajectory(
        case,
        changed,
        [column(g) for g in grads],
        column(draw(1)),
        neurons=neuron_optax.Neurons(),
    )
    agree(flat(actual), flat(expected), TOLERANCE)


@rows(variants(["default", "redistribute"]))
def test_zero_gradients_and_zero_weights_give_finite_updates(case, changed):
    zeros = jax.tree.map(np.zeros_like, draw(1))
    for params in (draw(1), zeros):
        steps = trajectory(case, changed, [zeros] * STEPS, params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(steps))
        agree(steps[-1], params, 0)


@rows(variants(["default", "redistribute"]))
def test_a_neuron_that_is_never_active_stays_put_and_others_do_not(case, changed):
    mute = lambda tree: jax.tree.map(
        lambda leaf: leaf * (np.arange(leaf.shape[-1]) > 0), tree
    )
    grads = [mute(g) for g in gradients(STEPS)]
    *_, last = trajectory(case, changed, grads, draw(1))
    for leaf, start in zip(
        jax.tree.leaves(last), jax.tree.leaves(draw(1)), strict=True
    ):
        assert np.isfinite(leaf).all()
        np.testing.assert_array_equal(leaf[..., 0], start[..., 0])
        assert (leaf != start)[..., 1:].all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@rows(variants(["default"]))
def test_dtype_in_is_dtype_out_and_numbers_per_neuron_have_32_bits(
    case, changed, dtype
):
    options = {"learning_rate": case.learning_rate, "bias": case.bias, **changed}
    optimizer = case.build(**options)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), draw(1))
    updates, state = optimizer.update(params, optimizer.init(params), params)
    neurons = optax.tree.get(state, "NeuronState")
    wide = jnp.promote_types(dtype, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {a.dtype for a in jax.tree.leaves((neurons.memory, neurons.rate))} == {wide}


MASK = {layer: {"kernel": True, "bias": False} for layer in SHAPES}
DECAYING = {
    **{name: case.build for name, case in CASES.items() if case.alias},
    "layerwise": lambda rate, **given: neuron_optax.layerwise({"": rate}, **given),
    "layerwise_decay": lambda rate, **given: neuron_optax.layerwise_decay(
        rate, 1.0, [""], **given
    ),
}


@pytest.mark.parametrize("mask", [MASK, lambda params: MASK], ids=["tree", "function"])
@pytest.mark.parametrize("build", DECAYING.values(), ids=DECAYING)
def test_decay_follows_its_schedule_and_spares_what_its_mask_spares(build, mask):
    params, grads = jax.tree.map(jnp.asarray, (draw(1), gradients(1)[0]))

    def updates(**given):
        optimizer = build(0.1, **given)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    schedule = lambda step: jnp.where(step == 0, 0.5, 0.0)
    plain = updates()
    masked = updates(weight_decay=schedule, weight_decay_mask=mask)
    for layer, of in params.items():
        np.testing.assert_array_equal(masked[layer]["bias"], plain[layer]["bias"])
        decay = masked[layer]["kernel"] - plain[layer]["kernel"]
        np.testing.assert_allclose(decay, -0.1 * 0.5 * of["kernel"], rtol=1e-9)


def test_layers_take_their_direction_and_the_first_pattern_that_matches():
    params = {"a": jnp.ones(2), "ab": jnp.ones(2)}
    plain = {"direction": optax.identity()}
    for optimizer in (
        neuron_optax.layerwise({"ab": 0.5, "a": 0.25}, **plain),
        neuron_optax.layerwise_decay(0.5, 0.5, ["a$", "b"], **plain),
    ):
        updates, state = optimizer.update(params, optimizer.init(params), params)
        assert updates["a"].tolist() == [-0.25] * 2
        assert updates["ab"].tolist() == [-0.5] * 2
        assert optax.tree.get(state, "rate")["ab"].tolist() == [0.5]


def test_the_rate_of_a_layer_follows_its_schedule():
    optimizer = neuron_optax.scale_by_layer({"w": lambda step: 1.0 / (step + 1)})
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    for step in range(3):
        updates, state = optimizer.update(params, state)
        np.testing.assert_allclose(state.rate["w"], 1 / (step + 1), rtol=1e-6)
        np.testing.assert_allclose(updates["w"], 1 / (step + 1), rtol=1e-6)
