"""Side by side with torch, what is alike agrees and what differs is found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neuron_optax
from neuron_optax import FLAX, PER_ENTRY, Neurons
from tests.case import draw, gradients

torch = pytest.importorskip("torch")

from neuron_optax.interop.compare import compare_with_torch  # noqa: E402  needs torch
from neuron_optax.interop.differences import compare_runs  # noqa: E402
from tests.reference.neuron_adagrad import NeuronAdagrad  # noqa: E402

STEPS = 5
DTYPES = {"float64": jnp.float64, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
PEERS = {  # ours, its name in torch and its options there
    "adam": (optax.adam(0.1), "Adam", {}),
    "rmsprop": (
        neuron_optax.neuron_rmsprop(0.1, neurons=PER_ENTRY),
        "RMSprop",
        {"alpha": 0.9},
    ),
    "sgd": (optax.sgd(0.1, momentum=0.9), "SGD", {"momentum": 0.9}),
}


def in_torch(name, **options):
    """Return what makes an optimizer of torch's from named parameters."""
    make = getattr(torch.optim, name)
    return lambda named: make(named.values(), **{"lr": 0.1, **options})


def compared(ours, theirs, *, params=None, grads=None, **options):
    params = jax.tree.map(jnp.asarray, draw(1)) if params is None else params
    grads = gradients(STEPS) if grads is None else grads
    return compare_with_torch(ours, theirs, params, grads, show=False, **options)


def adagrad():
    """Return the oracle, whose neurons are the rows of its parameters."""
    return lambda named: NeuronAdagrad(named.values(), lr=0.1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("ours", "name", "options"), PEERS.values(), ids=PEERS)
def test_what_is_alike_agrees_to_a_few_units_in_the_last_place(ours, name, options):
    comparison = compared(ours, in_torch(name, **options), tolerance=8.0)
    assert comparison.parting is None
    assert str(comparison).startswith("agree within ")
    assert len(comparison.differences) == STEPS * len(jax.tree.leaves(draw(1)))


@pytest.mark.usefixtures("float64")
def test_adam_with_eps_inside_the_root_parts_at_once_in_the_most_quiet_neuron():
    comparison = compared(optax.adam(0.1, eps=0.0, eps_root=1e-8), in_torch("Adam"))
    parting = comparison.parting
    assert parting.step == 1 and parting.entry[-1] == 0  # of gradients of 1e-3
    assert parting.ulp == max(row.ulp for row in comparison.differences[:6])
    start = draw(1)
    layer, name = parting.path.split("/")
    assert abs(parting.ours - start[layer][name][parting.entry]) < 0.1
    assert parting.ours != parting.theirs


@pytest.mark.usefixtures("float64")
def test_two_that_differ_from_some_step_on_part_there():
    late = optax.sgd(lambda step: jnp.where(step < 2, 0.1, 0.2))
    parting = compared(late, in_torch("SGD")).parting
    assert parting.step == 3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (3, 2, 2, 5)])
def test_rows_of_torch_are_neurons(shape):
    params = {"kernel": np.random.default_rng(0).standard_normal(shape)}
    grads = [{"kernel": np.cumsum(params["kernel"], axis=0) ** n} for n in range(1, 4)]
    ours = neuron_optax.neuron_adagrad(0.1)
    run = lambda neurons: compared(
        ours, adagrad(), params=params, grads=grads, neurons=neurons
    )
    assert run(FLAX).parting is None
    assert run(Neurons(output=(0,))).parting.step == 1
    assert run(PER_ENTRY).parting.step == 1


