"""A neuron that goes wrong harms no other, and what happened to it is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

import neuron_optax
from neuron_optax import (
    bounded,
    clip_per_neuron,
    count_changes,
    inverse_root,
    isolate_nonfinite,
    latest,
    mean_square,
    scale_per_neuron,
    total,
    warmed_up,
)
from tests.case import SHAPES, draw, gradients
from tests.cases import CASES

BAD = [  # step, layer, leaf, entries (the neuron is last), value
    (2, "Dense_0", "kernel", (0, 1), np.nan),
    (3, "Conv_0", "kernel", (..., 0), np.inf),
    (3, "Dense_1", "bias", (2,), -np.inf),
    (4, "Dense_0", "kernel", (..., 1), np.nan),
    (4, "Dense_1", "kernel", (1, 3), 1e200),  # its square overflows
]
STEPS = 6
ISOLABLE = {name: case for name, case in CASES.items() if case.isolable}
QUICK = {"adam_mini", "weight_norm_adam"}
RUN = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] * (name not in QUICK))
    for name, case in ISOLABLE.items()
]


def planted(step, value=None):
    """Return the gradients of a step, some not finite; or those with a value there."""
    grads = gradients(STEPS)[step]
    for _, layer, name, entries, bad in at(step):
        grads[layer][name][entries] = bad
        if value is not None:
            grads[layer][name][..., entries[-1]] = value
    return grads


def at(step):
    return [of for of in BAD if of[0] == step]


def build(case):
    start = case.start(draw(0), neurons=neuron_optax.FLAX)
    start = jax.tree.map(jnp.asarray, start)
    return case.build(learning_rate=case.learning_rate, **case.options), start


def isolated_run(case):
    """Yield params and state after each step of the strategy in isolation."""
    optimizer, params = build(case)
    optimizer = isolate_nonfinite(optimizer)
    state = optimizer.init(params)
    for step in range(STEPS):
        updates, state = optimizer.update(planted(step), state, params)
        params = optax.apply_updates(params, updates)
        yield params, state.inner


def restored_run(case, restore=True):
    """Yield the same where the neuron gets zero and is put back by hand."""
    optimizer, params = build(case)
    state = optimizer.init(params)
    for step in range(STEPS):
        before = params, state
        updates, state = optimizer.update(planted(step, 0.0), state, params)
        params = optax.apply_updates(params, updates)
        if restore:
            params, state = put_back(before, (params, state), at(step))
        yield params, state


def put_back(before, after, bad):
    """Restore what ends in the name of a leaf and has its neurons last."""

    def leaf(keys, old, new):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        for _, layer, name, (*_, neuron), _ in bad:
            neurons = SHAPES[layer][name][-1]
            if path.endswith(f"{layer}/{name}") and new.shape[-1:] == (neurons,):
                new = new.at[..., neuron].set(old[..., neuron])
        return new

    return jax.tree_util.tree_map_with_path(leaf, before, after)


def differences(run, other):
    """List steps after which anything differs by a bit."""
    pairs = zip(map(jax.tree.leaves, run), map(jax.tree.leaves, other), strict=True)
    return [
        step
        for step, pair in enumerate(pairs)
        if any(np.any(a != b) for a, b in zip(*pair, strict=True))
    ]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", RUN)
def test_others_go_on_bit_for_bit_as_if_the_neuron_had_been_put_back(case):
    assert differences(isolated_run(case), restored_run(case)) == []
    careless = differences(isolated_run(case), restored_run(case, restore=False))
    assert careless[:1] == ([] if case.waits else [2])


def test_state_that_is_not_of_neurons_is_refused_by_its_name():
    params = {"kernel": jnp.ones((8, 4))}
    for name in CASES.keys() - ISOLABLE.keys():
        optimizer = isolate_nonfinite(CASES[name].build(0.1, rank=2))
        with pytest.raises(ValueError, match=r"mu/kernel has the shape \(1, 2, 8\)"):
            optimizer.init(params)
    factored = isolate_nonfinite(optax.adafactor(0.1, min_dim_size_to_factor=2))
    with pytest.raises(ValueError, match="v_row/kernel has the shape"):
        factored.init(params)
    with pytest.raises(ValueError, match="cannot tell which numbers of a"):
        isolate_nonfinite(optax.sm3(0.1)).init(params)


@pytest.mark.usefixtures("float64")
def test_skips_are_counted_and_the_counters_of_all_go_on():
    optimizer = isolate_nonfinite(neuron_optax.adam_mini(0.1))
    params = jax.tree.map(jnp.asarray, draw(0))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        _, state = update(planted(step), state, params)
    assert state.skipped["Dense_0"]["kernel"].tolist() == [[0, 2, 0, 0]]
    assert state.skipped["Conv_0"]["kernel"].ravel().tolist() == [1, 0, 0, 0, 0]
    assert state.skipped["Dense_1"]["bias"].tolist() == [0, 0, 1, 0]
    assert optax.tree.get(state, "NeuronState").step == STEPS
    assert update._cache_size() == 1


def test_decay_and_momentum_do_not_move_a_neuron_that_skips():
    inner = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1))
    grads = [jnp.ones((2, 3)), jnp.ones((2, 3)).at[0, 1].set(jnp.nan)]
    for optimizer, moved in (isolate_nonfinite(inner), 0.0), (inner, np.nan):
        state = optimizer.init(grads[0])
        for gradient in grads:
            updates, state = optimizer.update(gradient, state, grads[0])
        np.testing.assert_array_equal(updates[0, 1], moved)
        np.testing.assert_array_equal(updates[:, 0], [2.0, 2.0])


def test_a_bias_skips_with_its_kernel_if_asked_to():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = {"kernel": jnp.array([[1.0, jnp.nan], [1.0, 1.0]]), "bias": jnp.ones(2)}
    for bias, expected in ("own", [-1.0, -1.0]), ("kernel", [-1.0, 0.0]):
        optimizer = isolate_nonfinite(optax.sgd(1.0), bias=bias)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        assert updates["bias"].tolist() == expected


def test_neurons_of_blocks_skip_one_by_one():
    layout = neuron_optax.FLAX.override(
        {"query": neuron_optax.Neurons(blocks=((-1, 2),))}
    )
    params = {"query": jnp.ones((3, 4))}
    optimizer = isolate_nonfinite(optax.sgd(1.0, momentum=0.5), neurons=layout)
    grads = {"query": params["query"].at[0, 3].set(jnp.inf)}
    updates, state = optimizer.update(grads, optimizer.init(params))
    assert state.skipped["query"].tolist() == [[[0], [1]]]
    assert updates["query"][0].tolist() == [-1.0, -1.0, 0.0, 0.0]
    assert optax.tree.get(state, "trace")["query"][2].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_fan_in_may_be_cut_in_pieces():
    mesh = Mesh(jax.devices()[:2], "d", axis_types=(AxisType.Explicit,))
    optimizer = isolate_nonfinite(optax.adam(0.1))
    grads = jnp.ones((4, 3)).at[3, 1].set(jnp.nan)
    plain, _ = optimizer.update(grads, optimizer.init(grads))
    with jax.set_mesh(mesh):
        grads = jax.device_put(grads, PartitionSpec("d", None))
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    np.testing.assert_allclose(updates, plain, rtol=1e-6)  # one of them is jitted
    assert not updates[:, 1].any() and plain[:, 0].all()
    assert updates.sharding.spec == PartitionSpec("d", None)


def test_a_leaf_without_fan_in_has_counts():
    for optimizer in isolate_nonfinite(optax.adam(0.1)), count_changes(optax.clip(0.1)):
        empty = {"kernel": jnp.ones((0, 3)), "none": None, "scalar": jnp.ones(())}
        _, state = optimizer.update(empty, optimizer.init(empty))
        assert state[0]["kernel"].tolist() == [[0, 0, 0]]


def test_changes_are_counted_by_neuron():
    optimizer = count_changes(clip_per_neuron(0.1))
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    loud = jnp.array([[0.01, 1.0, jnp.nan]] * 2)
    loud = {"kernel": loud, "bias": jnp.zeros(3)}
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(loud, state, params)
    assert state.changed["kernel"][0, :2].tolist() == [0, 2]
    assert state.changed["bias"].tolist() == [0, 0, 0]


def test_a_statistic_warms_up_from_what_all_start_with():
    warm = warmed_up(total(), steps=4, start=4.0)
    optimizer = scale_per_neuron(mean_square, warm, inverse_root(1e-12))
    gradient = jnp.array([[3.0, 30.0]])
    state, rates = optimizer.init(gradient), []
    for _ in range(5):
        _, state = optimizer.update(gradient, state)
        rates.append(state.rate[0])
    remembered = [[9.0 * t, 900.0 * t] for t in (1, 2, 3, 4, 5)]
    shares = np.array([[0.25], [0.5], [0.75], [1.0], [1.0]])
    expected = ((1 - shares) * 4.0 + shares * remembered) ** -0.5
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(rates, np.array(remembered) ** -0.5, rtol=1e-6)
    with pytest.raises(ValueError, match=r"steps must be in \[1, inf\], got 0"):
        warmed_up(total(), steps=0, start=1.0)


def test_safety_is_composed():
    scaled = scale_per_neuron(
        mean_square,
        warmed_up(latest(), steps=2, start=1.0),
        bounded(inverse_root(), low=0.5, high=2.0),
        direction=optax.ema(0.9),
    )
    safe = optax.chain(count_changes(clip_per_neuron(0.1)), scaled, optax.scale(-0.1))
    optimizer = isolate_nonfinite(safe)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    loud = jnp.array([1e-3, 1e3, jnp.nan])
    grads = {"kernel": jnp.stack([loud, loud]), "bias": loud}
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    assert state.skipped["kernel"].tolist() == [[0, 0, 1]]
    assert optax.tree.get(state, "changed")["kernel"].tolist() == [[0, 1, 0]]
    assert optax.tree.get(state, "rate")["kernel"].max() <= 2.0
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
