"""The Optax contract on the models of four libraries, for every strategy.

Wrappers that should change nothing take the steps of the bare optimizer.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.contract_models import contenders, differ, injected, run
from tests.models import MODELS, QUICK

pytestmark = pytest.mark.slow

RATE = 0.01
STEPS = 3
CLOSE = {"rtol": 1e-5, "atol": 2.4e-7}  # one program fused, the other not: a few ulps
FUSED = {"rtol": 1e-4, "atol": 1e-6}  # 1 - 0.999**t has three digits less: eps / 0.001

ROWS = [
    pytest.param(name, *row.values, id=f"{name}-{row.id}")
    for name, model in MODELS.items()
    for row in contenders(model.layout)
    if "-" not in row.id  # no variant
]
every_strategy = pytest.mark.parametrize(("name", "make"), ROWS)


@functools.cache
def gradients_of(name):
    """Return gradients of a model along a descent."""
    params, trail = MODELS[name].params, []
    for _ in range(STEPS):
        trail.append(MODELS[name].gradient(params))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, trail[-1])
    return trail


@functools.cache
def bare(name, make):
    """Return last params, updates and state of the optimizer without a wrapper."""
    return run(make(RATE), MODELS[name].params, gradients_of(name))


def signature(tree):
    """Return what must not change from step to step if ``lax.scan`` carries it."""
    return jax.tree.structure(tree), [*map(jax.typeof, jax.tree.leaves(tree))]


def filled(tree, value):
    return jax.tree.map(lambda _: value, tree)


def in_head(tree):
    """Mark the leaves of the last layer, its bias with its kernel."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    mark = lambda keys, _: "head" in name(keys).split("/")
    return jax.tree_util.tree_map_with_path(mark, tree)


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


def train(optimizer, model, sign=1):
    """Follow the gradient of the model, or flee it; return params and states."""
    params, states = model.params, [optimizer.init(model.params)]
    for _ in range(STEPS):
        gradient = jax.tree.map(lambda g: sign * g, model.gradient(params))
        updates, state = optimizer.update(gradient, states[-1], params)
        chex.assert_trees_all_equal_structs(updates, params)
        params = optax.apply_updates(params, updates)
        states.append(state)
    return params, states


@every_strategy
def test_training_lowers_the_loss(name, make):
    model = MODELS[name]
    down, states = train(make(RATE), model)
    up, _ = train(make(RATE), model, sign=-1)
    assert model.loss(down) < model.loss(model.params) < model.loss(up)
    assert signature(states[-1]) == signature(states[0])


def interpreted(optimizer, on=True):
    """Return an optimizer that runs its ``lax.cond`` without compiling it."""

    def update(*arguments, **extra_args):
        with jax.disable_jit(on):
            return optimizer.update(*arguments, **extra_args)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def inside(make):
    return interpreted(make(RATE), on=False)


def masked(make, params, value):
    by_tree = optax.masked(make(RATE), filled(params, value))
    return optax.masked(by_tree, functools.partial(filled, value=value))


def labelled(make, params, label):
    both = {"ours": make(RATE), "frozen": optax.set_to_zero()}
    return optax.partition(both, functools.partial(filled, value=label))


def finite_only(make, params, factor):
    guarded = optax.apply_if_finite(inside(make), max_consecutive_errors=5)
    return optax.chain(optax.scale(factor), interpreted(guarded))


def times_factor(updates, state, params=None, *, factor, **extra_args):
    return jax.tree.map(lambda leaf: factor * leaf, updates), state


def with_extra_args(make, params, factor):
    scale = optax.GradientTransformationExtraArgs(
        lambda _: optax.EmptyState(), times_factor
    )
    chained = optax.chain(make(RATE), scale)
    extra = functools.partial(chained.update, factor=factor, unheard_of="yes")
    return optax.GradientTransformationExtraArgs(chained.init, extra)


WRAPPERS = {  # wrap(make, params, value), a value that is neutral, one that is not
    "clip": (
        lambda make, _, limit: optax.chain(optax.clip(limit), make(RATE)),
        1e6,
        0.0,
    ),
    "masked": (masked, True, False),
    "partition": (labelled, "ours", "frozen"),
    "MultiSteps": (
        lambda make, _, every: interpreted(optax.MultiSteps(inside(make), every)),
        1,
        2,
    ),
    "inject_hyperparams": (
        lambda make, _, rate: injected(make)(learning_rate=rate),
        RATE,
        RATE / 2,
    ),
    "apply_if_finite": (finite_only, 1.0, jnp.nan),
    "extra_args": (with_extra_args, 1.0, 0.5),
    "schedule": (
        lambda make, _, decay: make(optax.exponential_decay(RATE, 1, decay)),
        1.0,
        0.5,
    ),
}


PAIRS = [  # every strategy under every wrapper, in two of the four libraries
    pytest.param(*row.values, *wrapper, id=f"{wrapped}-{row.id}")
    for number, (wrapped, wrapper) in enumerate(WRAPPERS.items())
    for place, row in enumerate(ROWS)
    if (number + place) % 2 == 0  # there is an odd number of strategies
]


