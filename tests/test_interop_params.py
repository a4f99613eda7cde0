"""Whole models of torch are converted, and what is left or open is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from flax.core import FrozenDict

torch = pytest.importorskip("torch")
eqx = pytest.importorskip("equinox")

from neuron_optax.interop import params_from_torch, params_to_torch  # noqa: E402
from tests.interop_models import CASES  # noqa: E402
from tests.interop_twins import drawn, forward, without_reset_bias  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")
TOLERANCE = 1e-12  # float64 on both sides: only the order of summation differs


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float64)


class Model(torch.nn.Module):
    """Named layers in containers, a tied head and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.place = torch.nn.Parameter(torch.zeros(3, 4))
        layers = torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.LayerNorm(4)
        self.encoder = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        """Return logits."""
        return self.head(self.encoder(self.embed(tokens) + self.place))


class Twin(linen.Module):
    """The model, with names of its own."""

    @linen.compact
    def __call__(self, tokens):
        """Return logits."""
        said = {"param_dtype": jnp.float64}
        embed = linen.Embed(5, 4, name="table", **said)
        zeros = linen.initializers.zeros_init()
        place = self.param("place", zeros, (3, 4), jnp.float64)
        x = jnp.tanh(
            linen.Dense(4, name="layer_0", **said)(embed(tokens) + place[None])
        )
        return embed.attend(linen.LayerNorm(1e-5, name="layer_2", **said)(x))


NAMES = {
    "embed": "table",
    "place": "place",
    "encoder.0": "layer_0",
    "encoder.2": "layer_2",
}
TOKENS = np.array([[0, 1, 4], [2, 2, 3]])


def test_a_model_with_tied_weights_and_its_own_parameter_is_converted():
    module, twin = drawn(Model()), Twin()
    like = jax.eval_shape(twin.init, jax.random.key(0), TOKENS)
    for tree in (like, like["params"], FrozenDict(like)):
        params = params_from_torch(module, tree, NAMES)
        back = params_to_torch(params, drawn(Model()), NAMES)
        for key, tensor in module.state_dict().items():
            np.testing.assert_array_equal(back[key], tensor)
    actual = twin.apply(
        {"params": params_from_torch(module, like["params"], NAMES)}, TOKENS
    )
    np.testing.assert_allclose(actual, forward(module, [TOKENS]), TOLERANCE, TOLERANCE)


def test_tied_weights_whose_leaves_differ_do_not_go_back():
    module = drawn(Model())
    like = {"table": {"embedding": shape(5, 4)}, "head": {"kernel": shape(4, 5)}}
    like |= {"place": shape(3, 4), "layer_0": {"kernel": shape(4, 4), "bias": shape(4)}}
    like |= {"layer_2": {"scale": shape(4), "bias": shape(4)}}
    params = params_from_torch(module, like, NAMES)
    assert params_to_torch(params, module, NAMES).keys() == module.state_dict().keys()
    params["head"]["kernel"] += 1
    with pytest.raises(ValueError, match=r"head.weight is embed.weight in torch, but"):
        params_to_torch(params, module, NAMES)


def test_a_layer_that_torch_uses_twice_has_one_leaf_or_two():
    layer = torch.nn.Linear(2, 2)
    module = drawn(torch.nn.Sequential(layer, torch.nn.Tanh(), layer))
    one = {"kernel": shape(2, 2), "bias": shape(2)}
    for like in ({"0": one}, {"2": one}, {"0": one, "2": one}):
        back = params_to_torch(params_from_torch(module, like), module)
        torch.testing.assert_close(back, module.state_dict(), rtol=0, atol=0)


def test_boxes_of_linen_keep_their_names():
    kernel = linen.with_partitioning(linen.initializers.zeros_init(), ("in", "out"))
    model = linen.Dense(2, kernel_init=kernel, param_dtype=jnp.float64)
    like = jax.eval_shape(model.init, jax.random.key(0), np.ones((1, 3)))
    module = drawn(torch.nn.Linear(3, 2))
    params = params_from_torch(module, like)
    assert params["params"]["kernel"].names == ("in", "out")
    back = params_to_torch(params, module)
    torch.testing.assert_close(back, module.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="kernel: params must be arrays"):
        params_to_torch(like, module)


