"""Layouts find the neurons of every leaf, and refuse what makes no sense."""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from neuron_optax import (
    FLAX,
    HAIKU,
    PER_ENTRY,
    PER_LAYER,
    TORCH,
    Layout,
    Neurons,
    Rule,
    adam_mini,
    scale_by_weight_norm,
)
from neuron_optax.axes import as_layout

FAN_IN = {  # layout, path, shape: the axes that are reduced
    "dense": (FLAX, "Dense_0/kernel", (3, 4), (0,)),
    "bias": (FLAX, "Dense_0/bias", (4,), ()),
    "conv": (FLAX, "Conv_0/kernel", (3, 3, 2, 5), (0, 1, 2)),
    "conv1d": (FLAX, "conv1/kernel", (3, 2, 5), (0, 1)),
    "embedding": (FLAX, "Embed_0/embedding", (7, 2), (1,)),
    "scale": (FLAX, "LayerNorm_0/scale", (3, 5), ()),
    "query": (FLAX, "attn/query/kernel", (5, 3, 4), (0,)),
    "query bias": (FLAX, "attn/query/bias", (3, 4), ()),
    "attention out": (FLAX, "attn/out/kernel", (3, 4, 7), (0, 1)),
    "a Dense named query": (FLAX, "query/kernel", (5, 7), (0,)),
    "scalar": (FLAX, "PReLU_0/negative_slope", (), ()),
    "unknown": (FLAX, "blocks/kernel", (6, 3, 4), (0, 1)),
    "torch linear": (TORCH, "fc/weight", (4, 3), (1,)),
    "torch conv": (TORCH, "conv/weight", (5, 2, 3, 3), (1, 2, 3)),
    "torch embedding": (TORCH, "embed/weight", (7, 2), (1,)),
    "equinox conv bias": (TORCH, "conv/bias", (5, 1, 1), ()),
    "torch norm": (TORCH, "norm1/weight", (3, 5), ()),
    "torch layer_norm": (TORCH, "blocks/0/layer_norm_2/weight", (3, 5), ()),
    "torch rms": (TORCH, "layers/rms/weight", (3, 5), ()),
    "torch attn_ln": (TORCH, "attn_ln/weight", (3, 5), ()),
    "torch ln_f": (TORCH, "transformer/ln_f/weight", (3, 5), ()),
    "no norm": (TORCH, "normalizer/weight", (3, 5), (1,)),
    "no rms": (TORCH, "transforms/weight", (3, 5), (1,)),
    "no ln": (TORCH, "kiln/weight", (3, 5), (1,)),
    "no embedding": (FLAX, "my_embedding", (7, 2), (0,)),
    "stack": (HAIKU, "__layer_stack_no_per_layer/linear/w", (6, 5, 7), (1,)),
    "stacked bias": (HAIKU, "__layer_stack_no_per_layer/linear/b", (6, 7), ()),
    "stacked table": (HAIKU, "__layer_stack_with/embed/embeddings", (6, 9, 5), (2,)),
    "stacked conv": (HAIKU, "__layer_stack/conv2_d/w", (6, 3, 3, 5, 7), (1, 2, 3)),
    "stacked transpose": (
        HAIKU,
        "__layer_stack/conv3_d_transpose/w",
        (6, 3, 3, 3, 7, 5),
        (1, 2, 3, 5),
    ),
    "stack of stacks": (HAIKU, "__layer_stack/a/__layer_stack/w", (2, 6, 5, 7), (2,)),
    "its bias": (HAIKU, "__layer_stack/a/__layer_stack/linear/b", (2, 6, 7), ()),
    "its transpose": (
        HAIKU,
        "__layer_stack/a/__layer_stack/conv1_d_transpose/w",
        (2, 6, 3, 7, 5),
        (2, 4),
    ),
    "entry": (PER_ENTRY, "Dense_0/kernel", (3, 4), ()),
    "layer": (PER_LAYER, "Dense_0/kernel", (3, 4), (0, 1)),
    "layer bias": (PER_LAYER, "Dense_0/bias", (4,), (0,)),
    "one Neurons": (as_layout(Neurons((0,))), "w", (3, 4), (1,)),
    "one Neurons, rank 1": (as_layout(Neurons((0,))), "b", (4,), ()),
    "one Neurons, stack": (as_layout(Neurons((-1,), stack=(0,))), "w", (6, 3, 4), (1,)),
    "all but a stack": (as_layout(Neurons(..., stack=(0,))), "w", (6, 3, 4), ()),
    "muon": (as_layout(optax.contrib.MuonDimensionNumbers()), "w", (3, 4), (0,)),
    "muon batch": (
        as_layout(optax.contrib.MuonDimensionNumbers((1,), -1)),
        "w",
        (6, 3, 4),
        (1,),
    ),
}


