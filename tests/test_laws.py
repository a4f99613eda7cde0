"""Laws that need no oracle; each runs on the rows of the table that promise it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from tests.case import SHAPES, draw, gradients
from tests.cases import CASES, variants

STEPS = 5
DISTURBANCE = 1e6, 0.0, -1e6, 1e6, -1e6
TOLERANCE = 1e-12  # float64: the order of a sum over neurons or fan-in may change
LAWFUL = ["default", "bounds", "redistribute", "redistribute_bounds", "bias", "norm"]
ISOLATED = {
    name: row
    for name, row in variants(LAWFUL).items()
    if row[0].isolated and name.split("-")[1] not in row[0].coupled
}
COUPLED = {name: row for name, row in variants(LAWFUL).items() if name not in ISOLATED}
PERMUTED = {name: row for name, row in variants(LAWFUL).items() if row[0].permutation}
NOT_PERMUTED = {n: row for n, row in variants(["default"]).items() if n not in PERMUTED}
TRANSPOSED = {
    name: row for name, row in variants(["default"]).items() if row[0].transposes
}
KNOWN = {name: case for name, case in CASES.items() if case.per_entry}
KNOWN_LAYERS = {name: case for name, case in CASES.items() if case.per_layer}
PER_LAYER = {
    name: row
    for name, row in variants(["default"]).items()
    if "layer" in row[0].granularities
}

pytestmark = pytest.mark.usefixtures("float64")


def rows(table):
    return pytest.mark.parametrize(
        ("case", "changed"), list(table.values()), ids=list(table)
    )


def trajectory(case, changed, grads, params, **options):
    """Return the params after every step."""
    options = {"bias": case.bias, "neurons": neuron_optax.FLAX, **options}
    optimizer = case.make(changed, **options)
    params = case.start(params, options["neurons"])
    params = jax.tree.map(jnp.asarray, params)
    state, steps = optimizer.init(params), []
    for g in grads:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, g), state, params)
        params = optax.apply_updates(params, updates)
        steps.append(params)
    return steps


def alone(known):
    """Build an optimizer that has no neurons."""
    return lambda learning_rate, neurons: known(learning_rate)


def permuted(tree):
    """Reverse the neurons of every leaf."""
    return jax.tree.map(lambda leaf: leaf[..., ::-1], tree)


def louder(tree, size=1e6):
    """Multiply the numbers of the first neuron of every leaf."""
    return jax.tree.map(
        lambda leaf: leaf * np.where(np.arange(leaf.shape[-1]) == 0, size, 1.0), tree
    )


def disturbed(grads):
    """Change the size, the sign and the activity of the first neuron's gradients."""
    return [louder(g, size) for g, size in zip(grads, DISTURBANCE, strict=True)]


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
    exact = case.isolated and not changed.get("redistribute")
    agree([permuted(step) for step in plain], other, 0 if exact else TOLERANCE)


@rows(NOT_PERMUTED)
def test_where_permuting_neurons_is_not_promised_it_fails(case, changed):
    *_, plain = trajectory(case, changed, gradients(STEPS), draw(1))
    grads = [permuted(g) for g in gradients(STEPS)]
    *_, other = trajectory(case, changed, grads, permuted(draw(1)))
    moved = permuted(plain)["Conv_0"]["kernel"] - other["Conv_0"]["kernel"]
    assert np.abs(moved).max() > 1e-6


@rows(ISOLATED)
def test_neurons_do_not_see_each_other(case, changed):
    plain = trajectory(case, changed, gradients(STEPS), draw(1))
    other = trajectory(case, changed, disturbed(gradients(STEPS)), draw(1))
    agree([others(step) for step in plain], [others(step) for step in other], 0)
    loud = louder(gradients(1)[0])["Dense_0"]["kernel"]
    assert not np.array_equal(loud[:, 0], gradients(1)[0]["Dense_0"]["kernel"][:, 0])


@rows(COUPLED)
def test_where_isolation_is_not_promised_neurons_do_see_each_other(case, changed):
    grads = gradients(STEPS)
    plain = trajectory(case, changed, grads, draw(1))
    weights = louder(draw(1)) if case.by_weights else draw(1)
    grads = grads if case.by_weights else disturbed(grads)
    other = trajectory(case, changed, grads, weights)
    for layer in SHAPES:
        moved = others(plain[-1])[layer]["kernel"] - others(other[-1])[layer]["kernel"]
        assert np.abs(moved).max() > 1e-6


