"""Optax's own wrappers around every strategy: they change what they say, no more."""

import inspect

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from neuron_optax import (
    NeuronState,
    adam_mini,
    ema,
    inverse_root,
    mean_square,
    scale_per_neuron,
)
from tests.contract_models import (
    CONTENDERS,
    READABLE,
    ROUNDING,
    all_zero,
    differ,
    injected,
    layer_of,
    run,
    tree_of,
    types,
)

every_strategy = pytest.mark.parametrize("make", CONTENDERS)

PARAMS = tree_of()
GRADIENTS = [tree_of(seed=seed) for seed in (1, 2, 3)]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # one program fused, the other not: a few ulps
LABELS = {
    "first": {"bias": "ours", "kernel": "ours"},
    "second": {"bias": "sgd", "kernel": "sgd"},
}
TREE_OF_MASKS = {"first": {"bias": True, "kernel": True}, "second": False}


def first_layer(tree):
    return {"first": tree["first"]}


@every_strategy
def test_chain_hands_over_what_came_before(make):
    clip = optax.clip(0.1)
    _, chained, _ = run(optax.chain(clip, make(0.01)), PARAMS, GRADIENTS)
    clipped = [clip.update(gradient, clip.init(PARAMS))[0] for gradient in GRADIENTS]
    _, expected, _ = run(make(0.01), PARAMS, clipped)
    _, unclipped, _ = run(make(0.01), PARAMS, GRADIENTS)
    chex.assert_trees_all_close(chained, expected, **CLOSE)
    assert differ(chained, unclipped)


@every_strategy
@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(TREE_OF_MASKS, id="tree"),
        pytest.param(lambda tree: {"first": True, "second": False}, id="function"),
    ],
)
def test_masked_leaves_pass_untouched_and_leave_no_trace_in_the_rest(make, mask):
    _, masked, state = run(optax.masked(make(0.01), mask), PARAMS, GRADIENTS)
    alone = [first_layer(gradient) for gradient in GRADIENTS]
    _, expected, _ = run(make(0.01), first_layer(PARAMS), alone)
    chex.assert_trees_all_close([first_layer(u) for u in masked], expected, **CLOSE)
    chex.assert_trees_all_equal(
        [update["second"] for update in masked],
        [gradient["second"] for gradient in GRADIENTS],
    )
    assert differ(expected, alone)
    is_masked = lambda node: isinstance(node, optax.MaskedNode)
    assert any(map(is_masked, jax.tree.leaves(state, is_leaf=is_masked)))


@every_strategy
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({"first": "ours", "second": "sgd"}, id="prefix"),
        pytest.param(LABELS, id="tree"),
    ],
)
def test_partition_steps_each_label_on_its_own(make, labels):
    both = optax.partition({"ours": make(0.01), "sgd": optax.sgd(0.5)}, labels)
    _, updates, _ = run(both, PARAMS, GRADIENTS)
    alone = [first_layer(gradient) for gradient in GRADIENTS]
    _, ours, _ = run(make(0.01), first_layer(PARAMS), alone)
    chex.assert_trees_all_close([first_layer(u) for u in updates], ours, **CLOSE)
    _, sgd, _ = run(optax.sgd(0.5), PARAMS, GRADIENTS)
    chex.assert_trees_all_equal(
        [update["second"] for update in updates], [update["second"] for update in sgd]
    )
    assert differ(ours, [first_layer(update) for update in sgd])


def test_bias_of_a_kernel_masked_away_is_refused_by_name():
    kernels_only = {"bias": True, "kernel": False}
    optimizer = optax.masked(adam_mini(0.01, bias="kernel"), {"first": kernels_only})
    with pytest.raises(ValueError, match=r"first/bias .* first/kernel"):
        optimizer.init(first_layer(PARAMS))


@every_strategy
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_multi_steps_steps_on_the_mean_of_its_gradients(make, dtype):
    params, first = layer_of(dtype), layer_of(dtype, seed=1)
    second, mean = (jax.tree.map(lambda g, k=k: g * k, first) for k in (0.5, 0.75))
    optimizer = optax.MultiSteps(make(0.01), every_k_schedule=2)
    before = optimizer.init(params)
    traced = jax.eval_shape(optimizer.update, first, before, params)
    with jax.disable_jit():  # lax.cond compiles no branch but runs the one it takes
        waiting, between = optimizer.update(first, before, params)
        update, after = optimizer.update(second, between, params)
    _, (expected,), _ = run(make(0.01), params, [mean])
    assert all_zero(waiting)
    chex.assert_trees_all_close(update, expected, rtol=4 * jnp.finfo(dtype).eps)
    assert types(traced) == types((update, after)) == types((first, before))
    assert differ(update, waiting)


