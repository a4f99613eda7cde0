"""What Optax and JAX expect of every transformation, for every strategy at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from neuron_optax import ema, inverse_root, mean_square, scale_per_neuron
from tests.contract_models import (
    ALIASES,
    AT_REST,
    BY_HAND,
    CLOSE,
    CONTENDERS,
    ON_ADAM,
    all_zero,
    differ,
    layer_of,
    normal,
    run,
    types,
    types_around_update,
)

every_strategy = pytest.mark.parametrize("make", CONTENDERS)
every_precision = pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]
)

PARAMS = layer_of()
GRADIENTS = [layer_of(seed=seed) for seed in (1, 2, 3)]


@functools.cache
def compiled(make):
    """Return one step that donates its arguments, compiled once for all tests."""
    optimizer = make(0.01)

    def step(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer.init, jax.jit(step, donate_argnums=(1, 2), keep_unused=True)


@every_strategy
@every_precision
def test_updates_and_state_keep_their_types(make, dtype):
    trees = layer_of(dtype), layer_of(dtype, seed=1)
    before, after = types_around_update(make(0.01), *trees)
    assert after == before


@pytest.mark.parametrize("make", ALIASES)
def test_low_precision_params_keep_their_types_under_wider_gradients(make):
    trees = layer_of(jnp.bfloat16), layer_of(jnp.float32, seed=1)
    before, after = types_around_update(make(0.01), *trees)
    assert after == before


@every_strategy
def test_state_keeps_its_types_under_gradients_of_lower_precision(make):
    trees = layer_of(jnp.float32), layer_of(jnp.bfloat16, seed=1)
    (_, before), (_, after) = types_around_update(make(0.01), *trees)
    assert after == before


@pytest.mark.parametrize("make", BY_HAND)
def test_adam_of_optax_chained_by_hand_widens_its_state(make):
    trees = layer_of(jnp.bfloat16), layer_of(jnp.float32, seed=1)
    before, after = types_around_update(make(0.01), *trees)
    assert after != before


@every_strategy
@every_precision
def test_update_moves_every_leaf_and_is_finite(make, dtype):
    params, gradient = layer_of(dtype), layer_of(dtype, seed=1)
    gradient = jax.tree.map(jnp.conj, gradient)
    _, (update,), _ = run(make(0.01), params, [gradient])
    chex.assert_tree_all_finite(update)
    assert not any(map(all_zero, jax.tree.leaves(update)))


@pytest.mark.parametrize("make", [row for row in ALIASES if row not in ON_ADAM])
@every_precision
def test_zero_gradient_gives_a_finite_update(make, dtype):
    params = layer_of(dtype)
    _, (update,), _ = run(make(0.01), params, [jax.tree.map(jnp.zeros_like, params)])
    chex.assert_tree_all_finite(update)


@pytest.mark.parametrize("make", ON_ADAM)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_zero_gradient_gives_a_finite_update_over_adam_of_optax(make, dtype):
    params = layer_of(dtype)
    _, (update,), _ = run(make(0.01), params, [jax.tree.map(jnp.zeros_like, params)])
    chex.assert_tree_all_finite(update)


def test_adam_of_optax_itself_is_not_finite_in_float16():
    params = layer_of(jnp.float16)  # its eps of 1e-8 is zero there
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, (update,), _ = run(optax.adam(0.01), params, [zeros])
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(update))


@every_strategy
@every_precision
def test_init_needs_only_shapes(make, dtype):
    optimizer, params = make(0.01), layer_of(dtype)
    shapes = jax.eval_shape(lambda tree: tree, params)
    concrete = types(optimizer.init(params))
    assert types(jax.eval_shape(optimizer.init, shapes)) == concrete
    assert types(optimizer.init(shapes)) == concrete


@every_strategy
def test_leaves_of_any_kind_are_stepped(make):
    params = {
        "scalar": 2.0,
        "array": jnp.array(2.0),
        "no_outputs": jnp.ones((3, 0)),
        "no_inputs": jnp.ones((0, 3)),
        "nothing": None,
        "masked": optax.MaskedNode(),
    }
    gradient = params | {"scalar": -0.5, "array": jnp.array(-0.5)}
    after, (_, update), state = run(make(0.1), params, [gradient, gradient])
    assert jax.tree.map(jnp.shape, update) == jax.tree.map(jnp.shape, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, make(0.1).init(params))
    chex.assert_tree_all_finite((update, state))
    assert update["scalar"] == update["array"] > 0
    assert after["scalar"] > params["scalar"]


@every_strategy
def test_bare_array_is_the_tree_of_one_leaf(make):
    kernel, gradient = normal((3, 4)), normal((3, 4), seed=1)
    _, (bare,), _ = run(make(0.1), kernel, [gradient])
    _, (named,), _ = run(make(0.1), {"kernel": kernel}, [{"kernel": gradient}])
    chex.assert_trees_all_equal(bare, named["kernel"])


@every_strategy
def test_unknown_extra_arguments_are_ignored(make):
    optimizer = make(0.01)
    state = optimizer.init(PARAMS)
    plain = optimizer.update(GRADIENTS[0], state, PARAMS)
    extra = optimizer.update(GRADIENTS[0], state, PARAMS, value=1.0, unheard_of="yes")
    chex.assert_trees_all_equal(extra, plain)


def test_extra_arguments_reach_the_direction():
    def update(updates, state, params=None, *, factor):
        return jax.tree.map(lambda leaf: factor * leaf, updates), state

    scaled = optax.GradientTransformationExtraArgs(lambda params: (), update)
    plain = scale_per_neuron(mean_square, ema(0.9), inverse_root())
    extra = scale_per_neuron(mean_square, ema(0.9), inverse_root(), direction=scaled)
    state = extra.init(PARAMS)
    (half, _), (double, _) = (
        extra.update(GRADIENTS[0], state, PARAMS, factor=factor) for factor in (0.5, 2)
    )
    expected, _ = plain.update(GRADIENTS[0], plain.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(half, jax.tree.map(lambda leaf: leaf / 2, expected))
    chex.assert_trees_all_equal(double, jax.tree.map(lambda leaf: leaf * 2, expected))


@every_strategy
def test_constant_schedule_is_its_constant(make):
    _, constant, _ = run(make(0.01), PARAMS, GRADIENTS)
    _, scheduled, _ = run(make(lambda step: 0.01), PARAMS, GRADIENTS)
    chex.assert_trees_all_close(scheduled, constant, **CLOSE)


@pytest.mark.parametrize("make", AT_REST + BY_HAND)
def test_schedule_starts_at_step_zero_and_counts_updates(make):
    schedule = lambda step: jnp.where(step == 1, 0.0, 0.01)
    _, constant, _ = run(make(0.01), PARAMS, GRADIENTS)
    _, (first, second, third), _ = run(make(schedule), PARAMS, GRADIENTS)
    chex.assert_trees_all_close(first, constant[0], **CLOSE)
    assert all_zero(second)
    assert not all_zero(third)


@pytest.mark.parametrize("make", [row for row in ALIASES if row not in AT_REST])
def test_those_that_do_not_rest_follow_their_schedule_all_the_same(make):
    schedule = lambda step: jnp.where(step == 1, 0.0, 0.01)
    _, constant, _ = run(make(0.01), PARAMS, GRADIENTS)
    _, (first, second, _), _ = run(make(schedule), PARAMS, GRADIENTS)
    chex.assert_trees_all_close(first, constant[0], **CLOSE)
    assert not all_zero(second)
    assert differ(second, constant[1])


@every_strategy
def test_scan_is_the_loop(make):
    optimizer = make(0.01)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), updates

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADIENTS)
    (params, state), _ = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), stacked)
    looped, _, last = run(optimizer, PARAMS, GRADIENTS)
    chex.assert_trees_all_close((params, state), (looped, last), **CLOSE)
    assert differ(params, PARAMS)


@every_strategy
def test_ensemble_under_vmap_is_the_loop_over_its_members(make):
    optimizer = make(0.01)
    members = [layer_of(seed=seed) for seed in (4, 5)]
    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    params, gradients = stack(*members), stack(*GRADIENTS[:2])
    state = jax.vmap(optimizer.init)(params)
    together = jax.vmap(optimizer.update)(gradients, state, params)
    pairs = zip(GRADIENTS[:2], members, strict=True)
    alone = [optimizer.update(g, optimizer.init(p), p) for g, p in pairs]
    chex.assert_trees_all_close(together, stack(*alone), **CLOSE)
    assert differ(alone[0], alone[1])


@every_strategy
def test_several_steps_compile_once(make):
    init, step = compiled(make)
    params, state = layer_of(), init(PARAMS)
    for gradient in GRADIENTS:
        params, state = step(gradient, state, params)
    assert step._cache_size() == 1


@every_strategy
def test_donated_state_and_params_are_reused_in_place(make):
    init, step = compiled(make)
    params, state = layer_of(), init(PARAMS)
    after = step(GRADIENTS[0], state, params)
    expected, _, last = run(make(0.01), PARAMS, GRADIENTS[:1])
    chex.assert_trees_all_close(after, (expected, last), **CLOSE)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state, params)))