@pytest.mark.parametrize(
    ("layout", "path", "shape", "fan_in"), FAN_IN.values(), ids=FAN_IN
)
def test_fan_in_is_what_the_layer_sums_over(layout, path, shape, fan_in):
    assert layout.axes(path, shape).fan_in == fan_in


WRONG = {
    "out of range": (Neurons((2,)), r"a/w.*\(3, 4\).*\[-2, 2\).*output=\(2,\)"),
    "negative": (Neurons((-3,)), r"a/w.*output=\(-3,\)"),
    "repeated": (Neurons((1, -1)), r"a/w.*distinct.*output=\(1, -1\)"),
    "overlapping": (Neurons((0,), stack=(0,)), r"a/w.*stack=\(0,\)"),
    "stack out of range": (Neurons(..., stack=(5,)), r"a/w.*stack=\(5,\)"),
    "muon": (optax.contrib.MuonDimensionNumbers(0, 0), "a/w.*MuonDimensionNumbers"),
    "muon range": (optax.contrib.MuonDimensionNumbers(0, 2), "a/w.*rank 2"),
    "muon reduction": (optax.contrib.MuonDimensionNumbers(-3, 0), "a/w.*rank 2"),
}


NOT_AXES = {
    "name": Neurons(("out",)),
    "float": Neurons((1.0,)),
    "None": Neurons(None),
    "stack": Neurons(stack=(0.5,)),
    "blocks": Neurons(blocks=((1, 2.0),)),
    "muon": optax.contrib.MuonDimensionNumbers("in", 1),
}


@pytest.mark.parametrize("neurons", NOT_AXES.values(), ids=NOT_AXES)
def test_axes_that_are_no_integers_raise_naming_the_leaf(neurons):
    params = {"a": {"w": jnp.ones((3, 4))}}
    with pytest.raises(TypeError, match=r"a/w: axes must be integers, got"):
        adam_mini(0.1, neurons=neurons).init(params)


@pytest.mark.parametrize("blocks", [(1, 2), ((1, 2, 3),), ((1,),)])
def test_blocks_that_are_no_pairs_raise_naming_the_leaf(blocks):
    with pytest.raises(ValueError, match=r"w: blocks must be \(\(axis, count\), ...\)"):
        adam_mini(0.1, neurons=Neurons(blocks=blocks)).init({"w": jnp.ones((3, 4))})


@pytest.mark.parametrize("neurons", [(0,), -1, {"kernel": Neurons()}, lambda path: 0])
def test_what_is_no_layout_is_refused(neurons):
    with pytest.raises(
        TypeError, match=r"Layout, Neurons or MuonDimensionNumbers, got"
    ):
        inspect.unwrap(as_layout)(neurons)


def test_a_fallback_that_gives_no_neurons_raises():
    with pytest.raises(TypeError, match=r"layout fallback: not Neurons, \(0,\)"):
        Layout.__post_init__(
            types.SimpleNamespace(rules=(), fallback=(0,), reduce_over=None)
        )


@pytest.mark.parametrize(("neurons", "message"), WRONG.values(), ids=WRONG)
def test_axes_that_do_not_exist_raise_naming_the_leaf(neurons, message):
    params = {"a": {"w": jnp.ones((3, 4))}}
    with pytest.raises(ValueError, match=message):
        adam_mini(0.1, neurons=neurons).init(params)


def test_a_bad_pattern_raises_at_construction():
    with pytest.raises(ValueError, match=r"layout rule '\('"):
        Layout(rules=(Rule("(", Neurons()),))


def test_the_first_rule_wins_and_override_goes_first():
    layout = FLAX.override({"Dense_1": Neurons((0,)), "Dense": Neurons(...)})
    assert layout.axes("Dense_1/kernel", (3, 4)).fan_in == (1,)
    assert layout.axes("Dense_0/kernel", (3, 4)).fan_in == ()
    assert FLAX.axes("Dense_1/kernel", (3, 4)).fan_in == (0,)


def test_a_layout_is_hashable_and_not_callable():
    assert hash(FLAX) == hash(Layout(FLAX.rules, FLAX.fallback)) and not callable(FLAX)


def test_paths_agree_between_containers():
    params = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    layout = FLAX.override({"^Dense_0/kernel$": Neurons((0,))})
    state = adam_mini(0.1, neurons=layout).init(linen.FrozenDict(params))
    assert optax.tree.get(state, "memory")["Dense_0"]["kernel"].shape == (3, 1)
    boxed = nnx.State({"Dense_0": {"kernel": nnx.Param(jnp.ones((3, 4)))}})
    state = adam_mini(0.1, neurons=layout).init(boxed)
    assert optax.tree.get(state, "memory")["Dense_0"]["kernel"].shape == (3, 1)