@every_strategy
def test_injected_learning_rate_takes_the_same_steps(make):
    optimizer = injected(make)(learning_rate=0.01)
    _, expected, _ = run(make(0.01), PARAMS, GRADIENTS)
    _, updates, state = run(optimizer, PARAMS, GRADIENTS)
    chex.assert_trees_all_close(updates, expected, **CLOSE)
    before, _ = optimizer.update(GRADIENTS[0], state, PARAMS)
    state.hyperparams["learning_rate"] = jnp.array(0.0)
    update, _ = optimizer.update(GRADIENTS[0], state, PARAMS)
    still, _ = make(0.0).update(GRADIENTS[0], state.inner_state, PARAMS)
    chex.assert_trees_all_close(update, still, **CLOSE)
    assert differ(update, before)


def numbers_of(make):
    """Return every hyperparameter that is a number, beside the learning rate."""
    arguments = inspect.signature(make).parameters
    defaults = {name: argument.default for name, argument in arguments.items()}
    return {n: value for n, value in defaults.items() if type(value) is float}


@every_strategy
def test_every_number_may_follow_a_schedule(make):
    numbers = numbers_of(make) | {"learning_rate": 0.01}
    constants = {name: lambda step, v=v: v for name, v in numbers.items()}
    scheduled = injected(make)(**constants)
    _, expected, _ = run(make(0.01), PARAMS, GRADIENTS)
    _, updates, state = run(scheduled, PARAMS, GRADIENTS)
    chex.assert_trees_all_close(updates, expected, **CLOSE)
    assert state.hyperparams.keys() == numbers.keys()
    falling = constants | {"learning_rate": lambda step: 0.01 / (step + 1)}
    _, slower, _ = run(injected(make)(**falling), PARAMS, GRADIENTS)
    chex.assert_trees_all_close(slower[0], expected[0], **CLOSE)
    assert differ(slower[1], expected[1])


@every_strategy
def test_every_number_may_be_traced(make):
    numbers = numbers_of(make) | {"learning_rate": 0.01}

    @jax.jit
    def step(numbers, gradient, params):
        optimizer = make(**numbers)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    _, (expected, *_), _ = run(make(0.01), PARAMS, GRADIENTS)
    traced = {name: jnp.float32(value) for name, value in numbers.items()}
    update = step(traced, GRADIENTS[0], PARAMS)
    chex.assert_trees_all_close(update, expected, **CLOSE)
    still = step(traced | {"learning_rate": jnp.float32(0)}, GRADIENTS[0], PARAMS)
    _, (expected, *_), _ = run(make(0.0), PARAMS, GRADIENTS[:1])
    chex.assert_trees_all_close(still, expected, **CLOSE)
    assert differ(still, update)
    assert step._cache_size() == 1


@pytest.mark.parametrize("make", ROUNDING)
def test_numbers_injected_in_float32_serve_bfloat16_params(make):
    params, gradients = tree_of(jnp.bfloat16), [tree_of(jnp.bfloat16, seed=1)] * 2
    inject = injected(make, hyperparam_dtype=jnp.float32)
    _, updates, _ = run(inject(learning_rate=0.01), params, gradients)
    _, expected, _ = run(make(0.01), params, gradients)
    narrow = jax.tree.map(lambda a, b: a.astype(b.dtype), updates, expected)
    chex.assert_trees_all_close(narrow, expected, rtol=8 * jnp.finfo(jnp.bfloat16).eps)


@pytest.mark.parametrize("make", [adam_mini, optax.adam])
def test_optax_hands_decays_over_in_the_dtype_of_the_params(make):
    """The reason for ``hyperparam_dtype``: 0.999 is 1 in bfloat16."""
    params = tree_of(jnp.bfloat16)
    rounded = optax.inject_hyperparams(make)(learning_rate=0.01, b2=0.999)
    kept = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(0.01, b2=0.999)
    assert rounded.init(params).hyperparams["b2"] == 1.0
    assert kept.init(params).hyperparams["b2"] == jnp.float32(0.999)


def test_bare_statistic_is_injected_only_if_named_static():
    parts = mean_square, ema(0.9), inverse_root(1e-8)
    with pytest.raises(TypeError):
        optax.inject_hyperparams(scale_per_neuron)(*parts).init(PARAMS)
    static = optax.inject_hyperparams(scale_per_neuron, static_args=("statistic",))
    _, updates, _ = run(static(*parts), PARAMS, GRADIENTS)
    _, expected, _ = run(scale_per_neuron(*parts), PARAMS, GRADIENTS)
    chex.assert_trees_all_equal(updates, expected)


