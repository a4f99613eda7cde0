"""Weights on a surface, mean zero and norm one: the projections and Nero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neuron_optax import (
    FLAX,
    HAIKU,
    Neurons,
    nero,
    project_neurons,
    project_steps,
    scale_by_initial_norm,
)
from tests.case import STEPS, draw

torch = pytest.importorskip("torch")

TOLERANCE = 1e-12  # float64: only the order of summation differs
STACKED = FLAX.override({"layers": Neurons(stack=(0,))})
HEADS = HAIKU.override({"query/w": Neurons(blocks=((1, 3),))})
LEAVES = {  # layout, path, shape, view as rows: one a neuron
    "Dense": (FLAX, "Dense_0/kernel", (3, 4), lambda w: w.T),
    "Conv": (FLAX, "Conv_0/kernel", (3, 2, 2, 5), lambda w: w.reshape(12, 5).T),
    "tokens": (FLAX, "Embed_0/embedding", (7, 5), lambda w: w),
    "query": (FLAX, "query/kernel", (5, 3, 4), lambda w: w.reshape(5, 12).T),
    "stacked": (
        STACKED,
        "layers/kernel",
        (2, 5, 4),
        lambda w: np.moveaxis(w, 2, 1).reshape(8, 5),
    ),
    "heads": (
        HEADS,
        "query/w",
        (5, 12),
        lambda w: np.moveaxis(w.reshape(5, 3, 4), 1, 0).reshape(3, 20),
    ),
}
EQUAL = {  # kernels whose neurons each have equal entries
    "zeros": np.zeros((5, 3)),
    "ones": np.ones((5, 3)),
    "tenths": np.full((5, 3), 0.1),
    "huge": np.full((5, 3), -3e7),
}


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def on_the_surface(kernel, tolerance=1e-5):
    """Assert that every column has mean zero and norm one."""
    np.testing.assert_allclose(np.mean(kernel, axis=0), 0, atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=tolerance)


def trained(optimizer, params, grads):
    """Return the params after every step."""
    params = jax.tree.map(jnp.asarray, params)
    state, update, steps = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in grads:
        updates, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
        steps.append(params)
    return steps


def single(shape, dtype=np.float32, steps=STEPS):
    return [{"kernel": random(shape, 1 + step).astype(dtype)} for step in range(steps)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("layout", "path", "shape", "rows"), LEAVES.values(), ids=LEAVES
)
def test_every_neuron_is_centred_and_of_norm_one(layout, path, shape, rows):
    weights = random(shape) + 3
    projected = project_neurons({path: jnp.asarray(weights)}, neurons=layout)
    expected = torch.tensor(np.ascontiguousarray(rows(weights)))
    expected = torch.stack([row - row.mean() for row in expected])
    expected = torch.stack([row / row.norm() for row in expected])
    actual = rows(np.asarray(projected[path]))
    np.testing.assert_allclose(actual, expected, TOLERANCE, TOLERANCE)
    whole = project_neurons(
        {path: jnp.asarray(weights)}, neurons=FLAX.override({"": Neurons(())})
    )
    assert np.abs(rows(np.asarray(whole[path])) - expected.numpy()).max() > 0.1
    again = project_neurons(projected, neurons=layout)
    np.testing.assert_allclose(again[path], projected[path], TOLERANCE, TOLERANCE)


@pytest.mark.parametrize("length", [2, 3, 7, 1000])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -3e7, 1e-20])
def test_a_constant_neuron_becomes_zero_whatever_the_rounding_of_its_mean(
    value, length
):
    kernel = jnp.full((length, 2), value, jnp.float32).at[0, 1].add(abs(value) + 1)
    constant, other = project_neurons({"kernel": kernel})["kernel"].T
    np.testing.assert_array_equal(constant, 0)
    np.testing.assert_allclose(np.linalg.norm(other), 1, rtol=1e-5)


def test_centring_alone_leaves_roundings_that_would_become_a_neuron():
    row = torch.full((1000,), 0.1)
    centred = row - row.mean()
    assert centred.norm() > 0 and (centred / centred.norm()).norm() > 0.9


def test_entries_that_differ_by_their_rounding_alone_are_equal():
    eps = np.finfo(np.float32).eps
    kernel = jnp.array([[1.0, 1.0], [1.0 + eps, 1.0 + 100 * eps]], jnp.float32)
    moved = project_neurons({"kernel": kernel})["kernel"]
    size = 0.5**0.5  # known to the hundredth: 100 eps apart, each rounded by one
    np.testing.assert_allclose(moved, [[0, -size], [0, size]], rtol=2e-2)


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 1, 4)], ids=["Dense", "Conv"])
def test_a_fan_in_of_one_and_biases_stay_as_they_are(shape):
    params = {
        "kernel": jnp.asarray(random(shape), jnp.float32),
        "bias": jnp.asarray(random(4), jnp.float32),
        "scalar": jnp.float32(3.0),
    }
    projected = project_neurons(params)
    jax.tree.map(np.testing.assert_array_equal, projected, params)
    two = jnp.concatenate([params["kernel"], -params["kernel"]])
    assert not np.allclose(project_neurons({"kernel": two})["kernel"], two)


def test_a_neuron_that_is_not_finite_stays_so_and_others_do_not_see_it():
    kernel = random((5, 4)).astype(np.float32)
    sound = project_neurons({"kernel": jnp.asarray(kernel)})["kernel"]
    kernel[2, 1], kernel[0, 2] = np.nan, np.inf
    projected = project_neurons({"kernel": jnp.asarray(kernel)})["kernel"]
    assert np.isnan(projected[:, 1]).all() and np.isnan(projected[:, 2]).all()
    np.testing.assert_array_equal(projected[:, [0, 3]], sound[:, [0, 3]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_weights_keep_their_dtype(dtype):
    kernel = jnp.asarray(random((6, 4)) + 1, dtype)
    projected = project_neurons({"kernel": kernel})["kernel"]
    assert projected.dtype == dtype
    tolerance = 4 * float(jnp.finfo(dtype).eps)  # entries and their norm are rounded
    np.testing.assert_allclose(
        np.linalg.norm(np.asarray(projected, np.complex64), axis=0), 1, atol=tolerance
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("layout", "path", "shape", "_"), LEAVES.values(), ids=LEAVES)
def test_a_step_ends_on_projected_weights(layout, path, shape, _):
    params, grads = ({path: jnp.asarray(random(shape, seed))} for seed in (0, 1))
    optimizer = optax.chain(optax.sgd(0.3), project_steps(neurons=layout))
    (stepped,) = trained(optimizer, params, [grads])
    moved = {path: params[path] - 0.3 * grads[path]}
    expected = project_neurons(moved, neurons=layout)[path]
    np.testing.assert_allclose(stepped[path], expected, TOLERANCE, TOLERANCE)
    assert np.abs(stepped[path] - moved[path]).max() > 0.1


def test_projecting_without_weights_names_the_leaf():
    params = {"a": {"kernel": jnp.ones((3, 4))}}
    with pytest.raises(ValueError, match=r"a/kernel: .*pass params"):
        project_steps().update(params, optax.EmptyState())


@pytest.mark.parametrize("kernel", EQUAL.values(), ids=EQUAL)
def test_nero_moves_constant_neurons_onto_the_surface(kernel):
    params = {"kernel": kernel.astype(np.float32), "bias": np.zeros(3, np.float32)}
    grads = [{**g, "bias": np.ones(3, np.float32)} for g in single((5, 3))]
    steps = trained(nero(0.01), project_neurons(params), grads)
    for step in steps:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
        on_the_surface(step["kernel"])
    # A bias of size 0 counts as 0.01, and its own gradient is divided away.
    np.testing.assert_allclose(steps[0]["bias"], -0.01 * 0.01, rtol=1e-5)


@pytest.mark.parametrize("kernel", EQUAL.values(), ids=EQUAL)
def test_the_equations_divide_zero_by_zero_on_constant_neurons(kernel):
    row = torch.tensor(kernel[:, 0])
    centred = row - row.mean()
    assert (centred / centred.norm()).isnan().all()
    on_the_surface(np.asarray(project_neurons({"kernel": random((5, 3))})["kernel"]))


def test_nero_moves_a_fan_in_of_one_by_shares_and_does_not_project_it():
    kernel = random((1, 4)).astype(np.float32)
    steps = trained(nero(0.01), {"kernel": kernel}, single((1, 4)))
    size = np.abs(kernel).mean()
    first = steps[0]["kernel"] - kernel
    np.testing.assert_allclose(np.abs(first), 0.01 * size, rtol=1e-4)
    assert np.isfinite(steps[-1]["kernel"]).all() and np.ptp(steps[-1]["kernel"]) > 0.1
    row = torch.tensor(kernel[:, 0])
    centred = row - row.mean()  # what the equations make of it
    assert (centred / centred.norm()).isnan().all()


def test_nero_without_gradient_divides_zero_by_zero_only_in_the_equations():
    params = project_neurons({"kernel": random((5, 3)).astype(np.float32)})
    zeros = [{"kernel": np.zeros((5, 3), np.float32)}] * STEPS
    for step in trained(nero(0.01), params, zeros):
        np.testing.assert_allclose(step["kernel"], params["kernel"], atol=1e-6)
    assert (torch.zeros(5) / torch.zeros(5).norm()).isnan().all()
    *_, moved = trained(nero(0.01), params, single((5, 3)))
    assert np.abs(moved["kernel"] - params["kernel"]).max() > 0.01


@pytest.mark.usefixtures("float64")
def test_the_first_step_projects_weights_that_were_not():
    params, grads = draw(0), [draw(seed) for seed in (1, 2)]
    steps = trained(nero(0.01), params, grads)
    for step in steps:
        for layer in params:
            kernel = np.asarray(step[layer]["kernel"])
            on_the_surface(kernel.reshape(-1, kernel.shape[-1]), TOLERANCE)
    start = params["Dense_0"]["kernel"]
    assert np.abs(np.linalg.norm(start, axis=0) - 1).max() > 0.1


@pytest.mark.usefixtures("float64")
def test_every_copy_has_a_size_of_its_own():
    biases = {"layers": {"bias": np.stack([np.ones(4), np.full(4, 5.0)])}}
    biases["layers"]["kernel"] = random((2, 3, 4))
    ones = jax.tree.map(np.ones_like, biases)
    (step,) = trained(nero(0.01, neurons=STACKED), biases, [ones])
    moved = biases["layers"]["bias"] - step["layers"]["bias"]
    np.testing.assert_allclose(moved, [[0.01] * 4, [0.05] * 4], rtol=1e-9)
    (step,) = trained(nero(0.01), biases, [ones])
    merged = biases["layers"]["bias"] - step["layers"]["bias"]
    np.testing.assert_allclose(merged, 0.03, rtol=1e-9)


def test_what_is_chained_after_nero_leaves_the_surface():
    params = project_neurons({"kernel": random((5, 3)).astype(np.float32)})
    *_, inside = trained(nero(0.01), params, single((5, 3)))
    on_the_surface(inside["kernel"])
    decay = optax.add_decayed_weights(-0.05)
    *_, left = trained(optax.chain(nero(0.01), decay), params, single((5, 3)))
    assert (np.linalg.norm(left["kernel"], axis=0) < 0.97).all()
    *_, before = trained(optax.chain(decay, nero(0.01)), params, single((5, 3)))
    on_the_surface(before["kernel"])
    assert "Nothing may be chained after it" in nero.__doc__


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_leaves_the_surface_by_its_roundings_only(dtype):
    kernel = jnp.asarray(random((5, 3)), dtype)
    grads = [{"kernel": jnp.asarray(g["kernel"], dtype)} for g in single((5, 3))]
    tolerance = 4 * float(jnp.finfo(dtype).eps)  # of entries below 1, and of the step
    for step in trained(nero(0.01), {"kernel": kernel}, grads):
        assert step["kernel"].dtype == dtype
        on_the_surface(np.asarray(step["kernel"], np.float32), tolerance)
    assert np.abs(np.linalg.norm(np.float32(kernel), axis=0) - 1).max() > 0.1


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_weights_of_any_size_are_projected_without_overflow(size):
    weights = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    kernel = project_neurons({"kernel": jnp.asarray(weights * np.float32(size))})
    expected = project_neurons({"kernel": jnp.asarray(weights)})
    np.testing.assert_allclose(kernel["kernel"], expected["kernel"], rtol=1e-5)


def test_a_later_step_measures_what_has_no_size_yet_and_nothing_else():
    optimizer = scale_by_initial_norm(neurons=Neurons((-1,), stack=(0,)))
    weights = jnp.asarray(random((2, 5, 3)), jnp.float32)
    state = optimizer.init(weights)
    known = jnp.array([7.0, 0.0], jnp.float32).reshape(state.size.shape)
    step = jnp.ones_like(weights)
    moved, state = optimizer.update(step, state._replace(size=known), weights)
    assert state.size.ravel().tolist() == pytest.approx([7.0, 1.0])
    assert moved[0, 0, 0] == 7.0
    _, again = optimizer.update(step, state, 9 * weights)
    assert again.size.tolist() == state.size.tolist()


def test_eager_steps_compile_once():
    kernel = jnp.asarray(random((5, 3)), jnp.float32)
    optimizer = scale_by_initial_norm()
    _, state = optimizer.update(kernel, optimizer.init(kernel), kernel)
    made = []
    listen = lambda name, *_, **__: made.append(name)
    jax.monitoring.register_event_duration_secs_listener(listen)
    optimizer.update(kernel, state, kernel)
    assert not [name for name in made if "compile" in name]
