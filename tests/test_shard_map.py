"""Inside ``shard_map`` a statistic is that of the whole fan-in, whatever its pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import neuron_optax
from neuron_optax import FLAX, PER_LAYER, Neurons, neuron_adagrad
from tests.contract_models import ROUNDING, contenders, normal, run
from tests.pieces import CUT, NAMED, SPECS, apart, draws, in_pieces, jitted, mesh

__all__ = ["mesh"]  # a fixture
pytestmark = pytest.mark.slow

WHOLE_ONLY = "redistribute", "per_layer"  # they see all neurons of a layer
ROWS = [
    row
    for row in contenders(CUT)
    if row.id in {known.id for known in ROUNDING}
    and not any(part in row.id for part in WHOLE_ONLY)
]
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # the order of summation, in float32


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
@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
def test_changes_of_pieces_are_those_of_the_whole(change, check_vma, mesh):
    assert apart(in_pieces(change, mesh, check_vma=check_vma), change) < 1e-6


def broken(leaf):
    """Break one entry of the third neuron."""
    return leaf.at[0, 2].set(jnp.nan) if leaf.ndim > 1 else leaf


@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("name", ["finite", "neuron_adagrad"])
def test_a_neuron_broken_in_one_piece_rests_in_all(name, check_vma, mesh):
    change = CHANGES | {"neuron_adagrad": neuron_adagrad(0.1, neurons=CUT)}
    pieces = in_pieces(change[name], mesh, check_vma=check_vma)
    assert apart(pieces, change[name], broken) < 1e-6
    assert not apart(change["clip"], change["clip"], broken) < 1e-6  # NaN shows


def test_derivatives_reach_through_the_projection_of_pieces(mesh):
    change = CHANGES["project"]
    params, (gradient, *_) = draws()

    def slope(optimizer):
        def total(gradient):
            update, _ = optimizer.update(gradient, optimizer.init(params), params)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(update))

        return jax.jit(jax.grad(total))(gradient)

    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(compare, slope(in_pieces(change, mesh)), slope(change))


def test_where_only_some_mesh_axes_are_manual_the_others_do_not_count(mesh):
    optimizer = neuron_adagrad(0.1, neurons=CUT)
    params, (gradient, *_) = draws()
    rows, whole = {"kernel": P("data"), "bias": P()}, {"kernel": P(), "bias": P()}
    specs = {"first": rows, "second": whole, "third": rows}
    layout = CUT.override({"second/kernel": Neurons(reduce_over=("model",))})
    pieces = neuron_adagrad(0.1, neurons=layout)
    lie = jax.tree.map(lambda _: P(), jax.eval_shape(optimizer.init, params))
    update = jax.shard_map(
        lambda g, s: pieces.update(g, s)[0],
        mesh=mesh,
        in_specs=(specs, lie),
        out_specs=specs,
        axis_names={"data"},
    )
    found = jax.jit(update)(gradient, optimizer.init(params))
    expected, _ = optimizer.update(gradient, optimizer.init(params))
    compare = lambda a, b: np.testing.assert_allclose(a, b, **CLOSE)
    jax.tree.map(compare, found, expected)


def test_an_init_among_pieces_begins_a_scan_over_pieces(mesh):
    optimizer = neuron_adagrad(0.1, neurons=CUT)
    params, gradients = draws()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    scanned = jax.tree.map(lambda spec: P(None, *spec), SPECS)

    def steps(params, gradients):
        def step(state, gradient):
            update, state = optimizer.update(gradient, state)
            return state, update

        return jax.lax.scan(step, optimizer.init(params), gradients)[1]

    cut = jax.shard_map(steps, mesh=mesh, in_specs=(SPECS, scanned), out_specs=scanned)
    compare = lambda a, b: np.testing.assert_allclose(a, b, **CLOSE)
    jax.tree.map(compare, jax.jit(cut)(params, stacked), steps(params, stacked))


def test_what_is_known_to_be_whole_needs_no_more(mesh):
    params, (gradient, *_) = draws()
    layout = FLAX.with_reduce_over(())
    for optimizer in (
        neuron_optax.nero(0.1, neurons=layout),
        neuron_optax.normuon(0.1, neurons=layout),
        neuron_adagrad(0.1, neurons=layout, redistribute=True),
    ):
        state = optimizer.init(params)
        update = lambda g, s, p, of=optimizer: of.update(g, s, p)[0]
        whole = jax.shard_map(update, mesh=mesh, in_specs=P(), out_specs=P())
        found, expected = (
            jax.jit(of)(gradient, state, params) for of in (whole, update)
        )
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        jax.tree.map(compare, found, expected)


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
        neuron_optax.max_over: jnp.max,
    }.items():
        expected = theirs(whole, axis=axes, keepdims=True)
        np.testing.assert_allclose(pieces(ours), expected, rtol=1e-5)