def test_names_of_a_module_apply_to_what_is_in_it():
    module = drawn(torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 3))))
    like = {"encoder": {"0": {"kernel": shape(2, 3), "bias": shape(3)}}}
    params = params_from_torch(module, like, {"0": "encoder"})
    np.testing.assert_array_equal(
        params["encoder"]["0"]["kernel"], module[0][0].weight.detach().numpy().T
    )
    params_from_torch(module, like["encoder"]["0"], {"0.0": ""})
    with pytest.raises(ValueError, match=r"torch has no module '1', but \['0.0'"):
        params_from_torch(module, like, {"0": "encoder", "1": "other"})
    with pytest.raises(ValueError, match=r"torch has no module '0.0.bias', but"):
        params_from_torch(module, like, {"0": "encoder", "0.0.bias": "other"})


def test_a_linear_layer_fills_kernels_with_several_axes():
    module = drawn(torch.nn.Linear(6, 20))
    like = {"out": {"kernel": shape(2, 3, 4, 5), "bias": shape(4, 5)}}
    params = params_from_torch(module, like, {"": "out"})["out"]
    x = np.random.default_rng(0).standard_normal((7, 2, 3))
    actual = jnp.einsum("bij,ijkl->bkl", x, params["kernel"]) + params["bias"][None]
    expected = forward(module, [x.reshape(7, 6)]).reshape(7, 4, 5)
    np.testing.assert_allclose(actual, expected, TOLERANCE, TOLERANCE)
    like["out"]["kernel"] = shape(4, 5, 2, 3)
    with pytest.raises(ValueError, match=r"weight of shape \(20, 6\) fits a leaf of"):
        params_from_torch(module, like, {"": "out"})
    for one in ((6, 4, 5), (1, 6, 4, 5)):
        params_from_torch(module, {"kernel": shape(*one), "bias": shape(4, 5)})
    square, said = torch.nn.Linear(6, 6, bias=False), r"6 inputs on .*\(H, W, C\)"
    for layer, several in ((module, (2, 3, 4, 5)), (square, (2, 3, 6))):
        with pytest.raises(ValueError, match=said):
            params_from_torch(layer, {"kernel": shape(*several), "bias": shape(4, 5)})


class Flattened(linen.Module):
    """A convolution, flattened as it comes or as torch has it, and a linear layer."""

    channels_first: bool

    @linen.compact
    def __call__(self, x):
        """Return the outputs of images (N, H, W, C)."""
        said = {"param_dtype": jnp.float64}
        x = linen.Conv(2, (2, 2), padding="VALID", name="0", **said)(x)
        x = x.transpose(0, 3, 1, 2) if self.channels_first else x
        return linen.Dense(3, name="2", **said)(x.reshape(len(x), -1))


def test_what_follows_a_flattened_convolution_needs_its_channels_first():
    layers = torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten(), torch.nn.Linear(12, 3)
    module, x = drawn(torch.nn.Sequential(*layers)), np.arange(24.0).reshape(2, 1, 3, 4)
    expected, images = forward(module, [x]), np.moveaxis(x, 1, -1)
    like = jax.eval_shape(Flattened(True).init, jax.random.key(0), images)
    params = params_from_torch(module, like)
    actual = Flattened(True).apply(params, images)
    np.testing.assert_allclose(actual, expected, TOLERANCE, TOLERANCE)
    assert not np.allclose(Flattened(False).apply(params, images), expected, 1e-3)


LINEAR = {"kernel": shape(3, 2), "bias": shape(2)}


