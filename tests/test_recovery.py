"""Bad steps, zeros and pieces: what strategies of whole matrices must survive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import neuron_optax
from neuron_optax import Neurons


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.cache
def compiled(make, rate):
    """Build an optimizer that is compiled once for all tests."""
    optimizer = make(rate)
    return optimizer._replace(update=jax.jit(optimizer.update))


def trajectory(optimizer, params, gradients):
    """Return params and state after every step."""
    state, trail = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        trail.append((params, state))
    return trail


MATRICES = {
    "normuon": neuron_optax.normuon,
    "namo_d": neuron_optax.namo_d,
    "muown": neuron_optax.muown,
    "apollo": neuron_optax.apollo,
}
every_matrix = pytest.mark.parametrize("make", MATRICES.values(), ids=MATRICES)


@every_matrix
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e19, 3e38])
def test_one_bad_step_is_survived(make, bad):
    params = {"kernel": normal((2, 64))}
    good = {"kernel": normal((2, 64), seed=1)}
    broken = {"kernel": good["kernel"].at[:, 0].set(bad)}
    everywhere = {"kernel": jnp.full((2, 64), bad)}
    for step in (broken, everywhere):
        *_, (before, _), (after, state) = trajectory(
            compiled(make, 0.01), params, [good, step, good, good]
        )
        for leaf in jax.tree.leaves((after, state)):
            assert np.isfinite(leaf).all()
        moved = np.abs(after["kernel"] - before["kernel"])
        assert moved.max() > 0  # 1e19 is finite, and fills a matrix for some steps


@every_matrix
def test_a_layer_without_gradient_at_first_learns_later(make):
    params = {"kernel": normal((6, 4))}
    zero, good = {"kernel": jnp.zeros((6, 4))}, {"kernel": normal((6, 4), seed=1)}
    *_, (late, _) = trajectory(compiled(make, 0.01), params, [zero, zero, *[good] * 5])
    *_, (early, _) = trajectory(compiled(make, 0.01), params, [good] * 5)
    moved = [np.abs(p["kernel"] - params["kernel"]).max() for p in (late, early)]
    assert moved[0] > moved[1] / 10


def test_magnitudes_stay_those_of_the_weights():
    params = {"kernel": normal((6, 4))}
    good = {"kernel": normal((6, 4), seed=1)}
    broken = {"kernel": good["kernel"].at[0, 0].set(jnp.nan)}
    for after, state in trajectory(
        neuron_optax.muown(0.1), params, [good, broken, good, broken, good]
    ):
        sizes = jnp.linalg.norm(after["kernel"], axis=0)
        magnitude = jnp.abs(optax.tree.get(state, "magnitude")["kernel"][0])
        np.testing.assert_allclose(sizes, magnitude, rtol=1e-5)


def test_weights_that_decay_to_zero_stay_finite():
    params = {"kernel": normal((6, 4))}
    steps = trajectory(
        neuron_optax.muown(0.5, weight_decay=2.0),
        params,
        [{"kernel": normal((6, 4))}] * 4,
    )
    assert all(np.isfinite(p["kernel"]).all() for p, _ in steps)


def test_blocks_of_neurons_have_the_same_inputs():
    per_head = neuron_optax.namo_d(0.1, neurons=Neurons(blocks=((-1, 2),)))
    state = per_head.init({"kernel": normal((5, 6))})
    assert optax.tree.get(state, "memory")["kernel"].shape == (5, 1)


def test_a_touched_row_decays_although_its_step_underflows():
    table = {"embedding": jnp.ones((2, 3), jnp.float16)}
    grads = {"embedding": jnp.array([[1e-6] * 3, [0.0] * 3], jnp.float16)}
    optimizer = neuron_optax.rowwise_adagrad(0.5, 1e6, weight_decay=0.5)
    update, _ = optimizer.update(grads, optimizer.init(table), table)
    np.testing.assert_array_equal(update["embedding"], [[-0.25] * 3, [0.0] * 3])


def test_only_what_has_two_axes_in_a_layer_decays_in_slim_adam():
    stacked = {"kernel": normal((6, 3, 2)), "bias": normal((6, 2))}
    layout = neuron_optax.SLIM_ADAM.override({"kernel": Neurons((1,), stack=(0,))})
    make = lambda decay: neuron_optax.slim_adam(0.1, weight_decay=decay, neurons=layout)
    with_decay, without = (
        optimizer.update(stacked, optimizer.init(stacked), stacked)[0]
        for optimizer in (make(0.5), make(0.0))
    )
    np.testing.assert_array_equal(with_decay["bias"], without["bias"])
    assert np.abs(with_decay["kernel"] - without["kernel"]).min() > 0


WHOLE = {
    **MATRICES,
    "orthogonalize": lambda rate, **options: neuron_optax.orthogonalize(**options),
    "nero": neuron_optax.nero,
    "aspect": lambda rate, **options: neuron_optax.neuron_sgd(
        rate, shape_factor="aspect", **options
    ),
    "preserve_norm": lambda rate, **options: neuron_optax.preserve_norm(
        optax.identity(), **options
    ),
}


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_a_piece_of_a_matrix_is_refused(make):
    optimizer = make(0.1, neurons=Neurons(reduce_over=()))
    params = {"kernel": normal((4, 8))}
    mesh = jax.make_mesh((8,), ("model",), (jax.sharding.AxisType.Auto,))
    piece = jax.shard_map(
        lambda g, p: optimizer.update(g, optimizer.init(p), p)[0],
        mesh=mesh,
        in_specs=P(None, "model"),
        out_specs=P(None, "model"),
        check_vma=False,
    )
    with pytest.raises(NotImplementedError, match="may be a piece of its"):
        piece(params, params)


def test_partitions_mark_what_may_be_a_stack(capsys):
    scanned = {"layers": {"kernel": jnp.ones((6, 3, 2))}}
    for layout in (neuron_optax.ADAM_MINI, neuron_optax.SLIM_ADAM):
        neuron_optax.describe(scanned, layout)
        assert "check" in capsys.readouterr().out


def test_the_number_of_iterations_may_be_injected():
    params = {"kernel": normal((6, 4))}
    plain, injected = (
        trajectory(make(learning_rate=0.1), params, [params] * 3)[-1][0]["kernel"]
        for make in (
            neuron_optax.normuon,
            optax.inject_hyperparams(neuron_optax.normuon),
        )
    )
    np.testing.assert_allclose(plain, injected, rtol=1e-4, atol=1e-6)
