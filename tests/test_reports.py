"""A report says of every layer what its neurons got, and what was skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.serialization import to_state_dict
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import neuron_optax
from neuron_optax import (
    clip_per_neuron,
    count_changes,
    isolate_nonfinite,
    neuron_adagrad,
    strategies,
)
from neuron_optax.introspection import MEANING, report
from neuron_optax.introspection.reports import STEP
from tests.cases import CASES
from tests.test_introspection import LOUD, RATE, SCHEDULE, after


def test_a_report_counts_bounds_and_silent_neurons():
    optimizer = neuron_adagrad(RATE, low=0.5, high=1.0)
    grads = {"kernel": jnp.array([[0.0, 1.25, 10.0, 100.0]])}
    _, state = optimizer.update(grads, optimizer.init(grads))
    (of,) = report(state, RATE, low=0.5, high=1.0).layers.values()
    assert of.neurons == 4 and of.inactive == 0.25 and of.at_bound == 0.75
    numbers = of.least, of.median, of.largest, of.decades
    np.testing.assert_allclose(numbers, (0.25, 0.325, 0.5, np.log10(2)), rtol=1e-6)


def test_a_report_counts_what_was_skipped_and_changed():
    clipped = optax.chain(count_changes(clip_per_neuron(0.1)), neuron_adagrad(RATE))
    optimizer = isolate_nonfinite(clipped)
    params = {"kernel": jnp.ones((2, 3))}
    grads = {"kernel": jnp.array([[1e-3, 1e3, jnp.nan]] * 2)}
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(grads, state, params)
    for found in state, to_state_dict(state):
        (of,) = report(found, RATE).layers.values()
        assert of.skipped == 2 and of.changed == 2
    (of,) = (report(after(neuron_adagrad(RATE)), RATE).layers["first/bias"],)
    assert np.isnan(of.skipped) and np.isnan(of.changed) and np.isnan(of.at_bound)


def test_counts_are_added_up_and_shown_without_rates():
    twice = count_changes(optax.clip(1e9)), count_changes(optax.clip(0.5))
    optimizer = isolate_nonfinite(optax.chain(*twice, optax.adam(RATE)))
    grads = {"kernel": jnp.array([[0.1, 1.0, jnp.nan]])}
    _, state = optimizer.update(grads, optimizer.init(grads))
    found = report(state)
    (of,) = found.layers.values()
    assert of.skipped == 1 and of.changed == 1 and np.isnan(of.median)
    assert str(found).splitlines()[1].split() == ["kernel", "3", *"------", "1", "1"]


def test_a_report_holds_at_its_edges():
    tight = after(neuron_adagrad(RATE, low=1.0, high=1.0))
    assert report(tight, RATE, low=1.0, high=1.0).layers["first/bias"].at_bound == 1.0
    slow = report(after(neuron_adagrad(SCHEDULE)), optax.constant_schedule(0.0))
    np.testing.assert_allclose(slow.layers["first/bias"].decades, np.log10(2), 1e-5)
    empty = {"kernel": jnp.ones((3, 0))}
    state = neuron_adagrad(RATE).init(empty)
    assert report(state, RATE).layers["kernel"].neurons == 0
    wide = Mesh(jax.devices()[:2], "d", axis_types=(AxisType.Explicit,))
    with jax.set_mesh(wide):
        sharded = jax.device_put(LOUD["second"]["kernel"], P(None, "d"))
        state = neuron_adagrad(RATE).init(sharded)
        assert report(state, RATE).layers[""].median == RATE


def test_a_neuron_that_got_no_step_does_not_count_in_the_decades():
    optimizer = neuron_adagrad(RATE)
    grads = {"kernel": jnp.array([[1.0, 10.0, jnp.nan]])}
    _, state = optimizer.update(grads, optimizer.init(grads))
    (of,) = report(state, RATE).layers.values()
    assert of.least == 0.0
    np.testing.assert_allclose(of.decades, 1.0, rtol=1e-6)


def test_what_other_rates_mean_is_said():
    declared = {name for name, case in CASES.items() if case.direction}
    fixed = {"layerwise", "layerwise_decay"}
    aliases = {name for name, case in CASES.items() if case.alias} | fixed
    assert set(MEANING) - {""} == aliases - declared
    assert set(MEANING) - {""} <= set(strategies.__all__)
    for name in aliases - declared:
        said = " ".join(getattr(strategies, name).__doc__.split())
        assert f"Its rates: {MEANING[name]}." in said
    state = after(neuron_optax.nero(RATE))
    assert str(report(state, RATE)).endswith(MEANING[""])
    assert str(report(state, RATE, strategy="adam_mini")).endswith(STEP)
    assert str(report(state, RATE, strategy="nero")).endswith(MEANING["nero"])