def test_function_for_a_decay_mask_is_injected_if_named_static():
    decayed = {"weight_decay": 0.1, "weight_decay_mask": lambda _: TREE_OF_MASKS}
    inject = optax.inject_hyperparams(adam_mini, static_args="weight_decay_mask")
    _, updates, _ = run(inject(0.01, **decayed), PARAMS, GRADIENTS)
    _, expected, _ = run(adam_mini(0.01, **decayed), PARAMS, GRADIENTS)
    _, everywhere, _ = run(adam_mini(0.01, weight_decay=0.1), PARAMS, GRADIENTS)
    chex.assert_trees_all_close(updates, expected, **CLOSE)
    assert differ(updates, everywhere)


@every_strategy
def test_apply_if_finite_skips_a_broken_gradient(make):
    broken = jax.tree.map(jnp.array, GRADIENTS[0])
    broken["first"]["kernel"] = broken["first"]["kernel"].at[0, 0].set(jnp.nan)
    optimizer = optax.apply_if_finite(make(0.01), max_consecutive_errors=3)
    gradients = [GRADIENTS[0], broken, GRADIENTS[1]]
    with jax.disable_jit():  # lax.cond compiles no branch but runs the one it takes
        _, (_, skipped, last), state = run(optimizer, PARAMS, gradients)
    _, (_, expected), inner = run(make(0.01), PARAMS, GRADIENTS[:2])
    assert all_zero(skipped)
    chex.assert_trees_all_close((last, state.inner_state), (expected, inner), **CLOSE)
    assert differ(last, skipped)


@every_strategy
def test_schedule_free_moves_its_own_iterate_by_our_update(make):
    optimizer = optax.contrib.schedule_free(make(0.01), learning_rate=0.01, b1=0.9)
    before = optimizer.init(PARAMS)
    update, after = optimizer.update(GRADIENTS[0], before, PARAMS)
    moved, _, inner = run(make(0.01), PARAMS, GRADIENTS[:1])
    chex.assert_trees_all_close(after.z, moved, **CLOSE)
    chex.assert_trees_all_close(after.base_optimizer_state, inner, **CLOSE)
    assert types(after) == types(before)
    params = optax.apply_updates(PARAMS, update)
    averaged = optax.contrib.schedule_free_eval_params(after, params)
    # the average is recovered by a subtraction, divided by 1 - b1
    chex.assert_trees_all_close(averaged, moved, rtol=1e-4, atol=1e-5)
    assert differ(moved, PARAMS)


@every_strategy
def test_lookahead_pulls_the_fast_weights_back_every_second_step(make):
    optimizer = optax.lookahead(make(0.01), sync_period=2, slow_step_size=0.5)
    start = optax.LookaheadParams.init_synced(PARAMS)
    once, _, _ = run(optimizer, start, GRADIENTS[:1])
    twice, _, _ = run(optimizer, start, GRADIENTS[:2])
    alone, _, _ = run(make(0.01), PARAMS, GRADIENTS[:1])
    ahead, _, _ = run(make(0.01), PARAMS, GRADIENTS[:2])
    midway = jax.tree.map(lambda slow, fast: (slow + fast) / 2, PARAMS, ahead)
    chex.assert_trees_all_close((once.fast, once.slow), (alone, PARAMS), **CLOSE)
    chex.assert_trees_all_close((twice.fast, twice.slow), (midway, midway), **CLOSE)
    assert differ(midway, ahead)


@every_strategy
def test_map_params_maps_what_is_like_the_params_and_nothing_else(make):
    optimizer = make(0.01)
    _, _, state = run(optimizer, PARAMS, GRADIENTS)
    same = optax.tree.map_params(optimizer, lambda leaf: leaf, state)
    chex.assert_trees_all_equal(same, state)
    mapped = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    is_count = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.integer)
    expected = jax.tree.map(lambda a: a if is_count(a) else a + 1, state)
    chex.assert_trees_all_equal(mapped, expected)


@pytest.mark.parametrize("make", READABLE)
def test_rates_are_found_by_class_in_any_wrapper(make):
    optimizer = optax.masked(optax.chain(optax.clip(1.0), make(0.01)), TREE_OF_MASKS)
    _, _, state = run(optimizer, PARAMS, GRADIENTS)
    ((_, found),) = optax.tree.get_all_with_path(state, NeuronState.__name__)
    kernel = found.rate["first"]["kernel"]
    assert kernel.ndim == 2 and jnp.all(kernel > 0)
