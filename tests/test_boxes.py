"""Params in boxes that carry their sharding: the state is sharded as it should be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from neuron_optax import (
    FLAX,
    PER_ENTRY,
    PER_LAYER,
    Neurons,
    adam_mini,
    neuron_adagrad,
)
from tests.sharded import PARAMS, ROWS, WIDTHS, agree, assert_lie, inputs, numbers_of

pytestmark = pytest.mark.slow

every_strategy = pytest.mark.parametrize(("make", "specs"), ROWS)
MESHES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.fixture(params=MESHES.values(), ids=MESHES)
def mesh(request):
    """Set a mesh of eight devices in two rows.

    Yields:
      The mesh.
    """
    mesh = jax.make_mesh((2, 4), ("data", "model"), (request.param,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def matmul(x, kernel, spec):
    """Multiply, and say where the result lies if the mesh asks for it."""
    explicit = jax.sharding.get_abstract_mesh().explicit_axes
    return jnp.einsum("bi,io->bo", x, kernel, out_sharding=spec if explicit else None)


class Network(nnx.Module):
    """Two layers; metadata says how each parameter is sharded."""

    def __init__(self, specs=PARAMS, **metadata):
        rngs = nnx.Rngs(0)
        for n, (name, of) in enumerate(PARAMS.items()):
            sharded = {leaf: {"out_sharding": tuple(spec)} for leaf, spec in of.items()}
            said = sharded if specs else {"kernel": {}, "bias": {}}
            layer = nnx.Linear(
                *WIDTHS[n : n + 2],
                kernel_metadata=said["kernel"] | metadata,
                bias_metadata=said["bias"] | metadata,
                rngs=rngs,
            )
            setattr(self, name, layer)

    def __call__(self, x):
        """Return one row per row of ``x``."""
        hidden = matmul(x, self.first.kernel[...], P("data", "model"))
        hidden = jnp.tanh(hidden + self.first.bias[...][None])
        return (
            matmul(hidden, self.second.kernel[...], P(None, "data"))
            + (self.second.bias[...][None])
        )


def loss_of(model, x):
    return jnp.mean((model(x) - 1) ** 2)


@nnx.jit
def train_step(model, optimizer, x):
    """Take one step, as the guides of Flax write it."""
    loss, gradient = nnx.value_and_grad(loss_of)(model, x)
    optimizer.update(model, gradient)
    return loss


def train(make, x, **network):
    """Train for three steps; return the optimizer, its losses and the params."""
    model = Network(**network)
    optimizer = nnx.Optimizer(model, make(0.01), wrt=nnx.Param)
    losses = [float(train_step(model, optimizer, x)) for _ in range(3)]
    return optimizer, losses, jax.device_get(nnx.to_pure_dict(nnx.state(model)))


@functools.cache
def alone(make):
    """Train without a mesh."""
    _, losses, params = train(make, inputs(), specs=None)
    return losses, params


def boxed_specs(tree):
    """Return what the boxes around numbers say, as a dict."""
    is_box = lambda node: isinstance(node, nnx.Variable)
    said = lambda box: P(*box.get_metadata("out_sharding"))
    return nnx.to_pure_dict(jax.tree.map(said, tree, is_leaf=is_box))


def specs_of(tree):
    """Return how the arrays of a tree lie, as a dict."""
    return jax.tree.map(lambda leaf: leaf.sharding.spec, nnx.to_pure_dict(tree))


@every_strategy
def test_nnx_trains_sharded_and_its_state_lies_as_written_by_hand(make, specs, mesh):
    x = jax.device_put(inputs(), NamedSharding(mesh, P("data", None)))
    optimizer, losses, params = train(make, x)
    numbers = numbers_of(optimizer.opt_state)
    assert numbers
    for tree in numbers:
        assert_lie(boxed_specs(tree), specs)
    before = nnx.Optimizer(Network(), make(0.01), wrt=nnx.Param)
    for tree in numbers_of(before.opt_state):
        assert_lie(specs_of(tree), specs)
    expected, whole = alone(make)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    agree(params, whole)


PEERS = {
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "sm3": optax.sm3(0.1),
    "novograd": optax.novograd(0.1),
}


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_reduced_states_of_optax_do_not_fit_such_boxes(peer, mesh):
    """The reason for adapting the metadata: theirs keeps that of the whole leaf."""
    with pytest.raises((ValueError, AssertionError), match=r"model|data"):
        nnx.Optimizer(Network(), peer, wrt=nnx.Param)


@pytest.mark.parametrize("layout", [PER_ENTRY, PER_LAYER, FLAX])
def test_sharding_of_the_optimizer_goes_before_that_of_the_params(layout, mesh):
    model = Network(optimizer_sharding=(None, "model"))
    optimizer = nnx.Optimizer(
        nnx.State({"kernel": nnx.state(model)["first"]["kernel"]}),
        neuron_adagrad(0.1, neurons=layout),
        wrt=nnx.Param,
    )
    (spec,) = jax.tree.leaves(specs_of(numbers_of(optimizer.opt_state)[0]))
    assert spec == (P(None, None) if layout is PER_LAYER else P(None, "model"))


def test_a_masked_leaf_keeps_its_box(mesh):
    x = jax.device_put(inputs(), NamedSharding(mesh, P("data", None)))
    mask = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    make = lambda rate: optax.chain(
        optax.masked(adam_mini(rate), mask),
        optax.masked(
            optax.set_to_zero(), lambda t: jax.tree.map(lambda leaf: leaf.ndim < 2, t)
        ),
    )
    optimizer, losses, params = train(make, x)
    (memory, _) = numbers_of(optimizer.opt_state)
    said = [box.get_metadata("out_sharding") for box in boxes(memory)]
    assert said == [(None, "model"), (None, "data")] and losses[-1] < losses[0]
    before = nnx.to_pure_dict(nnx.state(Network(), nnx.Param))
    assert (params["first"]["bias"] == before["first"]["bias"]).all()


def boxes(tree):
    is_box = lambda node: isinstance(node, nnx.Variable)
    nodes = jax.tree.leaves(tree, is_leaf=is_box)
    return [node for node in nodes if jax.tree.leaves(node)]


HEADS = {  # count of heads, spec of the kernel: spec of its one number per head
    "cut evenly": (4, P(None, "model"), P(None, "model", None)),
    "cut elsewhere": (4, P("model", None), P(None, None, None)),
    "too few": (2, P(None, "model"), P(None, None, None)),
}


@pytest.mark.parametrize(("count", "spec", "expected"), HEADS.values(), ids=HEADS)
def test_blocks_keep_the_mesh_axes_that_cut_between_them(count, spec, expected):
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
    layout = FLAX.override({"kernel": Neurons(blocks=((1, count),))})
    with jax.set_mesh(mesh):
        kernel = nnx.Param(jnp.ones((8, 16)), out_sharding=tuple(spec))
        optimizer = adam_mini(0.1, neurons=layout)
        state = optimizer.init(nnx.State({"kernel": kernel}))
        (tree, _) = numbers_of(state)
        assert boxed_specs(tree)["kernel"] == expected
        assert tree["kernel"].shape == (1, count, 1)


def test_blocks_cut_by_an_explicit_sharding_are_refused():
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        kernel = jax.device_put(
            jnp.ones((8, 16)), NamedSharding(mesh, P(None, "model"))
        )
        whole = adam_mini(0.1, neurons=Neurons(blocks=((1, 8),)))
        state = whole.init({"kernel": kernel})
        updates, after = whole.update({"kernel": kernel}, state)
        assert jax.typeof(updates["kernel"]) == jax.typeof(kernel)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        cut = adam_mini(0.1, neurons=Neurons(blocks=((1, 2),)))
        with pytest.raises(
            ValueError, match=r"kernel: 2 blocks of axis 1.*\(8, 16\).*cut"
        ):
            cut.init({"kernel": kernel})


SHARDINGS = {  # of a leaf (4, 8): what its number per neuron (1, 8) says
    "names": (("data", "model"), (None, "model")),
    "short": (("data",), (None, None)),
    "several": ((None, ("data", "model")), (None, ("data", "model"))),
    "spec": (P("data", "model"), P(None, "model")),
}


@pytest.mark.parametrize(("said", "expected"), SHARDINGS.values(), ids=SHARDINGS)
def test_every_way_to_say_a_sharding_is_adapted(said, expected, mesh):
    make = lambda sharding: nnx.Param(jnp.ones((4, 8)), out_sharding=sharding)
    (memory, _) = numbers_of(adam_mini(0.1).init(nnx.State({"kernel": make(said)})))
    assert memory["kernel"].get_metadata("out_sharding") == expected


def test_a_sharding_that_names_its_mesh_and_memory_keeps_them():
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
    kind = "unpinned_host"
    said = NamedSharding(mesh, P("data", "model"), memory_kind=kind)
    kernel = nnx.Param(jnp.ones((4, 8)), out_sharding=said)
    (memory, _) = numbers_of(adam_mini(0.1).init(nnx.State({"kernel": kernel})))
    adapted = memory["kernel"].get_metadata("out_sharding")
    assert adapted == NamedSharding(mesh, P(None, "model"), memory_kind=kind)