class Masked(torch.nn.Module):
    """A layer and a mask that JAX makes anew."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("mask", torch.ones(2, 2).tril())


def test_a_tensor_that_jax_has_none_for_is_said_and_stays():
    module, like = drawn(Masked()), {"linear": LINEAR}
    with pytest.raises(ValueError, match=r"mask \(not known\).*by its own name.*None"):
        params_from_torch(module, like)
    for names in ({"mask": ""}, {"mask": "mask"}):
        with pytest.raises(ValueError, match=rf"mask \(for '{names['mask']}'\)"):
            params_from_torch(module, like, names)
    with pytest.raises(ValueError, match="'linear' is none of"):
        params_from_torch(module, like, {"linear": None})
    params = params_from_torch(module, like, {"mask": None})
    other = drawn(Masked())
    other.mask += 1
    back = params_to_torch(params, other, {"mask": None})
    torch.testing.assert_close(back, dict(module.state_dict(), mask=other.mask))


def test_a_tied_tensor_that_is_left_out_stays_tied():
    module = drawn(torch.nn.Sequential(*[torch.nn.Linear(2, 2, False)] * 2))
    params = {"0": {"kernel": jnp.ones((2, 2))}}
    back = params_to_torch(params, module, {"1.weight": None})
    assert torch.equal(back["1.weight"], torch.ones(2, 2).double())


def test_a_parameter_that_is_a_whole_tree_has_no_path():
    module = torch.nn.ParameterDict({"x": torch.arange(3.0)})
    leaf = params_from_torch(module, shape(3), {"x": ""})
    np.testing.assert_array_equal(leaf, [0, 1, 2])
    assert params_to_torch(leaf + 1, module, {"x": ""})["x"].tolist() == [1, 2, 3]


def test_tied_weights_that_are_not_numbers_are_equal():
    layer = drawn(torch.nn.Linear(2, 2, False))
    layer.weight.data[0] = torch.nan
    module = torch.nn.Sequential(layer, torch.nn.Tanh(), layer)
    like = {name: {"kernel": shape(2, 2)} for name in "02"}
    params = params_from_torch(module, like)
    assert params_to_torch(params, module)["2.weight"].isnan().any()
    params["2"]["kernel"] += 1
    with pytest.raises(ValueError, match=r"2.weight is 0.weight in torch, but"):
        params_to_torch(params, module)


def test_layers_of_a_recurrent_network_are_cells_of_their_own():
    module = drawn(torch.nn.LSTM(3, 2, num_layers=2, bidirectional=True))
    sizes = {"l0": 3, "l0_reverse": 3, "l1": 4, "l1_reverse": 4}
    cells = {
        name: {"weight_ih": shape(8, i), "weight_hh": shape(8, 2), "bias": shape(8)}
        for name, i in sizes.items()
    }
    params = params_from_torch(module, cells)
    deep = module.weight_ih_l1_reverse.detach().numpy()
    np.testing.assert_array_equal(params["l1_reverse"]["weight_ih"], deep)
    assert params_to_torch(params, module).keys() == module.state_dict().keys()


def test_a_state_dict_is_enough_for_layers_that_it_tells_apart():
    cases = [CASES[name](4, 4) for name in ("linear", "embedding", "lstm", "gru")]
    for case in [*cases, CASES["layer_norm"](4, 4), CASES["batch_norm"](4, 4)]:
        module = drawn(case.module)
        for library, twin in case.twins.items():
            without_reset_bias(library, module)
            whole = params_from_torch(module, twin.like, **twin.said)
            tensors = module.state_dict()
            alone = params_from_torch(tensors, twin.like, **twin.said)
            jax.tree.map(np.testing.assert_array_equal, whole, alone)
            back = params_to_torch(alone, tensors, **twin.said)
            assert back.keys() == tensors.keys()


def test_bfloat16_is_exact_both_ways():
    module = drawn(torch.nn.Linear(3, 2)).bfloat16()
    half = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    params = params_from_torch(module, {"kernel": half(3, 2), "bias": half(2)})
    wide = params_from_torch(module, {"kernel": shape(3, 2), "bias": shape(2)})
    weight = module.weight.detach().double().numpy().T
    assert params["kernel"].dtype == jnp.bfloat16
    for tree in (params, wide):
        np.testing.assert_array_equal(np.asarray(tree["kernel"], np.float64), weight)
        back = params_to_torch(tree, module)
        torch.testing.assert_close(back, module.state_dict(), rtol=0, atol=0)


def test_what_torch_does_in_place_is_not_seen_in_jax_nor_the_other_way():
    module = drawn(torch.nn.Linear(16, 64))
    params = params_from_torch(module, {"kernel": shape(16, 64), "bias": shape(64)})
    back = params_to_torch(params, module)
    was = jax.tree.map(np.array, params)
    for tensor in [*module.state_dict().values(), *back.values()]:
        tensor.zero_()
    jax.tree.map(np.testing.assert_array_equal, params, was)


def test_an_equinox_model_keeps_what_is_no_array():
    make = lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key)
    model = eqx.filter_eval_shape(make, jax.random.key(0))
    module = drawn(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)))
    names = {"": "layers"}
    whole = params_from_torch(module, model, names)
    assert whole.activation is model.activation
    alone = params_from_torch(
        module, eqx.filter(model, lambda leaf: hasattr(leaf, "dtype")), names
    )
    assert eqx.tree_equal(eqx.filter(whole, eqx.is_inexact_array), alone)