NEURONS = {  # of a leaf (4, 6, 5): its view, the order of its axes and torch's shape
    "stack": (Neurons((-1,), stack=(0,)), (4, 6, 5), (0, 2, 1), (20, 6)),
    "two outputs": (Neurons((2, 1)), (4, 6, 5), (2, 1, 0), (30, 4)),
    "blocks": (Neurons((1,), (), ((1, 3),)), (4, 3, 2, 5), (1, 0, 2, 3), (3, 4, 2, 5)),
    "a layer": (Neurons(()), (4, 6, 5), (0, 1, 2), (1, 4, 6, 5)),
    "every entry": (Neurons(...), (4, 6, 5), (0, 1, 2), (120,)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("neurons", "view", "order", "shape"), NEURONS.values())
def test_stacks_outputs_and_blocks_become_the_rows(neurons, view, order, shape):
    start, grads = (np.random.default_rng(n).normal(size=(4, 6, 5)) for n in (0, 1))
    rows = start.reshape(view).transpose(order).reshape(shape)

    def theirs(named):
        np.testing.assert_array_equal(named["w"].detach().numpy(), rows)
        return adagrad()(named)

    layout = FLAX.override({"": neurons})
    options = {"params": {"w": start}, "grads": [{"w": grads}], "neurons": layout}
    ours = neuron_optax.neuron_adagrad(0.1, neurons=layout)
    assert compared(ours, theirs, **options).parting is None
    other = neuron_optax.neuron_adagrad(0.1, neurons=FLAX)
    assert compared(other, theirs, **options).parting


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_sides_have_the_dtype_of_the_leaf_and_its_units(dtype):
    ours, seen = neuron_optax.neuron_adagrad(0.1, neurons=PER_ENTRY), []

    def theirs(named):
        seen.extend(str(leaf.dtype) for leaf in named.values())
        return in_torch("Adagrad", eps=1e-8)(named)

    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, DTYPES[dtype]), draw(1))
        agreed = compared(ours, theirs, params=params)
        parted = compared(ours, in_torch("Adagrad", eps=0.1), params=params)
    assert set(seen) == {f"torch.{dtype}"}
    assert agreed.parting is None and parted.parting.ours.dtype == dtype
    row = max(agreed.differences, key=lambda row: row.ulp)
    eps = float(jnp.finfo(dtype).eps)
    assert 0 < row.ulp <= 8 and eps / 4 < row.relative  # units are those of the dtype


def test_adam_of_optax_and_of_torch_part_in_float32_by_the_correction_of_bias():
    parting = compared(optax.adam(0.1), in_torch("Adam")).parting
    assert parting.step == 1 and 32 < parting.ulp < 500


RUNS = {  # start, ours and theirs after a step in float32, units between them
    "alike": (1.0, 1.5, 1.5, 0.0),
    "one unit": (1.0, 1.0, 1.0 + 2.0**-23, 1.0),
    "through zero": (4.0, 2.0**-40, -(2.0**-40), 2.0**-39 / 2.0**-21),
    "from zero": (0.0, 1.0, 1.0 + 2.0**-22, 2.0),
    "flushed": (0.0, 0.0, 1e-40, 1e-40 / 2.0**-126),
    "both nan": (1.0, np.nan, np.nan, 0.0),
    "nan": (1.0, np.nan, 1.0, np.inf),
    "theirs nan": (1.0, 1.0, np.nan, np.inf),
    "both infinite": (1.0, np.inf, np.inf, 0.0),
    "infinite": (1.0, np.inf, 1.0, np.inf),
    "opposite": (1.0, np.inf, -np.inf, np.inf),
}


@pytest.mark.parametrize(("start", "ours", "theirs", "ulp"), RUNS.values(), ids=RUNS)
def test_units_are_those_of_the_largest_weight_so_far(start, ours, theirs, ulp):
    runs = (start, start), (ours, theirs)
    pairs = ({"w": (np.array([x, 0.0]), np.array([y, 0.0]))} for x, y in runs)
    comparison = compare_runs(pairs, {"w": np.dtype("float32")}, 0.0)
    assert comparison.differences[0].ulp == pytest.approx(ulp)
    assert (comparison.parting is None) == (ulp == 0)


def test_nan_on_one_side_is_where_they_part_and_on_both_is_not():
    grads = gradients(3)
    grads[1]["Dense_0"]["bias"][2] = np.nan
    agreed = compared(optax.sgd(0.1), in_torch("SGD"), grads=grads)
    count = sum(map(np.size, jax.tree.leaves(grads[0])))
    assert agreed.parting is None and agreed.unseen == (1, count, 2)
    said = f"in float32; 1 of {count} entries are finite on neither side, the first in"
    assert said in str(agreed).splitlines()[0]
    skipping = optax.chain(optax.zero_nans(), optax.sgd(0.1))
    parting = compared(skipping, in_torch("SGD"), grads=grads).parting
    assert (parting.step, parting.path, parting.entry) == (2, "Dense_0/bias", (2,))
    assert np.isnan(parting.theirs) and parting.ulp == np.inf


