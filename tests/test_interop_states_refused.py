"""Optimizer states that one side has nothing like are refused by name."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

torch = pytest.importorskip("torch")

import neuron_optax  # noqa: E402
from neuron_optax import PER_ENTRY  # noqa: E402
from neuron_optax.interop import (  # noqa: E402
    params_from_torch,
    state_from_torch,
    state_to_torch,
)
from tests.interop_runs import (  # noqa: E402
    LIKE,
    RATE,
    SCHEDULE,
    SHAPES,
    Network,
    carried,
    carried_back,
    run_jax,
    run_torch,
)

pytestmark = pytest.mark.usefixtures("float64")
ADAM = functools.partial(torch.optim.Adam, lr=RATE)
ADAGRAD = functools.partial(torch.optim.Adagrad, lr=RATE, eps=1e-8)
RMSPROP = functools.partial(torch.optim.RMSprop, lr=RATE, alpha=0.9)
MINI = functools.partial(neuron_optax.adam_mini, RATE)
ENTRIES = {"neurons": PER_ENTRY}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (functools.partial(ADAM, amsgrad=True), "torch.Adam: amsgrad"),
        (functools.partial(ADAM, maximize=True), "torch.Adam: maximize"),
        (functools.partial(ADAGRAD, lr_decay=0.1), "torch.Adagrad: lr_decay"),
        (functools.partial(RMSPROP, centered=True), "torch.RMSprop: centered"),
        (functools.partial(RMSPROP, momentum=0.9), "torch.RMSprop: momentum"),
    ],
)
def test_options_that_do_not_carry_over_are_refused_by_name(make, said):
    module = Network()
    theirs = run_torch(module, make(module.parameters()), [RATE])
    with pytest.raises(ValueError, match=f"{said} cannot carry over"):
        carried(theirs, module, optax.adam(RATE))


@pytest.mark.parametrize(
    ("make", "ours", "said"),
    [
        (ADAM, optax.sgd(RATE, 0.9), "0/trace/embed/embedding: not known"),
        (ADAM, optax.lion(RATE), "0/mu/embed/embedding: not known"),
        (ADAGRAD, optax.adam(RATE), "0/mu: torch has no mean of gradients"),
        (ADAGRAD, optax.rmsprop(RATE), "0/nu: torch has no mean of squares"),
        (ADAM, optax.rmsprop(RATE), "mean of gradients, torch's and the state's"),
        (ADAM, MINI(), "mean of squares, torch's and the state's.*'query.weight'"),
        (ADAM, neuron_optax.frequency_adam(RATE), "0/memory: torch has nothing like"),
        (ADAM, neuron_optax.hypergradient_adam(RATE), "0/memory: torch has nothing"),
        (ADAM, neuron_optax.frequency_sgd(RATE, **ENTRIES), "mean of gradients, torch"),
        (ADAM, neuron_optax.normuon(RATE), "trace/linear/kernel: not known"),
        (ADAM, neuron_optax.namo_d(RATE), "trace/linear/kernel: not known"),
        (RMSPROP, MINI(**ENTRIES), "direction/ema: torch has no mean of gradients"),
        (RMSPROP, neuron_optax.hypergradient_sgd(RATE, **ENTRIES), "previous/.* not"),
        (ADAM, optax.chain(optax.ema(0.9), optax.scale_by_rms()), "0/ema.* not known"),
        (ADAM, optax.MultiSteps(optax.adam(RATE), 2), r"give its .inner_opt_state"),
    ],
)
def test_states_of_other_optimizers_are_refused(make, ours, said):
    module = Network()
    theirs = run_torch(module, make(module.parameters()), [RATE])
    with pytest.raises(ValueError, match=said):
        carried(theirs, module, ours)


def test_steps_that_differ_or_were_not_taken_are_refused():
    module = Network()
    theirs = ADAM(module.parameters())
    with pytest.raises(ValueError, match=r"not taken a step: \['embed.weight', 'norm"):
        carried(theirs, module, optax.adam(RATE))
    run_torch(module, theirs, [RATE])
    theirs.state[module.linear.bias]["step"] += 1
    with pytest.raises(ValueError, match=r"as many steps, got .*'linear.bias': 2"):
        carried(theirs, module, optax.adam(RATE))
    params = params_from_torch(module, LIKE)
    state = optax.chain(optax.adam(RATE), optax.adam(SCHEDULE)).init(params)
    with pytest.raises(ValueError, match="a second mean of gradients"):
        state_to_torch(state, theirs, module, params)
    first, *rest = optax.adam(SCHEDULE).init(params)
    with pytest.raises(ValueError, match="counts steps once"):
        late = first._replace(count=first.count + 1)
        state_to_torch((late, *rest), theirs, module, params)


def test_optimizers_and_parameters_that_are_not_known_are_refused():
    module = Network()
    params = params_from_torch(module, LIKE)
    state = optax.adam(RATE).init(params)
    with pytest.raises(TypeError, match=r"one of \['torch.Adam', .*got torch.SGD"):
        state_from_torch(torch.optim.SGD(module.parameters()), module, state, params)
    with pytest.raises(ValueError, match=r"shape \(5, 4\) is not of the module"):
        state_from_torch(ADAM(Network().parameters()), module, state, params)


def test_what_holds_a_state_is_not_one():
    module = Network()
    theirs = run_torch(module, ADAM(module.parameters()), [RATE])
    params = params_from_torch(module, LIKE)
    whole = TrainState.create(apply_fn=None, params=params, tx=optax.adam(RATE))
    with pytest.raises(ValueError, match=r"TrainState is not .* give its \.opt_state"):
        state_from_torch(theirs, module, whole, params)
    with pytest.raises(ValueError, match=r"TrainState is not .* give its \.opt_state"):
        state_to_torch(whole, theirs, module, params)


def test_what_is_remembered_beside_moments_stays_if_so_said():
    module, ours = Network(), neuron_optax.neuron_lamb(RATE)
    theirs = run_torch(module, ADAM(module.parameters()), [RATE])
    params, state = carried(theirs, module, ours, keep_memory=True)
    _, adam = carried(theirs, module, optax.adam(RATE))
    jax.tree.map(np.testing.assert_array_equal, state[0], adam[0])
    fresh = ours.init(params)
    jax.tree.map(np.testing.assert_array_equal, state[2].memory, fresh[2].memory)
    with pytest.raises(ValueError, match="2/memory: torch has nothing like"):
        state_to_torch(state, theirs, module, params)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(state[0].count, fresh[0].count)


def test_strategies_by_part_of_the_parameters_have_moments_of_their_own():
    module = Network()
    theirs = run_torch(module, ADAM(module.parameters()), [RATE])
    labels = {name: "mini" if name == "linear" else "adam" for name in SHAPES}
    parts = {"adam": optax.adam(RATE), "mini": MINI(**ENTRIES)}
    params, state = carried(theirs, module, optax.partition(parts, labels))
    back = state_to_torch(state, theirs, module, params)
    torch.testing.assert_close(back, theirs.state_dict(), rtol=0, atol=0)
    mini = state.inner_states["mini"].inner_state[0]
    square = theirs.state[module.linear.weight]["exp_avg_sq"].numpy().T
    np.testing.assert_array_equal(mini.memory["linear"]["kernel"], square)


def test_frozen_parameters_are_masked_in_jax():
    module = Network()
    module.embed.requires_grad_(False)
    theirs = run_torch(module, ADAM(module.parameters()))
    trained = {name: name != "embed" for name in SHAPES}
    frozen = {name: name == "embed" for name in SHAPES}
    zero = optax.masked(optax.set_to_zero(), frozen)
    ours = optax.chain(optax.masked(optax.adam(RATE), trained), zero)
    params, state = run_jax(ours, *carried(theirs, module, ours))
    _, optimizer = carried_back(ADAM, params, state)
    assert len(optimizer.state) == len(theirs.state) == 6
    run_torch(module, theirs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-12),
        params,
        params_from_torch(module, LIKE),
    )
    with pytest.raises(ValueError, match=r"not taken a step: \['embed.weight'\]"):
        carried(theirs, module, optax.adam(RATE))
    with pytest.raises(ValueError, match="no parameter has a state"):
        carried(ADAM(module.parameters()), module, optax.sgd(RATE))
