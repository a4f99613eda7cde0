"""Inside ``shard_map`` a statistic is that of the whole fan-in, whatever its pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import neuron_optax
from neuron_optax import FLAX, PER_LAYER, Neurons, neuron_adagrad
from neuron_optax.sharding import state_specs
from tests.contract_models import ROUNDING, contenders, normal, run

SPECS = {  # the fan-in of the first is cut along data, of the second along model
    "first": {"kernel": P("data", "model"), "bias": P("model")},
    "second": {"kernel": P("model", "data"), "bias": P("data")},
    "third": {"kernel": P(("data", "model"), None), "bias": P()},
}
SHAPES = {"first": (8, 8), "second": (8, 4), "third": (16, 3)}
NAMED = {
    "first/kernel": Neurons(reduce_over=("data",)),
    "second/kernel": Neurons(reduce_over=("model",)),
    "third/kernel": Neurons(reduce_over=("data", "model")),
}
CUT = FLAX.override(NAMED)
WHOLE_ONLY = "redistribute", "per_layer"  # they see all neurons of a layer
ROWS = [
    row
    for row in contenders(CUT)
    if row.id in {known.id for known in ROUNDING}
    and not any(part in row.id for part in WHOLE_ONLY)
]
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # the order of summation, in float32


@pytest.fixture(scope="module")
def mesh():
    """Eight devices in two rows."""
    return jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)


@functools.cache
def draws():
    """Draw the params and three gradients."""

    def tree(seed):
        return {
            layer: {
                "kernel": normal(shape, seed=seed),
                "bias": normal(shape[1:], seed=seed),
            }
            for layer, shape in SHAPES.items()
        }

    return tree(0), [tree(seed) for seed in (1, 2, 3)]


def in_pieces(optimizer, mesh, specs=SPECS, check_vma=True):
    """Return an optimizer whose update sees pieces of its trees."""
    params, _ = draws()
    shardings = state_specs(optimizer, params, specs, mesh)
    lie = jax.tree.map(lambda sharding: sharding.spec, shardings)
    update = jax.shard_map(
        optimizer.update,
        mesh=mesh,
        in_specs=(specs, lie, specs),
        out_specs=(specs, lie),
        check_vma=check_vma,
    )
    return optax.GradientTransformation(optimizer.init, update)


def jitted(optimizer):
    return optax.GradientTransformation(optimizer.init, jax.jit(optimizer.update))


def apart(pieces, whole):
    """Return the largest difference between the steps of two optimizers."""
    (_, left, _), (_, right, _) = (run(jitted(of), *draws()) for of in (pieces, whole))
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), left, right)
    return max(map(float, jax.tree.leaves(differences)))


@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("make", ROWS)
def test_pieces_take_the_steps_of_the_whole(make, check_vma, mesh):
    optimizer = make(0.01)
    pieces = in_pieces(optimizer, mesh, check_vma=check_vma)
    (_, steps, state), (_, expected, whole) = (
        run(jitted(of), *draws()) for of in (pieces, optimizer)
    )
    compare = lambda a, b: np.testing.assert_allclose(a, b, **CLOSE)
    jax.tree.map(compare, (steps, state), (expected, whole))


@pytest.mark.parametrize("missing", NAMED)
def test_the_comparison_notices_a_sum_over_one_piece_alone(missing, mesh):
    layout = FLAX.override({**NAMED, missing: Neurons(reduce_over=())})
    pieces = in_pieces(neuron_adagrad(0.01, neurons=layout), mesh, check_vma=False)
    assert apart(pieces, neuron_adagrad(0.01)) > 1e-4


def test_a_fan_in_cut_unsaid_does_not_pass_the_check_of_shard_map(mesh):
    layout = FLAX.override({"kernel": Neurons(reduce_over=())})
    with pytest.raises(ValueError, match="out_specs"):
        run(in_pieces(neuron_adagrad(0.01, neurons=layout), mesh), *draws())


def test_a_layout_says_it_for_all_its_leaves(mesh):
    cut = P("data", "model")
    halves = {"kernel": cut, "bias": P("model")}
    whole = {"kernel": P(None, None), "bias": P()}  # and seen to be
    specs = {"first": halves, "second": halves, "third": whole}
    layout = FLAX.with_reduce_over(("data",))
    for make in (neuron_adagrad, neuron_optax.subset_norm_adam):
        pieces = in_pieces(make(0.01, neurons=layout), mesh, specs)
        assert apart(pieces, make(0.01)) < 1e-6
    of_layers = PER_LAYER.with_reduce_over(("data", "model"))
    pieces = in_pieces(neuron_adagrad(0.01, neurons=of_layers), mesh, specs)
    assert apart(pieces, neuron_adagrad(0.01, neurons=PER_LAYER)) < 1e-6


def test_where_arrays_are_whole_it_does_not_count(mesh):
    assert apart(neuron_adagrad(0.1, neurons=CUT), neuron_adagrad(0.1)) == 0.0


CHANGES = {
    "clip": neuron_optax.clip_per_neuron(0.1, neurons=CUT),
    "centralize": neuron_optax.centralize_per_neuron(neurons=CUT),
    "normalize": neuron_optax.normalize_per_neuron(neurons=CUT),
    "project": neuron_optax.project_steps(neurons=CUT),
    "lazy": neuron_optax.where_touched(optax.trace(0.9), neurons=CUT),
    "finite": neuron_optax.skip_nonfinite(optax.trace(0.9), neurons=CUT),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_pieces_are_those_of_the_whole(change, mesh):
    assert apart(in_pieces(change, mesh), change) < 1e-6


@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_reductions_of_a_custom_statistic_reach_over_the_pieces(axes, mesh):
    whole = normal((8, 8))

    def pieces(reduce):
        return jax.shard_map(
            lambda piece: reduce(piece, (*axes, "data", *["model"] * (axes == (0, 1)))),
            mesh=mesh,
            in_specs=P("data", "model"),
            out_specs=P(*(None if axis in axes else "model" for axis in (0, 1))),
        )(whole)

    for ours, theirs in {
        neuron_optax.sum_over: jnp.sum,
        neuron_optax.mean_over: jnp.mean,
    }.items():
        expected = theirs(whole, axis=axes, keepdims=True)
        np.testing.assert_allclose(pieces(ours), expected, rtol=1e-5)


def refused(optimizer, mesh, error, match):
    with pytest.raises(error, match=match):
        run(in_pieces(optimizer, mesh), *draws())


def test_what_may_be_a_piece_is_refused_until_said(mesh):
    refused(
        neuron_adagrad(0.1),
        mesh,
        NotImplementedError,
        r"first/kernel: inside shard_map over .*reduce_over=\(\).*name the mesh axes",
    )


def test_mesh_axes_that_are_not_there_are_refused(mesh):
    for said in (("rows",), "data"):
        layout = FLAX.override({"kernel": Neurons(reduce_over=said)})
        optimizer = neuron_adagrad(0.1, neurons=layout)
        refused(optimizer, mesh, ValueError, "first/kernel: reduce_over must be a")


def test_a_mean_over_the_neurons_of_a_piece_is_refused(mesh):
    optimizer = neuron_adagrad(0.1, neurons=CUT, redistribute=True)
    refused(optimizer, mesh, NotImplementedError, "may be a piece of its layer")


def test_blocks_of_what_may_be_a_piece_are_refused(mesh):
    heads = Neurons(blocks=((-1, 2),), reduce_over=("model",))
    layout = CUT.override({"second/kernel": heads})
    optimizer = neuron_adagrad(0.1, neurons=layout)
    refused(optimizer, mesh, NotImplementedError, "second/kernel: .*blocks.*counted")


def test_a_custom_statistic_that_knows_no_mesh_axes_is_refused(mesh):
    statistic = lambda update, param, fan_in: jnp.mean(update**2, fan_in, keepdims=True)
    optimizer = neuron_optax.scale_per_neuron(
        statistic, neuron_optax.latest(), neuron_optax.inverse_root(), neurons=CUT
    )
    match = r"first/kernel: .*; reduce \(0, 'data'\) with sum_over"
    refused(optimizer, mesh, (TypeError, ValueError), match)
