"""Inside ``shard_map`` what may be a piece is refused until it is said to be whole."""

import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import neuron_optax
from neuron_optax import FLAX, Neurons, neuron_adagrad
from tests.contract_models import run
from tests.pieces import CUT, SPECS, draws, in_pieces, mesh

__all__ = ["mesh"]  # a fixture


def refused(optimizer, mesh, error, match):
    with pytest.raises(error, match=match):
        run(in_pieces(optimizer, mesh), *draws())


def test_what_may_be_a_piece_is_refused_until_said(mesh):
    refused(
        neuron_adagrad(0.1),
        mesh,
        ValueError,
        r"first/kernel: inside shard_map over .*reduce_over=\(\).*name the mesh axes",
    )


def test_mesh_axes_that_are_not_there_are_refused(mesh):
    layout = FLAX.override({"kernel": Neurons(reduce_over=("rows",))})
    optimizer = neuron_adagrad(0.1, neurons=layout)
    refused(optimizer, mesh, ValueError, "first/kernel: reduce_over must be of")


@pytest.mark.parametrize("said", ["data", 1, ("data", "data"), (1,), ["data"]])
def test_what_is_no_tuple_of_distinct_names_is_refused_at_once(said):
    optimizer = neuron_adagrad(0.1, neurons=Neurons(reduce_over=said))
    with pytest.raises(TypeError, match="kernel: reduce_over must be a tuple"):
        optimizer.init(draws()[0])


def test_a_layout_refuses_to_reduce_twice_over_an_axis():
    with pytest.raises(TypeError, match="layout: reduce_over must be a tuple of dist"):
        FLAX.with_reduce_over(("data", "data"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_bias_cut_unlike_its_kernel_is_refused_in_words(mesh):
    specs = {layer: {**of, "bias": P()} for layer, of in SPECS.items()}
    optimizer = neuron_adagrad(0.1, neurons=CUT, bias="kernel")
    with pytest.raises(ValueError, match=r"first/bias uses .*shard_map cut both alike"):
        run(in_pieces(optimizer, mesh, specs), *draws())


def test_a_mesh_axis_that_cuts_the_neurons_is_not_summed_over(mesh):
    layout = FLAX.with_reduce_over(("data", "model"))
    refused(
        neuron_adagrad(0.1, neurons=layout),
        mesh,
        ValueError,
        r"first/kernel: reduce_over names \['model'\], which cut its neurons",
    )