@rows(TRANSPOSED)
def test_transposing_a_kernel_and_its_layout_transposes_the_update(case, changed):
    turned = lambda tree: jax.tree.map(np.transpose, tree)
    grads = gradients(STEPS, case.sparse)
    plain = trajectory(case, changed, grads, draw(1))
    layout = neuron_optax.FLAX.override(
        {"kernel": neuron_optax.Neurons(output=(0,)), "bias": neuron_optax.Neurons(...)}
    )
    grads = [turned(g) for g in grads]
    other = trajectory(case, changed, grads, turned(draw(1)), neurons=layout)
    agree([turned(step) for step in other], plain, TOLERANCE)
    wrong = trajectory(case, changed, grads, turned(draw(1)), bias="own")
    difference = turned(wrong[-1])["Dense_1"]["kernel"] - plain[-1]["Dense_1"]["kernel"]
    assert np.abs(difference).max() > 1e-6


@pytest.mark.parametrize("case", KNOWN.values(), ids=KNOWN)
def test_one_neuron_per_entry_is_the_known_optimizer(case):
    known, changed = case.per_entry
    layout = neuron_optax.PER_ENTRY
    grads = gradients(STEPS, case.sparse)
    actual = trajectory(case, changed, grads, draw(1), neurons=layout)
    twin = dataclasses.replace(
        case, build=lambda learning_rate, neurons: known(learning_rate), bias=None
    )
    expected = trajectory(twin, {}, grads, draw(1))
    agree(actual, expected, TOLERANCE)
    per_neuron = trajectory(case, {}, grads, draw(1))
    difference = per_neuron[-1]["Dense_0"]["kernel"] - expected[-1]["Dense_0"]["kernel"]
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize("case", KNOWN_LAYERS.values(), ids=KNOWN_LAYERS)
def test_one_neuron_per_layer_is_the_known_optimizer(case):
    known, changed = case.per_layer
    layout = neuron_optax.PER_LAYER
    grads = gradients(STEPS, case.sparse)
    actual = trajectory(case, changed, grads, draw(1), neurons=layout)
    twin = dataclasses.replace(
        case, build=lambda learning_rate, neurons: known(learning_rate), bias=None
    )
    expected = trajectory(twin, {}, grads, draw(1))
    agree(actual, expected, case.layer_tolerance)
    per_neuron = trajectory(case, {}, grads, draw(1))
    difference = per_neuron[-1]["Dense_0"]["kernel"] - expected[-1]["Dense_0"]["kernel"]
    assert np.abs(difference).max() > 1e-4


@rows(PER_LAYER)
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
        agree(steps[-1], case.start(params, neuron_optax.FLAX), case.at_rest)


@rows(variants(["default", "redistribute"]))
def test_a_neuron_that_is_never_active_stays_put_and_others_do_not(case, changed):
    mute = lambda tree: jax.tree.map(
        lambda leaf: leaf * (np.arange(leaf.shape[-1]) > 0), tree
    )
    grads = [mute(g) for g in gradients(STEPS)]
    *_, last = trajectory(case, changed, grads, draw(1))
    first = case.start(draw(1), neuron_optax.FLAX)
    for leaf, start in zip(jax.tree.leaves(last), jax.tree.leaves(first), strict=True):
        assert np.isfinite(leaf).all()
        agree(leaf[..., 0], start[..., 0], case.at_rest)
        assert (leaf != start)[..., 1:].all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@rows(variants(["default"]))
def test_dtype_in_is_dtype_out_and_numbers_per_neuron_have_32_bits(
    case, changed, dtype
):
    optimizer = case.make(changed, bias=case.bias)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), draw(1))
    state = optimizer.init(params)
    updates, state = jax.eval_shape(optimizer.update, params, state, params)
    found = [optax.tree.get_all_with_path(state, field) for field in case.numbers]
    numbers = [tree for pairs in found for _, tree in pairs]
    wide = jnp.promote_types(dtype, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(numbers)} == {wide}


MASK = {layer: {"kernel": True, "bias": False} for layer in SHAPES}
DECAYING = {
    **{name: c.build for name, c in CASES.items() if c.alias and c.decays == "before"},
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


OTHERWISE = {
    n: row for n, row in variants(["default"]).items() if row[0].decays == "otherwise"
}


@rows(OTHERWISE)
def test_decay_of_another_order_spares_what_its_mask_spares(case, changed):
    schedule = lambda step: jnp.where(step == 0, 0.5, 0.0)
    decay = {"weight_decay": schedule, "weight_decay_mask": lambda params: MASK}
    once = gradients(1)
    (plain,) = trajectory(case, changed, once, draw(1))
    (masked,) = trajectory(case, changed | decay, once, draw(1))
    for layer in SHAPES:
        np.testing.assert_array_equal(masked[layer]["bias"], plain[layer]["bias"])
        moved = masked[layer]["kernel"] - plain[layer]["kernel"]
        assert np.abs(moved).min() > 0


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
