"""Every strategy takes the steps of its PyTorch oracle, parameters and state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax.trees import is_masked
from tests.case import SHAPES, STEPS, draw, gradients, oracle
from tests.cases import variants

torch = pytest.importorskip("torch")

GRANULARITIES = {  # our layout, the view in which the oracle finds its rows
    "neuron": (neuron_optax.FLAX, lambda rows: rows),
    "entry": (neuron_optax.PER_ENTRY, lambda rows: rows.reshape(-1, 1)),
    "layer": (neuron_optax.PER_LAYER, lambda rows: rows.reshape(1, -1)),
}
EVERYWHERE = "default", "weight_decay", "redistribute"  # the others per neuron
ROWS = {
    f"{name}-{granularity}": (*row, granularity)
    for granularity in GRANULARITIES
    for name, row in variants(None if granularity == "neuron" else EVERYWHERE).items()
    if granularity in row[0].granularities
}
WITH_A_CHOICE = {n: row for n, row in variants(["default"]).items() if row[0].bias}


def in_torch(leaf):
    """Move the output axis of a Flax leaf first."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(leaf), -1, 0))


def ours(case, changed, layout, bias, steps=STEPS, dtype=np.float64):
    """Yield parameters and state after every step."""
    optimizer = case.make(changed, neurons=layout, bias=bias)
    cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    params = cast(start(case, layout))
    state = optimizer.init(params)
    for grads in gradients(steps, case.sparse):
        updates, state = optimizer.update(cast(grads), state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


def start(case, layout):
    """Return the weights to start from, the same for both sides."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, case.start(draw(1), layout))


def theirs(case, changed, layout, view, bias, steps=STEPS):
    """Yield parameters and state of the oracle after every step, as trees like ours."""
    tensor = lambda leaf: torch.tensor(view(in_torch(leaf)))
    params = jax.tree.map(tensor, start(case, layout))
    changed = dict(case.given({"learning_rate": case.learning_rate, **changed}))
    rate = changed.pop("learning_rate")
    rate = rate if callable(rate) else optax.constant_schedule(rate)
    if case.bias == "kernel":
        changed["share_bias"] = bias == "kernel"
    groups = [{"params": [of["kernel"], of["bias"]]} for of in params.values()]
    optimizer = oracle(case.oracle)(groups, 0.0, **changed)
    for step, grads in enumerate(gradients(steps, case.sparse)):
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
        for layer, of in params.items():
            for name, leaf in of.items():
                leaf.grad = torch.tensor(view(in_torch(grads[layer][name])))
        optimizer.step()
        yield params, optimizer.state


def held(case, state):
    """Return the fields to compare; without momentum there is no trace."""
    return {f: k for f, k in case.state.items() if optax.tree.get(state, f) is not None}


def compare(actual, expected, tolerance, message):
    np.testing.assert_allclose(
        in_torch(actual).ravel(),
        np.asarray(expected).ravel(),
        rtol=tolerance,
        atol=tolerance,
        err_msg=message,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("case", "changed", "granularity"), ROWS.values(), ids=ROWS)
def test_every_step_matches_pytorch(case, changed, granularity):
    layout, view = GRANULARITIES[granularity]
    changed = dict(changed)
    bias = changed.pop("bias", case.bias)
    bias = "own" if granularity == "entry" else bias
    pairs = zip(
        ours(case, changed, layout, bias),
        theirs(case, changed, layout, view, bias),
        strict=True,
    )
    seen = set()
    for step, ((params, state), (expected, memory)) in enumerate(pairs, start=1):
        for layer, of in expected.items():
            for name, leaf in of.items():
                where = f"step {step}, {layer}/{name}"
                compare(params[layer][name], leaf, case.tolerance, where)
                for field, key in held(case, state).items():
                    actual = optax.tree.get(state, field)[layer][name]
                    if key in memory[leaf] and not is_masked(actual):
                        seen.add(field)
                        wanted = memory[leaf][key]
                        compare(actual, wanted, case.tolerance, f"{where}, {key}")
    assert seen == held(case, state).keys()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bias", ["own", "kernel"])
@pytest.mark.parametrize(("case", "changed"), WITH_A_CHOICE.values(), ids=WITH_A_CHOICE)
def test_the_rate_of_a_bias_matters(case, changed, bias):
    other = {"own": "kernel", "kernel": "own"}[bias]
    *_, (params, _) = ours(case, changed, neuron_optax.FLAX, bias, steps=3)
    *_, (others, _) = ours(case, changed, neuron_optax.FLAX, other, steps=3)
    for layer in SHAPES:
        kernel, bias_ = (
            params[layer][n] - others[layer][n] for n in ("kernel", "bias")
        )
        assert not kernel.any() and bias_.any()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("case", "changed"), variants(["default"]).values(), ids=variants(["default"])
)
def test_comparison_notices_neurons_on_the_wrong_axis(case, changed):
    wrong = neuron_optax.FLAX.override({"Dense_1/kernel": neuron_optax.Neurons((0,))})
    *_, (params, _) = ours(case, changed, wrong, "own")
    *_, (expected, _) = theirs(case, changed, wrong, lambda rows: rows, "own")
    kernel, right = params["Dense_1"]["kernel"], expected["Dense_1"]["kernel"]
    assert not np.allclose(in_torch(kernel), right, rtol=1e-3)  # by far


@pytest.mark.parametrize(
    ("case", "changed"), variants(["default"]).values(), ids=variants(["default"])
)
def test_float32_differs_by_its_roundings_only(case, changed):
    *_, (params, _) = ours(
        case, changed, neuron_optax.FLAX, case.bias, dtype=np.float32
    )
    flax = neuron_optax.FLAX
    pairs = theirs(case, changed, flax, lambda rows: rows, case.bias)
    before, largest = start(case, flax), 0.0
    for expected, _ in pairs:
        for layer, of in expected.items():
            for name, leaf in of.items():
                now = np.moveaxis(leaf.numpy(), 0, -1)
                largest = max(largest, np.abs(now - before[layer][name]).max())
                before[layer][name] = now.copy()
    # A step rounds the update at most fan-in + 10 times and the parameter once.
    fan_in, size = 12, max(np.abs(leaf).max() for leaf in jax.tree.leaves(before))
    eps = np.finfo(np.float32).eps
    tolerance = STEPS * eps * ((fan_in + 10) * largest + size)
    for layer, of in before.items():
        for name, leaf in of.items():
            assert params[layer][name].dtype == np.float32
            np.testing.assert_allclose(
                params[layer][name], leaf, rtol=0, atol=tolerance
            )
            assert not np.array_equal(params[layer][name], leaf)


TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs
LAYERS = {"Conv_0": 0.025, "Dense_0": 0.05, "Dense_1": 0.1}


def fixed(groups, weight_decay):
    groups = [{**groups[layer], "lr": rate} for layer, rate in LAYERS.items()]
    return oracle("layerwise:Layerwise")(groups, 0.0, weight_decay=weight_decay)


def shrinking(groups, weight_decay):
    groups = [groups[layer] for layer in LAYERS]
    build = oracle("layerwise_decay:LayerwiseDecay")
    return build(groups, 0.1, 0.5, weight_decay=weight_decay)


LAYERWISE = {  # both with the rates of LAYERS
    "layerwise": (functools.partial(neuron_optax.layerwise, LAYERS), fixed),
    "layerwise_decay": (
        functools.partial(neuron_optax.layerwise_decay, 0.1, 0.5, [*LAYERS]),
        shrinking,
    ),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("build", "twin"), LAYERWISE.values(), ids=LAYERWISE)
def test_every_step_of_layers_matches_pytorch(build, twin, weight_decay):
    optimizer = build(weight_decay=weight_decay)
    expected = jax.tree.map(lambda leaf: torch.tensor(in_torch(leaf)), draw(1))
    groups = {layer: {"params": [*of.values()]} for layer, of in expected.items()}
    theirs = twin(groups, weight_decay)
    params = jax.tree.map(jnp.asarray, draw(1))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step, grads in enumerate(gradients(), start=1):
        updates, state = update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
        for layer, of in expected.items():
            for name, leaf in of.items():
                leaf.grad = torch.tensor(in_torch(grads[layer][name]))
        theirs.step()
        for layer, of in expected.items():
            for name, leaf in of.items():
                where = f"step {step}, {layer}/{name}"
                compare(params[layer][name], leaf, TOLERANCE, where)
                rate = optax.tree.get(state, "rate")[layer][name]
                compare(rate, LAYERS[layer], TOLERANCE, f"{where}, rate")
                for field, key in (("mu", "m"), ("nu", "v")):
                    moment = optax.tree.get(state, field)[layer][name]
                    compare(moment, theirs.state[leaf][key], TOLERANCE, where)