@pytest.mark.parametrize(("name", "make", "wrap", "neutral", "active"), PAIRS)
def test_neutral_wrapper_takes_the_bare_steps(name, make, wrap, neutral, active):
    params, gradients = MODELS[name].params, gradients_of(name)
    _, expected, _ = bare(name, make)
    optimizer = wrap(make, params, neutral)
    before = optimizer.init(params)
    _, updates, after = run(optimizer, params, gradients, before)
    chex.assert_trees_all_close(updates, expected, **CLOSE)
    assert signature(after) == signature(before)
    _, changed, _ = run(wrap(make, params, active), params, gradients)
    assert differ(changed, expected)


@every_strategy
def test_frozen_module_stays_and_the_others_step_as_before(name, make):
    params = MODELS[name].params
    _, expected, _ = bare(name, make)
    ours = jax.tree.map(lambda frozen: not frozen, in_head(params))
    frozen = optax.masked(optax.set_to_zero(), in_head)
    optimizer = optax.chain(optax.masked(make(RATE), ours), frozen)
    before = optimizer.init(params)
    _, updates, after = run(optimizer, params, gradients_of(name), before)
    assert signature(after) == signature(before)
    assert differ(updates, expected)
    kept = [jax.tree.map(lambda keep, u: keep * u, ours, e) for e in expected]
    chex.assert_trees_all_close(updates, kept, **CLOSE)


@every_strategy
def test_lookahead_first_steps_as_its_fast_optimizer(name, make):
    params, gradients = MODELS[name].params, gradients_of(name)
    last, _, _ = bare(name, make)
    start = optax.LookaheadParams.init_synced(params)
    ahead = functools.partial(optax.lookahead, make(RATE), slow_step_size=0.5)
    optimizer = ahead(sync_period=STEPS + 1)
    before = optimizer.init(start)
    synced, _, after = run(optimizer, start, gradients, before)
    chex.assert_trees_all_close((synced.fast, synced.slow), (last, params), **CLOSE)
    assert signature(after) == signature(before)
    synced, _, _ = run(ahead(sync_period=STEPS), start, gradients)
    assert differ(synced.fast, last) and differ(synced.slow, params)


@every_strategy
def test_schedule_free_lowers_the_loss(name, make):
    model, free = MODELS[name], optax.contrib.schedule_free
    params, states = train(free(make(RATE), learning_rate=RATE), model)
    averaged = optax.contrib.schedule_free_eval_params(states[-1], params)
    assert model.loss(averaged) < model.loss(model.params)
    assert signature(states[-1]) == signature(states[0])
    up, fled = train(free(make(RATE), learning_rate=RATE), model, sign=-1)
    averaged = optax.contrib.schedule_free_eval_params(fled[-1], up)
    assert model.loss(averaged) > model.loss(model.params)


@every_strategy
def test_map_params_finds_what_is_like_the_params(name, make):
    optimizer, (_, _, state) = make(RATE), bare(name, make)
    same = optax.tree.map_params(optimizer, lambda leaf: leaf, state)
    chex.assert_trees_all_equal(same, state)
    zeroed = optax.tree.map_params(optimizer, jnp.zeros_like, state)
    assert signature(zeroed) == signature(same) == signature(state)
    assert differ(zeroed, state)


def at_twice_the_width(leaf):
    shape = [2 * size if size > 1 else 1 for size in leaf.shape]
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


@every_strategy
def test_init_needs_only_shapes(name, make):
    optimizer, params = make(RATE), MODELS[name].params
    expected = signature(optimizer.init(params))
    shapes = jax.eval_shape(lambda tree: tree, params)
    assert signature(optimizer.init(shapes)) == expected
    assert signature(jax.eval_shape(optimizer.init, shapes)) == expected
    wider = jax.tree.map(at_twice_the_width, shapes)
    assert signature(optimizer.init(wider)) != expected


@every_strategy
def test_compiled_scan_over_an_ensemble_is_the_loop_of_each_member(name, make):
    optimizer, gradients = make(RATE), gradients_of(name)
    smaller = jax.tree.map(lambda leaf: 0.5 * leaf, MODELS[name].params)
    members = [MODELS[name].params, smaller]
    second = run(optimizer, smaller, gradients[::-1])

    def step(carry, gradient):
        updates, state = optimizer.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    scan = functools.partial(jax.lax.scan, step)
    compiled = jax.jit(
        jax.vmap(scan), donate_argnums=0, keep_unused=True, compiler_options=QUICK
    )
    both = stack(stack(*gradients), stack(*gradients[::-1]))
    start = stack(*[(params, optimizer.init(params)) for params in members])
    carry, _ = compiled(start, both)
    expected = [(last, state) for last, _, state in (bare(name, make), second)]
    chex.assert_trees_all_close(carry, stack(*expected), **FUSED)
    assert differ(*expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    compiled(carry, both)
    assert compiled._cache_size() == 1


def test_every_strategy_meets_every_wrapper_in_two_libraries():
    met = [tuple(pair.id.split("-")) for pair in PAIRS]
    libraries = {(wrapper, strategy): set() for wrapper, _, strategy in met}
    for wrapper, library, strategy in met:
        libraries[wrapper, strategy].add(library)
    assert {len(names) for names in libraries.values()} == {2}
    assert len(libraries) == len(WRAPPERS) * len(ROWS) // len(MODELS)