def test_the_first_line_says_where_they_part_and_the_table_how_far(capsys):
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    one = jnp.zeros(3).at[1].set(1.0)
    grads = [{"a": params["a"], "b": n * one} for n in (0, 1)]
    halved = optax.masked(optax.scale(0.5), {"a": False, "b": True})
    ours = optax.chain(halved, optax.sgd(0.1))
    comparison = compare_with_torch(ours, in_torch("SGD"), params, grads)
    head, names, *rows = capsys.readouterr().out.splitlines()
    assert [head, names, *rows] == str(comparison).splitlines()
    where = "part first at step 2, b, entry (1,): ours 0.95, torch's 0.9, 4.19e+05 ulp"
    assert head == f"{where}, in float32"
    assert names.split() == ["step", "path", "absolute", "relative", "ulp"]
    assert [row.split()[:2] for row in rows] == [[s, p] for s in "12" for p in "ab"]
    assert rows[3].split()[2:] == ["0.05", "0.0526", "4.19e+05"]
    assert rows[2].split()[2:] == ["0", "0", "0"]


def test_long_runs_and_large_trees_are_shortened():
    params = {f"w{n}": jnp.ones(1) for n in range(12)}
    at = lambda step: {name: jnp.full(1, 2.0**-step) for name in params}
    late = optax.sgd(lambda step: jnp.where(step < 7, 0.1, 0.2))
    text = str(compared(late, in_torch("SGD"), params=params, grads=map(at, range(20))))
    head, _, *rows, steps, leaves = text.split("\n")
    assert head.startswith("part first at step 8, w0")
    assert {row.split()[0] for row in rows} == {"1", "7", "8", "20"}
    assert steps == "4 of 20 steps are shown"
    assert leaves == "of 12 leaves the 10 that differ most"


def test_what_cannot_be_compared_is_refused():
    sgd, grads = in_torch("SGD"), gradients(1)
    without = [{layer: grads[0][layer] for layer in ("Conv_0", "Dense_0")}]
    with pytest.raises(ValueError, match=r"step 1 .* missing \['Dense_1/bias', 'Dens"):
        compared(optax.sgd(0.1), sgd, grads=without)
    short = jax.tree.map(lambda leaf: leaf[:1], grads)
    with pytest.raises(ValueError, match=r"Conv_0/bias: .* step 1 .*\(5,\), got"):
        compared(optax.sgd(0.1), sgd, grads=short)
    for params in ({"w": jnp.ones(2, complex)}, {"w": jnp.ones(2, int)}):
        with pytest.raises(TypeError, match="w: params must be of"):
            compared(optax.sgd(0.1), sgd, params=params)
    for params in (draw(1), {"w": jnp.ones(2), "v": np.ones(2)}):
        with pytest.raises(TypeError, match="float64 but jax_enable_x64 is off"):
            compared(optax.sgd(0.1), sgd, params=params)
    nans = [jax.tree.map(lambda leaf: np.nan * leaf, grads[0])] * 2
    with pytest.raises(ValueError, match="finite on either side in any of 2 steps"):
        compared(optax.sgd(0.1), sgd, grads=nans)
    with pytest.raises(ValueError, match="a tree of none"):
        compared(optax.sgd(0.1), sgd, params={})
    with pytest.raises(ValueError, match="tolerance"):
        compared(optax.sgd(0.1), sgd, tolerance=-1.0)
    with pytest.raises(TypeError, match="must return an optimizer, got dict"):
        compared(optax.sgd(0.1), dict)


def test_an_optimizer_that_trains_nothing_is_refused():
    copies = lambda named: [leaf.detach().clone() for leaf in named.values()]
    strangers = lambda named: torch.optim.SGD(copies(named), 0.1)
    with pytest.raises(ValueError, match="moved no weight in 5 steps"):
        compared(optax.sgd(0.1), strangers)
    with pytest.raises(ValueError, match="moved no weight in 0 steps"):
        compared(optax.sgd(0.1), in_torch("SGD"), grads=[])
    there_and_back = [{"w": jnp.ones(2)}, {"w": -jnp.ones(2)}]
    options = {"params": {"w": jnp.ones(2)}, "grads": there_and_back}
    assert compared(optax.sgd(0.5), in_torch("SGD", lr=0.5), **options).parting is None
