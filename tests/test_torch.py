"""The same rates built from torch's own parts, and what the naive recipes do there."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from tests.case import SCHEDULE, draw, gradients

torch = pytest.importorskip("torch")

TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs


def in_torch(tree):
    """Return torch tensors with the output axis first."""
    return jax.tree.map(
        lambda leaf: torch.tensor(np.ascontiguousarray(np.moveaxis(leaf, -1, 0))), tree
    )


def trajectory(optimizer, grads=None):
    """Yield our params after every step, output axis first."""
    params = jax.tree.map(jnp.asarray, draw(1))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for g in gradients() if grads is None else grads:
        updates, state = update(jax.tree.map(jnp.asarray, g), state, params)
        params = optax.apply_updates(params, updates)
        yield in_torch(jax.tree.map(np.asarray, params))


def agree(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE),
        actual,
        expected,
    )


def set_gradients(params, grads):
    for layer, of in in_torch(grads).items():
        for name, leaf in of.items():
            params[layer][name].grad = leaf


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_layerwise_is_adam_with_parameter_groups(weight_decay):
    rates = {"Dense_0": 1e-2, "Dense_1": 1e-3, "Conv_0": 0.1}
    params = in_torch(draw(1))
    optimizer = torch.optim.AdamW(
        [{"params": [*params[name].values()], "lr": lr} for name, lr in rates.items()],
        weight_decay=weight_decay,
    )
    ours = trajectory(neuron_optax.layerwise(rates, weight_decay=weight_decay))
    for grads, actual in zip(gradients(), ours, strict=True):
        set_gradients(params, grads)
        optimizer.step()
        agree(actual, params)
    other = {**rates, "Conv_0": 0.2}
    *_, last = trajectory(neuron_optax.layerwise(other, weight_decay=weight_decay))
    assert not np.allclose(last["Conv_0"]["kernel"], params["Conv_0"]["kernel"])
    agree(last["Dense_0"], params["Dense_0"])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("schedule", [False, True])
def test_layerwise_decay_is_adam_with_parameter_groups(schedule):
    layers = ["Conv_0", "Dense_0", "Dense_1"]
    rate = SCHEDULE if schedule else 0.2
    params = in_torch(draw(1))
    groups = [{"params": [*params[name].values()]} for name in layers]
    optimizer = torch.optim.Adam(groups, lr=0.2)
    ours = trajectory(neuron_optax.layerwise_decay(rate, 0.3, layers))
    for step, (grads, actual) in enumerate(zip(gradients(), ours, strict=True)):
        for depth, group in enumerate(reversed(optimizer.param_groups)):
            lr = SCHEDULE(step) if schedule else rate
            group["lr"] = float(lr) * 0.3**depth
        set_gradients(params, grads)
        optimizer.step()
        agree(actual, params)


@pytest.mark.usefixtures("float64")
def test_weight_norm_adam_is_adam_with_one_parameter_group_per_row():
    params = in_torch(draw(1))
    rows = {
        (layer, n): [of["kernel"][n].clone(), of["bias"][n].clone()]
        for layer, of in params.items()
        for n in range(len(of["bias"]))
    }
    optimizer = torch.optim.Adam([{"params": row} for row in rows.values()])
    ours = trajectory(neuron_optax.weight_norm_adam(0.1, scaling_factor=0.5))
    for grads, actual in zip(gradients(), ours, strict=True):
        grads = in_torch(grads)
        for (layer, n), group in zip(rows, optimizer.param_groups, strict=True):
            kernel, bias = group["params"]
            group["lr"] = 0.1 * (1 + 0.5 * float(kernel.norm()))
            kernel.grad, bias.grad = grads[layer]["kernel"][n], grads[layer]["bias"][n]
        optimizer.step()
        for (layer, n), (kernel, bias) in rows.items():
            agree(actual[layer]["kernel"][n], kernel)
            agree(actual[layer]["bias"][n], bias)


PER_PARAMETER = {
    "Adagrad": (neuron_optax.neuron_adagrad, {"eps": 1e-8}),
    "RMSprop": (neuron_optax.neuron_rmsprop, {"alpha": 0.9}),
    "Adam": (neuron_optax.adam_mini, {}),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PER_PARAMETER)
def test_one_neuron_per_entry_is_torchs_own_optimizer(name):
    build, options = PER_PARAMETER[name]
    params = in_torch(draw(1))
    leaves = jax.tree.leaves(params)
    optimizer = getattr(torch.optim, name)(leaves, lr=0.1, **options)
    ours = trajectory(build(0.1, neurons=neuron_optax.PER_ENTRY))
    for grads, actual in zip(gradients(), ours, strict=True):
        set_gradients(params, grads)
        optimizer.step()
        agree(actual, params)
    *_, per_neuron = trajectory(build(0.1))
    difference = per_neuron["Dense_0"]["kernel"] - params["Dense_0"]["kernel"]
    assert difference.abs().max() > 1e-3


@pytest.mark.usefixtures("float64")
def test_an_accumulated_rate_on_adams_direction_divides_by_the_gradient_twice():
    sizes = jnp.array([1.0, 1e-3, 1e-6, 1e-9])  # one entry per neuron
    accumulated = neuron_optax.scale_per_neuron(
        neuron_optax.mean_square, neuron_optax.total(), neuron_optax.inverse_root(1e-8)
    )
    blog = neuron_optax.scale_per_neuron(
        neuron_optax.mean_square,
        neuron_optax.total(),
        neuron_optax.inverse_root(1e-8),
        direction=optax.scale_by_adam(),
    )
    step = lambda optimizer: 0.01 * optimizer.update(sizes, optimizer.init(sizes))[0]
    np.testing.assert_allclose(step(accumulated)[:3], 0.01, rtol=0.02)
    np.testing.assert_allclose(step(blog), [0.01, 10, 9.8e3, 8.3e4], rtol=0.01)


def naive(optimizer, rate_of, wrap=lambda parameter: [parameter], **filled):
    """Overwrite ``param_groups`` with tensor rates, as the recipes on the web do."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    optimizer = optimizer(layer.parameters())
    before = copy.deepcopy(layer.state_dict())
    defaults = optimizer.defaults if filled.pop("defaults", False) else {}
    optimizer.param_groups = [
        {**defaults, **filled, "params": wrap(p), "lr": rate_of(p)}
        for p in layer.parameters()
    ]
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return all(torch.equal(layer.state_dict()[name], before[name]) for name in before)


PER_ROW = lambda parameter: torch.full(parameter.shape[:1], 0.1)


def test_overwriting_param_groups_in_torch_loses_the_defaults():
    with pytest.raises(KeyError, match="betas"):
        naive(torch.optim.Adam, PER_ROW)


def test_tensor_rates_in_torch_raise_once_the_defaults_are_back():
    with pytest.raises(TypeError, match=r"addcdiv_.*must be Number, not Tensor"):
        naive(torch.optim.Adam, PER_ROW, defaults=True)


def test_a_bare_tensor_as_params_in_torch_trains_nothing_and_says_nothing():
    unchanged = naive(
        torch.optim.Adam,
        torch.zeros_like,
        wrap=lambda parameter: parameter,
        defaults=True,
    )
    assert unchanged
    number = lambda parameter: 0.1
    assert not naive(torch.optim.Adam, number, defaults=True)  # a float rate does train
