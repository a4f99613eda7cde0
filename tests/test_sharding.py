"""Specs of a state, derived from those of the params, against specs by hand."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import neuron_optax
from neuron_optax import FLAX, Neurons, adam_mini, apollo, neuron_adagrad
from neuron_optax.sharding import state_specs
from tests.sharded import NEURON, PARAMS, ROWS, WIDTHS, assert_lie, numbers_of

MESH = AbstractMesh((2, 4), ("data", "model"))
SHAPES = {
    name: {
        "kernel": jax.ShapeDtypeStruct(WIDTHS[n : n + 2], jnp.float32),
        "bias": jax.ShapeDtypeStruct(WIDTHS[n + 1 : n + 2], jnp.float32),
    }
    for n, name in enumerate(PARAMS)
}


def padded(specs):
    """Return specs with an entry for each axis of the params' leaves."""
    fill = lambda spec, leaf: P(*spec, *[None] * (len(leaf.shape) - len(spec)))
    return {
        layer: {
            name: spec if isinstance(spec, optax.MaskedNode) else fill(spec, leaf)
            for name, (spec, leaf) in pairs(of, SHAPES[layer])
        }
        for layer, of in specs.items()
    }


def pairs(specs, leaves):
    return [(name, (spec, leaves[name])) for name, spec in specs.items()]


@pytest.mark.filterwarnings("ignore:state_specs replicates")  # of APOLLO alone
@pytest.mark.parametrize(("make", "specs"), ROWS)
def test_numbers_per_neuron_lie_as_written_by_hand(make, specs):
    for tree in numbers_of(state_specs(make(0.01), SHAPES, PARAMS)):
        assert_lie(padded(tree), specs)


KERNELS = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
BY_PATH = lambda tree: jax.tree_util.tree_map_with_path(
    lambda path, _: "ours" if path[-1].key == "kernel" else "theirs", tree
)
MINI = adam_mini(0.1)
WRAPPERS = {
    "chain": lambda of: optax.chain(optax.clip_by_global_norm(1.0), of, optax.ema(0.9)),
    "masked": lambda of: optax.masked(of, KERNELS),
    "partition": lambda of: optax.partition(
        {"ours": of, "theirs": optax.adam(0.1)}, BY_PATH
    ),
    "multi_steps": lambda of: optax.MultiSteps(of, 3),
    "apply_if_finite": lambda of: optax.apply_if_finite(of, 3),
    "schedule_free": lambda of: optax.contrib.schedule_free(of, 0.1),
    "noise": lambda of: optax.chain(of, optax.add_noise(0.1, 0.5, 0)),
    "schedule": lambda of: optax.chain(of, optax.scale_by_schedule(lambda t: t)),
}


def expected(leaf_shape, layer, name):
    """Return by hand the spec of a leaf of a state that was made of a parameter."""
    whole, number = SHAPES[layer][name].shape, NEURON[layer][name]
    return PARAMS[layer][name] if leaf_shape == whole else number


def place(path):
    """Return the layer and the name of the parameter that a path ends with."""
    *_, layer, name = (str(getattr(key, "key", "")) for key in ("", *path))
    return (layer, name) if layer in PARAMS else None


def assert_by_hand(optimizer):
    specs = state_specs(optimizer, SHAPES, PARAMS)
    state = jax.eval_shape(optimizer.init, SHAPES)
    assert jax.tree.structure(specs) == jax.tree.structure(state)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), spec in zip(leaves, jax.tree.leaves(specs), strict=True):
        where = place(path)
        wanted = expected(leaf.shape, *where) if where else P()
        assert spec == P(*wanted[: len(spec)]), path
        assert not any(wanted[len(spec) :]), path


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_specs_are_exact_in_every_wrapper(wrap):
    assert_by_hand(wrap(MINI))


def test_specs_are_exact_with_injected_hyperparameters():
    assert_by_hand(optax.inject_hyperparams(adam_mini)(lambda step: 0.1))


def factored():
    """Return a transformation whose state drops an axis, as Adafactor's does."""
    without = lambda axis: (
        lambda leaf: jnp.zeros_like(jax.eval_shape(lambda x: jnp.sum(x, axis), leaf))
    )
    init = lambda params: {
        "rows": jax.tree.map(without(1), params),
        "columns": jax.tree.map(without(0), params),
    }
    return optax.GradientTransformation(init, lambda updates, state, params: None)