def test_names_with_dots_are_paths_too():
    params = {"fc.weight": jnp.ones((4, 3)), "fc.bias": jnp.ones(4)}
    optimizer = scale_by_weight_norm(1.0, neurons=TORCH)
    _, state = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(state.rate["fc.bias"], 1 + 3**0.5, rtol=1e-6)


def test_a_rule_that_gives_no_neurons_raises():
    with pytest.raises(TypeError, match=r"layout rule 'w': not Neurons, \(0,\)"):
        inspect.unwrap(Layout.override)(FLAX, {"w": (0,)})


def test_stacked_copies_are_trained_as_if_alone():
    rng = np.random.default_rng(0)
    tree = lambda: {
        "kernel": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
    }
    params, grads = tree(), tree()
    layout = FLAX.override({"kernel": Neurons((-1,), stack=(0,))})
    options = {"redistribute": True, "bias": "kernel"}
    stacked = adam_mini(0.1, neurons=layout, **options)
    updates, _ = stacked.update(grads, stacked.init(params), params)
    alone = adam_mini(0.1, **options)
    merged, _ = alone.update(grads["kernel"], alone.init(params["kernel"]))
    for copy in range(3):
        part = lambda tree, copy=copy: jax.tree.map(lambda leaf: leaf[copy], tree)
        expected, _ = alone.update(part(grads), alone.init(part(params)))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            part(updates),
            expected,
        )
    # not a tolerance: the wrong axes must be off by more than a percent
    assert not np.allclose(merged, updates["kernel"], rtol=1e-2)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_bias_finds_its_copy_wherever_the_stack_axis_lies(axis):
    kernel = np.random.default_rng(0).normal(size=(4, 3, 4))  # 4 copies, in 3, out 4
    bias = np.ones((4, 4))  # square: sizes do not tell copies from neurons
    moved = {
        "kernel": jnp.asarray(np.moveaxis(kernel, 0, axis)),
        "bias": jnp.asarray(np.moveaxis(bias, 0, axis)),
    }
    output = {0: -1, 1: -1, -1: 1}[axis]
    layout = FLAX.override({"kernel": Neurons((output,), stack=(axis,))})
    optimizer = adam_mini(0.1, neurons=layout, bias="kernel")
    _, state = optimizer.update(moved, optimizer.init(moved))
    rate = optax.tree.get(state, "rate")
    wanted = 1 / np.sqrt(np.mean(np.square(kernel), axis=1))
    np.testing.assert_allclose(np.moveaxis(rate["bias"], axis, 0), wanted, rtol=1e-5)


@pytest.mark.parametrize("wrong", [lambda leaf: (0,), "last", (0,), None])
def test_neurons_of_another_type_raise(wrong):
    with pytest.raises(TypeError, match="neurons must be a Layout"):
        inspect.unwrap(as_layout)(wrong)  # without the type checker of the tests


def test_parts_of_complex_numbers_keep_the_axes_of_their_leaf():
    params = {"query": {"kernel": jnp.ones((4, 2, 3), complex)}}
    params["query"]["bias"] = jnp.ones((2, 3), complex)
    wrap = optax.contrib.split_real_and_imaginary
    state = wrap(adam_mini(0.1, bias="kernel")).init(params)
    memory = optax.tree.get(state, "memory")["query"]
    assert memory["kernel"].real.shape == memory["kernel"].imaginary.shape == (1, 2, 3)
    assert memory["bias"].real.shape == (2, 3)


def test_copies_of_a_bias_are_those_of_its_kernel_also_for_its_own_statistic():
    params = {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}
    louder = jax.tree.map(lambda leaf: leaf.at[1].multiply(100.0), params)
    layout = FLAX.override({"kernel": Neurons(stack=(0,))})
    optimizer = adam_mini(0.1, neurons=layout, redistribute=True)
    _, (state, *_) = optimizer.update(louder, optimizer.init(params))
    np.testing.assert_allclose(state.rate["bias"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(state.rate["kernel"], 1.0, rtol=1e-5)


def test_two_leaves_of_one_path_are_refused():
    params = {"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match="a/b: two leaves have this path"):
        adam_mini(0.1).init(params)


def test_rules_that_are_no_rules_are_refused():
    with pytest.raises(TypeError, match=r"layout rules must be Rule\(pattern"):
        Layout.__post_init__(types.SimpleNamespace(rules=(("w", Neurons()),)))
