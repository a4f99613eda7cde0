"""Modules, trees and names of which one side has nothing like are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
eqx = pytest.importorskip("equinox")

from neuron_optax.interop import params_from_torch, params_to_torch  # noqa: E402
from tests.interop_twins import drawn, shape  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")
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
    "own parameter": (
        torch.nn.ParameterDict({"place": torch.ones(3)}),
        LINEAR,
        r"place \(not known\)",
    ),
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
    "zeros to attend": (
        torch.nn.ModuleDict({"a": torch.nn.MultiheadAttention(4, 4, add_zero_attn=1)}),
        {"a": HEADS},
        "a: neither Flax nor Equinox has torch's add_zero_attn",
    ),
    "renormalised": (
        torch.nn.Embedding(3, 2, max_norm=1.0),
        {"embedding": shape(3, 2)},
        "neither Flax nor Equinox has torch's max_norm",
    ),
    "groups": (
        torch.nn.ConvTranspose1d(4, 4, 3, groups=2, bias=False),
        {"kernel": shape(3, 4, 2)},
        "weight for kernel: torch has 2 groups, Flax's ConvTranspose has none",
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


def test_floats_do_not_become_integers():
    module = drawn(torch.nn.Linear(3, 2))
    whole = LINEAR | {"bias": jax.ShapeDtypeStruct((2,), jnp.int32)}
    with pytest.raises(ValueError, match="bias: float64 does not go into int32"):
        params_from_torch(module, whole)
    counts = {key: tensor.int() for key, tensor in module.state_dict().items()}
    params = params_from_torch(module, LINEAR)
    with pytest.raises(ValueError, match=r"(bias|kernel): float64 does not go into"):
        params_to_torch(params, counts)


def test_collections_of_linen_are_those_that_torch_has():
    module = drawn(torch.nn.Linear(3, 2))
    like = {"params": LINEAR, "intermediates": {}}
    params = params_from_torch(module, like)
    assert params["intermediates"] == {}
    back = params_to_torch(params, module)
    torch.testing.assert_close(back, dict(module.state_dict()))
    like["cache"] = {"index": shape(1)}
    with pytest.raises(ValueError, match="cache/index: collections must be among"):
        params_from_torch(module, like)
