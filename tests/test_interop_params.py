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
    like = {"kernel": shape(2, 3, 4, 5), "bias": shape(4, 5)}
    params = params_from_torch(module, like)
    x = np.random.default_rng(0).standard_normal((7, 2, 3))
    actual = jnp.einsum("bij,ijkl->bkl", x, params["kernel"]) + params["bias"][None]
    expected = forward(module, [x.reshape(7, 6)]).reshape(7, 4, 5)
    np.testing.assert_allclose(actual, expected, TOLERANCE, TOLERANCE)
    with pytest.raises(ValueError, match=r"weight of shape \(20, 6\) fits a leaf of"):
        params_from_torch(module, like | {"kernel": shape(4, 5, 2, 3)})


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


LINEAR = {"kernel": shape(3, 2), "bias": shape(2)}
CONV = {"kernel": shape(3, 2, 2), "bias": shape(2)}
HEADS = {n: {"kernel": shape(4, 4, 1)} for n in ("query", "key", "value")}
HEADS["out"] = {"kernel": shape(4, 1, 4)}
GRU = {"dense_i": {"kernel": shape(3, 6), "bias": shape(6)}}
GRU["dense_h"] = {"kernel": shape(2, 6)}
CELL = {"weight_ih": shape(8, 3), "weight_hh": shape(8, 2)}
REFUSED = {
    "left in torch": (
        torch.nn.Linear(3, 2),
        {"kernel": shape(3, 2)},
        r"torch tensors without a leaf: \[\"bias \(for 'bias'\)\"\]",
    ),
    "left in JAX": (
        torch.nn.Linear(3, 2, bias=False),
        LINEAR,
        r"leaves without a torch tensor: \['bias'\]",
    ),
    "shape": (
        torch.nn.Linear(2, 3),
        {"kernel": shape(3, 2), "bias": shape(3)},
        r"kernel: weight of shape \(3, 2\) fits a leaf of shape \(2, 3\), got \(3, 2\)",
    ),
    "own parameter": (Model(), LINEAR, r"place \(not known\)"),
    "convolution": (torch.nn.Conv1d(2, 2, 3).state_dict(), CONV, "give the module"),
    "attention": (
        torch.nn.MultiheadAttention(4, 2, bias=False).state_dict(),
        HEADS,
        "how many heads attention has: give the module",
    ),
    "heads": (
        torch.nn.MultiheadAttention(4, 2, bias=False),
        HEADS,
        "in_proj_weight for query/kernel: torch has 2 heads, the leaf .* 4",
    ),
    "square": (
        torch.nn.ConvTranspose1d(2, 2, 3),
        CONV,
        "say transpose_kernel=False or",
    ),
    "reset bias": (
        torch.nn.GRUCell(3, 2),
        GRU,
        "bias_hh: there is no leaf for its part",
    ),
    "projected": (
        torch.nn.LSTM(3, 2, bias=False, proj_size=1),
        {"l0": CELL | {"weight_hh": shape(8, 1)}},
        r"weight_hr_l0 \(not known\)",
    ),
    "no biases": (
        torch.nn.LSTMCell(3, 2, bias=False),
        CELL | {"bias": shape(8)},
        "bias",
    ),
    "statistics": (torch.nn.BatchNorm1d(2), {"scale": shape(2)}, "running_mean"),
}


@pytest.mark.parametrize(("module", "like", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_left_or_open_is_refused_by_name(module, like, said):
    with pytest.raises(ValueError, match=said):
        params_from_torch(module, like)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"Module or its state_dict, got dict"):
        params_from_torch({"weight": np.ones((2, 3))}, LINEAR)


def test_averages_that_equinox_still_corrects_do_not_go_back():
    norm = torch.nn.BatchNorm1d(2)
    for mode, said in (("ema", "not seen a batch"), ("batch", "after 0 batches")):
        pair = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "batch", mode=mode)
        with pytest.raises(ValueError, match=f"mean: averages that .*{said}"):
            params_to_torch(pair, norm)
        params_to_torch(
            params_from_torch(torch.nn.BatchNorm1d(2), pair), torch.nn.BatchNorm1d(2)
        )


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