def test_the_axes_of_a_square_kernel_are_told_apart_without_their_lengths():
    params = {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    specs = state_specs(factored(), params, {"kernel": P("data", "model")})
    assert specs["rows"]["kernel"] == P("data")
    assert specs["columns"]["kernel"] == P("model")
    swapped = state_specs(factored(), params, {"kernel": P("model", "data")})
    assert swapped["rows"]["kernel"] == P("model")


def test_a_jitted_init_puts_every_leaf_where_the_specs_say():
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
    shardings = state_specs(MINI, SHAPES, PARAMS, mesh)
    params = jax.tree.map(
        lambda leaf, spec: jnp.ones(leaf.shape, device=NamedSharding(mesh, spec)),
        SHAPES,
        PARAMS,
    )
    state = jax.jit(MINI.init, out_shardings=shardings)(params)
    memory = state[0].memory["first"]["kernel"]
    assert memory.sharding.spec == P(None, "model")
    assert memory.addressable_shards[0].data.shape == (1, 4)
    without = jax.jit(MINI.init)(params)[0].memory["first"]["kernel"]
    assert not isinstance(without.sharding, NamedSharding)  # on the first device


def test_a_prefix_and_shardings_say_it_for_the_leaves_below():
    said = NamedSharding(MESH, P("data"))
    specs = state_specs(MINI, SHAPES, {"first": P(), "second": P("data")})
    assert specs[0].direction.ema["second"]["kernel"] == P("data")
    assert specs[0].memory["second"]["kernel"] == P()
    found = state_specs(MINI, SHAPES, said)[0].direction.ema["first"]["kernel"]
    assert found == NamedSharding(MESH, P("data"))


BLOCKS = {  # count, mesh: spec of one number per head of a kernel P(None, "model")
    "divided": (4, MESH, P(None, "model")),
    "not divided": (2, MESH, P()),
    "not known": (4, None, P()),
}


@pytest.mark.parametrize(("count", "mesh", "wanted"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_keep_the_mesh_axes_that_divide_their_count(count, mesh, wanted):
    layout = FLAX.override({"kernel": Neurons(blocks=((1, count),))})
    params = {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32)}
    find = lambda: state_specs(
        neuron_adagrad(0.1, neurons=layout), params, P(None, "model"), mesh
    )
    if wanted == P():
        with pytest.warns(UserWarning, match=r"axes \[1\] of 0/memory/kernel \(1, \d"):
            found = find()[0].memory["kernel"]
    else:
        found = find()[0].memory["kernel"]
    assert (found if mesh is None else found.spec) == wanted


def zeros_like_nothing(params):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)


def needs_help(params):
    return jax.tree.map(lambda leaf: leaf @ leaf.T, params)


def test_a_leaf_that_needs_help_does_not_hide_those_beside_it():
    init = lambda params: {"product": needs_help(params), "copy": params}
    other = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    params = {
        "kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32),
        "bias": jax.ShapeDtypeStruct((16,), jnp.float32),
    }
    helped = optax.chain(optax.trace(0.9), optax.masked(other, KERNELS))
    said = {"kernel": P("data", "model"), "bias": P("model")}
    with pytest.warns(UserWarning, match=r"axes \[0, 1\] of 1/.*product/kernel"):
        specs = state_specs(helped, params, said)
    assert specs[0].trace["bias"] == P("model")


UNKNOWN = {"zeros": zeros_like_nothing, "product": needs_help}


@pytest.mark.parametrize("init", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_decided_is_replicated_and_reported(init):
    other = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    params = {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32)}
    with pytest.warns(UserWarning, match=r"axes \[0, 1\] of kernel \(8, "):
        assert state_specs(other, params, P("data", "model"))["kernel"] == P()


def test_moments_of_a_projection_are_replicated_and_reported():
    with pytest.warns(UserWarning, match=r"mu/first/kernel \(1, 2, 16\)"):
        specs = state_specs(apollo(0.1, rank=2), SHAPES, PARAMS)
    assert optax.tree.get(specs, "ApolloState").mu["first"]["kernel"] == P()


def test_nothing_is_reported_where_all_is_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state_specs(neuron_optax.nero(0.1), SHAPES, PARAMS, MESH)


BAD = {
    "rank": (P("data", None, "model"), MESH, r"bias: .*at most 1 axes for .*\(16,\)"),
    "free": (P(P.UNCONSTRAINED), MESH, r"bias: .*PartitionSpec of at most 1"),
    "unknown": (P("rows"), MESH, r"bias: 'rows' in .* must be of \{'data': 2"),
    "divided": (P(("data", "model")), AbstractMesh((3, 4), ("data", "model")), "16"),
    "twice": (P(("data", "data")), None, r"bias: a mesh axis may cut one axis"),
    "none": (None, MESH, r"bias: .*PartitionSpec .*got None"),
    "no spec": ("data", MESH, r"bias: param_specs must have a PartitionSpec"),
}


@pytest.mark.parametrize(("spec", "mesh", "message"), BAD.values(), ids=BAD)
def test_a_bad_spec_is_refused_by_its_leaf(spec, mesh, message):
    specs = {**PARAMS, "first": {"kernel": P(), "bias": spec}}
    with pytest.raises(ValueError, match=message):
        state_specs(MINI, SHAPES, specs, mesh)


def test_shardings_on_two_meshes_are_refused():
    meshes = MESH, AbstractMesh((4, 2), ("data", "model"))
    first, second = (NamedSharding(mesh, P()) for mesh in meshes)
    with pytest.raises(ValueError, match="must lie on one mesh"):
        state_specs(MINI, SHAPES, {"first": first, "second": second})


BOXED = {
    "bare": lambda of: of,
    "masked": lambda of: optax.masked(of, KERNELS),
    "partition": lambda of: optax.partition(
        {"ours": of}, lambda tree: jax.tree.map(lambda _: "ours", tree)
    ),
}


@pytest.mark.parametrize("said", [None, ("data", "model")])
@pytest.mark.parametrize("wrap", BOXED.values(), ids=BOXED)
def test_the_specs_of_boxed_params_have_the_structure_of_their_state(wrap, said):
    nnx = pytest.importorskip("flax.nnx")
    kernel = np.ones((8, 16), np.float32)
    mesh = jax.make_mesh((2, 4), ("data", "model"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        params = nnx.State({"kernel": nnx.Param(kernel, out_sharding=said)})
    optimizer = wrap(MINI)
    specs = state_specs(optimizer, params, P("data", "model"))
    state = jax.eval_shape(optimizer.init, params)
    assert jax.tree.structure(specs) == jax.tree.structure(state)
    memory = optax.tree.get(specs, "NeuronState").memory["kernel"]
    assert jax.tree.leaves(memory) == [P(None, "model")]


def test_python_numbers_are_params_too():
    params = {"kernel": np.ones((8, 16), np.float32), "scale": 2.0}
    specs = state_specs(optax.adam(0.1), params, {"kernel": P("data"), "scale": P()})
    assert specs[0].mu == {"kernel": P("data"), "scale": P()}
