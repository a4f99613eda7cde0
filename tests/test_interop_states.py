"""Runs that start in torch go on in JAX, and the other way round."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
eqx = pytest.importorskip("equinox")

import neuron_optax  # noqa: E402
from neuron_optax import ADAM_MINI, FLAX, PER_ENTRY, PER_LAYER  # noqa: E402
from neuron_optax.interop import (  # noqa: E402
    params_from_torch,
    params_to_torch,
    state_from_torch,
    state_to_torch,
)
from tests.interop_models import CASES, Recurrent  # noqa: E402
from tests.interop_runs import (  # noqa: E402
    LIKE,
    RATE,
    SCHEDULE,
    SHAPES,
    STEPS,
    Network,
    carried,
    carried_back,
    run_jax,
    run_torch,
)
from tests.interop_twins import drawn  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")
TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs


def agree(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, TOLERANCE, TOLERANCE),
        actual,
        expected,
    )


ADAM = functools.partial(torch.optim.Adam, lr=RATE)
ADAMW = functools.partial(torch.optim.AdamW, lr=RATE, weight_decay=0.1)
ADAGRAD = functools.partial(torch.optim.Adagrad, lr=RATE, eps=1e-8)
RMSPROP = functools.partial(torch.optim.RMSprop, lr=RATE, alpha=0.9)
INJECTED = optax.inject_hyperparams(optax.adam)
RUNS = {
    "adam": (ADAM, optax.adam(RATE)),
    "adam injected": (ADAM, INJECTED(lambda step: RATE)),
    "adam_mini": (ADAM, neuron_optax.adam_mini(RATE, neurons=PER_ENTRY)),
    "layerwise": (ADAM, neuron_optax.layerwise({"": RATE})),
    "weight_norm_adam": (ADAM, neuron_optax.weight_norm_adam(RATE, 0.0)),
    "adamw": (ADAMW, optax.adamw(RATE, weight_decay=0.1)),
    "neuron_adagrad": (ADAGRAD, neuron_optax.neuron_adagrad(RATE, neurons=PER_ENTRY)),
    "neuron_rmsprop": (RMSPROP, neuron_optax.neuron_rmsprop(RATE, neurons=PER_ENTRY)),
    "rmsprop": (RMSPROP, optax.rmsprop(RATE, eps_in_sqrt=False)),
}
QUICK = {"adam"}
SAID = {"weight_norm_adam": {"keep_memory": True}}


@pytest.mark.parametrize(
    ("make", "ours", "said"),
    [
        pytest.param(
            *run,
            SAID.get(name, {}),
            id=name,
            marks=() if name in QUICK else pytest.mark.slow,
        )
        for name, run in RUNS.items()
    ],
)
def test_a_run_of_torch_goes_on_in_jax_and_then_in_torch_again(make, ours, said):
    module = Network()
    theirs = run_torch(module, make(module.parameters()))
    params, state = run_jax(ours, *carried(theirs, module, ours, **said))
    other, optimizer = carried_back(make, params, state, **said)
    run_torch(module, theirs)
    agree(params, params_from_torch(module, LIKE))
    run_torch(module, theirs)
    run_torch(other, optimizer)
    agree(
        carried(optimizer, other, ours, **said), carried(theirs, module, ours, **said)
    )


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("fresh", "step")]


@pytest.mark.parametrize("changed", ["transposed", *SLOW])
def test_the_comparison_notices_a_state_that_was_not_carried(changed):
    module, ours = Network(), optax.adam(RATE)
    theirs = run_torch(module, ADAM(module.parameters()))
    params, (adam, rest) = carried(theirs, module, ours)
    square = adam.mu["query"]["kernel"].reshape(4, 4).T.reshape(4, 2, 2)
    states = {
        "fresh": ours.init(params)[0],
        "step": adam._replace(count=adam.count + 1),
        "transposed": adam._replace(
            mu=adam.mu | {"query": adam.mu["query"] | {"kernel": square}}
        ),
    }
    params, _ = run_jax(ours, params, (states[changed], rest))
    run_torch(module, theirs)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        agree(params, params_from_torch(module, LIKE))


def ravel(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


MOVED = "linear", "grouped", "transposed3d", "transposed groups", "attention"


@pytest.mark.parametrize("name", MOVED)
def test_moments_move_as_the_parameters_they_are_of(name):
    case = CASES[name](4, 6)
    module, moments = drawn(case.module), drawn(CASES[name](4, 6).module)
    theirs = torch.optim.Adam(module.parameters())
    for parameter, moment in zip(
        module.parameters(), moments.parameters(), strict=True
    ):
        moment.data = moment.data.flip(0)
        kept = {"exp_avg": moment.data, "exp_avg_sq": moment.data**2}
        theirs.state[parameter] = kept | {"step": torch.tensor(3.0)}
    for twin in case.twins.values():
        like = eqx.filter(twin.like, lambda leaf: hasattr(leaf, "dtype"))
        fresh = optax.scale_by_adam().init(like)
        state = state_from_torch(theirs, module, fresh, like, **twin.said)
        expected = params_from_torch(moments, like, **twin.said)
        jax.tree.map(np.testing.assert_array_equal, state.mu, expected)
        other = params_from_torch(module, like, **twin.said)
        assert not np.array_equal(*map(ravel, (state.mu, other)))
        back = state_to_torch(state, theirs, module, like, **twin.said)
        torch.testing.assert_close(back, theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_a_schedule_goes_on_at_the_step_it_had_come_to():
    module, ours = Network(), optax.adam(SCHEDULE)
    rates = [SCHEDULE(step) for step in range(2 * STEPS)]
    theirs = run_torch(module, ADAM(module.parameters()), rates[:STEPS])
    params, _ = run_jax(ours, *carried(theirs, module, ours))
    run_torch(module, theirs, rates[STEPS:])
    agree(params, params_from_torch(module, LIKE))


def test_parameters_that_torch_does_not_train_are_masked_in_jax():
    module = Network()
    theirs = run_torch(module, ADAM(module.linear.parameters()))
    mask = {name: name == "linear" for name in SHAPES}
    rest = {name: name != "linear" for name in SHAPES}
    frozen = optax.masked(optax.set_to_zero(), rest)
    ours = optax.chain(optax.masked(optax.adam(RATE), mask), frozen)
    params, _ = run_jax(ours, *carried(theirs, module, ours))
    run_torch(module, theirs)
    agree(params, params_from_torch(module, LIKE))
    with pytest.raises(ValueError, match=r"'embed\.weight': \(0, 20\)"):
        carried(theirs, module, optax.adam(RATE))


@pytest.mark.slow
def test_the_state_of_an_nnx_optimizer_is_filled():
    linear = torch.nn.Linear(3, 2).double()
    theirs = torch.optim.Adam(linear.parameters())
    linear(torch.ones(3, dtype=torch.float64)).sum().backward()
    theirs.step()
    model = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    optimizer.opt_state = state_from_torch(theirs, linear, optimizer.opt_state, params)
    nnx.update(model, params_from_torch(linear, params))
    mean = theirs.state[linear.weight]["exp_avg"].numpy().T
    np.testing.assert_array_equal(optimizer.opt_state[0].mu["kernel"][...], mean)
    assert int(optimizer.opt_state[0].count[...]) == 1
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))


MINI = functools.partial(neuron_optax.adam_mini, RATE)


@pytest.mark.authors
@pytest.mark.filterwarnings("ignore")  # theirs to mend
def test_a_run_of_the_authors_adam_mini_goes_on_in_jax_and_in_torch_again():
    kind = importlib.import_module("adam_mini").Adam_mini
    said = {"lr": RATE, "dim": 4, "n_heads": 2, "verbose": False}
    module, other, ours = Network(), Network(seed=2), MINI(neurons=ADAM_MINI)
    theirs = run_torch(module, kind(module.named_parameters(), **said))
    params, state = run_jax(ours, *carried(theirs, module, ours))
    optimizer = run_torch(other, kind(other.named_parameters(), **said))
    other.load_state_dict(params_to_torch(params, other))
    optimizer.load_state_dict(state_to_torch(state, optimizer, other, params))
    run_torch(module, theirs)
    agree(params, params_from_torch(module, LIKE))
    run_torch(module, theirs)
    run_torch(other, optimizer)
    agree(carried(optimizer, other, ours), carried(theirs, module, ours))
    for layout in (FLAX, PER_LAYER, PER_ENTRY):
        with pytest.raises(ValueError, match="or other neurons"):
            carried(theirs, module, MINI(neurons=layout))
    with pytest.raises(ValueError, match="not known before its first step"):
        fresh = kind(other.named_parameters(), **said)
        state_to_torch(state, fresh, other, params)


def test_states_of_merged_biases_are_refused_by_name():
    module = Recurrent(torch.nn.GRU(3, 2)).double()
    theirs = ADAM(module.parameters())
    module(torch.ones(4, 3, dtype=torch.float64)).sum().backward()
    theirs.step()
    shapes = {"weight_ih": (6, 3), "weight_hh": (6, 2), "bias": (6,), "bias_n": (2,)}
    params = {name: jnp.zeros(of, jnp.float64) for name, of in shapes.items()}
    state, names = optax.adam(RATE).init(params), {"rnn.l0": ""}
    said = r"bias: moments of \['rnn.bias_ih_l0', 'rnn.bias_hh_l0'\] do not add up"
    with pytest.raises(ValueError, match=said):
        state_from_torch(theirs, module, state, params, names)


def test_tied_parameters_with_two_leaves_are_refused():
    module = torch.nn.ModuleList([torch.nn.Linear(2, 2, False) for _ in range(2)])
    module[1].weight = module[0].weight
    theirs = ADAM(module.parameters())
    (module[0].weight.sum() + module[1].weight.sum()).backward()
    theirs.step()
    one = {"kernel": jnp.zeros((2, 2))}
    for params in ({"0": one}, {"1": one}):
        state = state_from_torch(theirs, module, optax.adam(1.0).init(params), params)
        assert int(state[0].count) == 1
    params = {"0": one, "1": one}
    with pytest.raises(ValueError, match=r"'0.weight': \(4, 8\).*tied"):
        state_from_torch(theirs, module, optax.adam(1.0).init(params), params)
